//! How far a long command is: a bar on a terminal, plain lines otherwise.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between two plain lines.
const PAUSE: Duration = Duration::from_secs(5);

/// Shown on stderr; gone when dropped.
pub struct Progress {
    bar: ProgressBar,
    unit: &'static str,
    since: Instant,
    /// When the last plain line was written.
    line: Mutex<Instant>,
}

impl Progress {
    /// Of so many things.
    pub fn new(total: usize, unit: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
        let template = format!("{{bar:30}} {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left");
        bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, unit, since: Instant::now(), line: Mutex::new(Instant::now()) }
    }

    /// So many more are done.
    pub fn add(&self, done: usize) {
        self.bar.inc(done as u64);
        if !self.bar.is_hidden() {
            return;
        }
        let mut line = self.line.lock().unwrap_or_else(|e| e.into_inner());
        if line.elapsed() >= PAUSE {
            *line = Instant::now();
            let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
            let pace = done as f64 / self.since.elapsed().as_secs_f64();
            eprintln!("{done}/{total} {}, {pace:.0}/s", self.unit);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
