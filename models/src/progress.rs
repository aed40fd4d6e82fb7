//! How far a long piece of work is: a bar on a terminal, plain lines otherwise; nothing where it is short.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{duration, say};

/// Work of less than this is not worth a bar, or a line.
const SHORT: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(2)];
/// Between two looks at a bar, or two lines.
const PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// Counts things that are done, from any number of threads; shown on stderr, a bar is gone when this is dropped.
pub struct Progress {
    what: String,
    total: usize,
    done: AtomicUsize,
    since: Instant,
    shown: Mutex<Shown>,
}

struct Shown {
    /// On a terminal; made when the work turns out to be long.
    bar: Option<ProgressBar>,
    terminal: bool,
    /// When to show something again, from the start.
    next: Duration,
}

impl Progress {
    /// Of `total` things; `what` says what is being done with them, for instance `reading images`.
    pub fn new(what: impl Into<String>, total: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let shown = Shown { bar: None, terminal, next: SHORT[usize::from(!terminal)] };
        Progress { what: what.into(), total, done: AtomicUsize::new(0), since: Instant::now(), shown: shown.into() }
    }

    /// So many more are done.
    pub fn add(&self, count: usize) {
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        let elapsed = self.since.elapsed();
        // Whoever finds another thread at it has nothing to add.
        let Ok(mut shown) = self.shown.try_lock() else { return };
        if elapsed < shown.next {
            return;
        }
        shown.next = elapsed + PAUSE[usize::from(!shown.terminal)];
        let text = self.text(done, elapsed);
        match shown.terminal {
            true => {
                let bar = shown.bar.get_or_insert_with(|| self.bar());
                bar.set_message(text);
                bar.set_position(done as u64);
            }
            false => say(&format!("{}: {done} of {}{text}", self.what, self.total)),
        }
    }

    fn bar(&self) -> ProgressBar {
        let bar = ProgressBar::new(self.total as u64).with_prefix(self.what.clone());
        let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len}{msg}");
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    fn text(&self, done: usize, elapsed: Duration) -> String {
        let pace = done as f64 / elapsed.as_secs_f64().max(1e-9);
        let digits = usize::from(pace < 10.0);
        let left = self.total.saturating_sub(done) as f64 / pace.max(1e-9);
        match Duration::try_from_secs_f64(left) {
            Ok(left) if done < self.total => format!(", {pace:.digits$}/s, {} left", duration(left)),
            _ => format!(", {pace:.digits$}/s"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let shown = self.shown.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(bar) = &shown.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_and_what_is_left_are_said_in_words() {
        let progress = Progress::new("reading images", 540);
        assert_eq!(progress.text(20, Duration::from_secs(10)), ", 2.0/s, 4 min left");
        assert_eq!(progress.text(540, Duration::from_secs(9)), ", 60/s");
    }
}
