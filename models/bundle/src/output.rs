//! Output of the binaries: whole lines, each in one write.
//!
//! `println!` panics when the reader has closed the pipe (`| head`, a killed `tee`), which would end hours of training.
//! All output goes through this module instead.  A line that cannot be written is dropped, and the program continues.
//! A lint forbids the standard macros in the crates.

use std::error::Error;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Prints a progress or log line to stderr; takes the arguments of `format!`.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::output::say(&format!($($text)*)) };
}

/// Prints a line of a command's result to stdout; takes the arguments of `format!`.
#[macro_export]
macro_rules! answer {
    ($($text:tt)*) => { $crate::output::answer(&format!($($text)*)) };
}

/// Prints a progress or log line to stderr.
pub fn say(line: &str) {
    let _ = write_line(&mut io::stderr().lock(), line);
}

/// Prints a command's result to stdout.  If the disk is full, one note on stderr says so; a closed pipe is ignored,
/// because nobody reads the result.
pub fn answer(text: &str) {
    static SAID: AtomicBool = AtomicBool::new(false);
    match write_line(&mut io::stdout().lock(), text) {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe && !SAID.swap(true, Ordering::Relaxed) => {
            say(&format!("note: the result could not be written to stdout: {why}"));
        }
        _ => {}
    }
}

/// Writes the text and a line end in one write, so that lines of several processes do not mix.
fn write_line(to: &mut impl Write, text: &str) -> io::Result<()> {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    to.write_all(format!("{text}{end}").as_bytes())?;
    to.flush()
}

/// An error and its causes as one line.  A cause that the message before it already contains is left out.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = flat(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = flat(&error.to_string());
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A duration in at most two units: `45 s`, `30 min`, `5 h 10 min`, `3 d 4 h`.
pub fn duration(time: Duration) -> String {
    let two = |large: u64, unit: &str, small: u64, part: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {part}"),
    };
    let seconds = time.as_secs_f64().round() as u64;
    let minutes = seconds.saturating_add(30) / 60;
    match (seconds, minutes) {
        (0, _) if !time.is_zero() => "under 1 s".into(),
        (0..60, _) => format!("{seconds} s"),
        (_, 0..60) => format!("{minutes} min"),
        (_, 60..2880) => two(minutes / 60, "h", minutes % 60, "min"),
        _ => two(minutes / 1440, "d", (minutes % 1440) / 60, "h"),
    }
}

/// An elapsed time: in tenths of a second below a minute, as [`duration`] above.
pub fn elapsed(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        _ => duration(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read a.toml: {source}")]
    struct Repeats {
        source: io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("no run")]
    struct Outer(#[source] Repeats);

    #[test]
    fn a_cause_is_said_once() {
        let error = Outer(Repeats { source: io::Error::from_raw_os_error(2) });
        assert_eq!(one_line(&error), "no run: cannot read a.toml: No such file or directory (os error 2)");
        assert_eq!(one_line(&io::Error::other("two\n  lines")), "two lines");
    }

    #[test]
    fn durations_read_as_people_say_them() {
        let words = |seconds: f64| duration(Duration::from_secs_f64(seconds));
        let times = [0.0, 0.4, 59.4, 59.6, 1816.0, 3569.0, 3571.0, 18_600.0, 172_799.0, 273_600.0];
        let expected = ["0 s", "under 1 s", "59 s", "1 min", "30 min", "59 min", "1 h", "5 h 10 min", "2 d", "3 d 4 h"];
        assert_eq!(times.map(words), expected);
        assert_eq!([1.24, 1816.0].map(|s| elapsed(Duration::from_secs_f64(s))), ["1.2 s", "30 min"]);
        assert!(duration(Duration::MAX).ends_with(" h"));
    }

    #[test]
    fn a_reader_that_has_gone_is_no_reason_to_end() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(write_line(&mut Gone, "x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut written = Vec::new();
        write_line(&mut written, "a").unwrap();
        write_line(&mut written, "b\n").unwrap();
        assert_eq!(written, b"a\nb\n");
    }
}
