//! How far a long piece of work is: a bar on a terminal, plain lines otherwise; nothing where it is short.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{duration, say};

/// Work of less than this is not worth a bar, or a line.
const SHORT: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(2)];
/// Between two looks at a bar, or two lines.
const PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// Whether one is shown: work that goes on beside it is not, two bars would overwrite each other.
static SHOWN: AtomicBool = AtomicBool::new(false);

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
    /// Whether this is the one that is shown.
    chosen: bool,
    /// When to show something again, from the start.
    next: Duration,
}

impl Progress {
    /// Of `total` things; `what` says what is being done with them, for instance `reading images`.
    pub fn new(what: impl Into<String>, total: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let shown = Shown { bar: None, terminal, chosen: false, next: SHORT[usize::from(!terminal)] };
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
        shown.chosen = shown.chosen || !SHOWN.swap(true, Ordering::Relaxed);
        if !shown.chosen {
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
        if shown.chosen {
            SHOWN.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_shown_at_a_time() {
        let shown = |progress: &Progress| progress.shown.lock().unwrap().chosen;
        let (first, second) = (Progress::new("a", 2), Progress::new("b", 2));
        for progress in [&first, &second] {
            progress.shown.lock().unwrap().next = Duration::ZERO;
            progress.add(1);
        }
        assert_eq!((shown(&first), shown(&second)), (true, false));
        drop(first);
        second.add(1);
        assert!(shown(&second));
    }

    #[test]
    fn pace_and_what_is_left_are_said_in_words() {
        let progress = Progress::new("reading images", 540);
        assert_eq!(progress.text(20, Duration::from_secs(10)), ", 2.0/s, 4 min left");
        assert_eq!(progress.text(540, Duration::from_secs(9)), ", 60/s");
    }
}
