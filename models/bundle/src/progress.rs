//! Progress of long work: a bar on a terminal, plain lines otherwise, nothing if the work is short.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{duration, say};

/// Time after which progress is first shown: [on a terminal, in plain lines].
const SHORT: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(2)];
/// Time between two updates: [of the bar, of plain lines].
const PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// Whether a `Progress` is shown.  Others that run at the same time stay hidden: two bars would overwrite each other.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// Counts finished items from any number of threads and shows the count on stderr; a bar is removed on drop.
pub struct Progress {
    what: String,
    total: usize,
    done: AtomicUsize,
    since: Instant,
    shown: Mutex<Shown>,
}

struct Shown {
    /// On a terminal; created once the work takes longer than [`SHORT`].
    bar: Option<ProgressBar>,
    terminal: bool,
    /// Whether this `Progress` is the one that is shown.
    chosen: bool,
    /// Elapsed time at which to show the next update.
    next: Duration,
}

impl Progress {
    /// Progress over `total` items; `what` names the activity, for example `reading images`.
    pub fn new(what: impl Into<String>, total: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let shown = Shown { bar: None, terminal, chosen: false, next: SHORT[usize::from(!terminal)] };
        Progress { what: what.into(), total, done: AtomicUsize::new(0), since: Instant::now(), shown: shown.into() }
    }

    /// Adds `count` finished items.
    pub fn add(&self, count: usize) {
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        let elapsed = self.since.elapsed();
        // If another thread is updating the display, this one has nothing to add.
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
    fn rate_and_remaining_time_are_shown() {
        let progress = Progress::new("reading images", 540);
        assert_eq!(progress.text(20, Duration::from_secs(10)), ", 2.0/s, 4 min left");
        assert_eq!(progress.text(540, Duration::from_secs(9)), ", 60/s");
    }
}
