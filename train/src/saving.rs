//! When a checkpoint is due: after a number of steps, or after some time.

use std::time::{Duration, Instant};

use macrl_bundle::config::TrainConfig;

/// Time between two checkpoints at ends of epochs, where not every epoch is saved.  Writing 100 MB takes half a second.
const PAUSE: Duration = Duration::from_secs(20);

/// Remembers when the last checkpoint was written.
#[derive(Debug)]
pub struct Saving {
    /// Steps between two checkpoints; 0: no limit.
    every: u64,
    /// Longest time between two checkpoints; `None`: no limit.
    patience: Option<Duration>,
    saved: Instant,
}

impl Saving {
    /// Reads `train.checkpoint_every` and `train.checkpoint_minutes`; the time counts from now.
    pub fn new(config: &TrainConfig) -> Self {
        let minutes = config.checkpoint_minutes;
        let patience = (minutes > 0.0).then(|| Duration::try_from_secs_f64(60.0 * minutes).ok()).flatten();
        Saving { every: config.checkpoint_every as u64, patience, saved: Instant::now() }
    }

    /// Whether a checkpoint is due after `step` steps.
    pub fn due(&self, step: u64) -> bool {
        (self.every > 0 && step.is_multiple_of(self.every)) || self.overdue()
    }

    /// Whether one is due at the end of an epoch: also where the last is old enough that writing one costs only a few percent of
    /// the time since.
    pub fn due_after_epoch(&self, step: u64) -> bool {
        self.due(step) || self.age() >= PAUSE
    }

    /// Whether the longest time between two checkpoints has passed.
    pub fn overdue(&self) -> bool {
        self.patience.is_some_and(|patience| self.age() >= patience)
    }

    /// Time since the last checkpoint.
    pub fn age(&self) -> Duration {
        self.saved.elapsed()
    }

    /// Notes that a checkpoint has been written.
    pub fn saved(&mut self) {
        self.saved = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use macrl_bundle::config::Config;

    use super::*;

    fn saving(set: &[&str]) -> Saving {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        Saving::new(&Config::parse("", "test", &set).unwrap().train)
    }

    #[test]
    fn without_a_setting_a_checkpoint_is_due_every_ten_minutes() {
        assert_eq!(saving(&[]).patience, Some(Duration::from_secs(600)));
        assert!(!saving(&[]).due(7) && !saving(&["train.checkpoint_minutes=0"]).due(7));
    }

    #[test]
    fn steps_and_time_make_one_due() {
        let steps = saving(&["train.checkpoint_every=3"]);
        assert_eq!((1..=7).filter(|step| steps.due(*step)).collect::<Vec<_>>(), [3, 6]);
        let mut time = saving(&["train.checkpoint_minutes=0.001"]); // 60 ms
        std::thread::sleep(Duration::from_millis(70));
        assert!(time.due(1) && time.overdue());
        time.patience = Some(Duration::from_secs(60));
        time.saved();
        assert!(!time.due(1) && time.age() < Duration::from_secs(60));
    }

    #[test]
    fn an_epoch_that_may_be_left_out_is_saved_after_a_pause() {
        let mut seldom = saving(&[]);
        assert!(!seldom.due_after_epoch(7));
        seldom.saved = Instant::now().checked_sub(PAUSE).unwrap();
        assert!(seldom.due_after_epoch(7) && !seldom.due(7));
    }
}
