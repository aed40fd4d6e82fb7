//! Progress of a run: a bar on a terminal, plain lines otherwise.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use macrl_bundle::config::Config;
use macrl_bundle::output::{duration, say};

/// Time between two lines where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);
/// Weight of the newest step in the moving average of the speed.
const NEWEST: f64 = 0.1;

/// Shows steps done, losses, images per second, and time left.
pub struct Progress {
    bar: Option<ProgressBar>,
    batch: usize,
    per_epoch: u64,
    step: u64,
    total: u64,
    seconds: f64,
    printed: Option<Instant>,
}

impl Progress {
    /// For a run that has done `step` steps.
    pub fn start(config: &Config, per_epoch: u64, step: u64) -> Self {
        let total = per_epoch * config.train.epochs as u64;
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(step);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { bar, batch: config.train.batch_size, per_epoch, step, total, seconds: 0.0, printed: None }
    }

    /// Counts one more step; `said` is its losses in words.
    pub fn step(&mut self, said: &str, seconds: f64) {
        self.step += 1;
        let smooth = (1.0 - NEWEST) * self.seconds + NEWEST * seconds;
        self.seconds = if self.seconds == 0.0 { seconds } else { smooth };
        let text = self.text(said);
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.step);
                bar.set_message(text);
            }
            None if self.printed.is_none_or(|at| at.elapsed() >= EVERY) || self.step == self.total => {
                say(&format!("step {}/{} {text}", self.step, self.total));
                self.printed = Some(Instant::now());
            }
            None => {}
        }
    }

    fn text(&self, said: &str) -> String {
        let epoch = self.step as f64 / self.per_epoch as f64;
        let pace = self.batch as f64 / self.seconds.max(1e-9);
        let left = self.seconds * self.total.saturating_sub(self.step) as f64;
        let left = match Duration::try_from_secs_f64(left) {
            Ok(left) if self.step < self.total => format!(", {} left", duration(left)),
            _ => String::new(),
        };
        format!("epoch {epoch:.2}, {said}, {pace:.0} images/s{left}")
    }

    /// Prints a line that stays above the bar.
    pub fn message(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => say(text),
        }
    }

    /// Ends the bar, however the run has ended.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_said_in_words_and_not_at_the_end() {
        let mut progress = Progress {
            bar: None,
            batch: 32,
            per_epoch: 10,
            step: 4,
            total: 100,
            seconds: 18.9,
            printed: Some(Instant::now()),
        };
        assert_eq!(progress.text("loss 1"), "epoch 0.40, loss 1, 2 images/s, 30 min left");
        progress.step = 100;
        assert_eq!(progress.text("loss 1"), "epoch 10.00, loss 1, 2 images/s");
    }
}
