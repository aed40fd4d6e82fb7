//! What a person sees of a run: a bar on a terminal, plain lines otherwise.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use macrl_models::config::Config;

/// Without a terminal a line is printed this often.
const EVERY: Duration = Duration::from_secs(10);
/// Weight of the newest step in the running speed.
const NEWEST: f64 = 0.1;

/// Steps done, losses, images per second, time left.
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
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { bar, batch: config.train.batch_size, per_epoch, step, total, seconds: 0.0, printed: None }
    }

    /// One more step; `said` is its losses in words.
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
                let left = Duration::from_secs((self.seconds * (self.total - self.step) as f64) as u64);
                eprintln!("step {}/{} {text}, {left:?} left", self.step, self.total);
                self.printed = Some(Instant::now());
            }
            None => {}
        }
    }

    fn text(&self, said: &str) -> String {
        let epoch = self.step as f64 / self.per_epoch as f64;
        format!("epoch {epoch:.2}, {said}, {:.0} images/s", self.batch as f64 / self.seconds.max(1e-9))
    }

    /// A line that stays.
    pub fn message(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// The end, whatever it was.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
