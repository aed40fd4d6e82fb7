//! What several commands share: their errors, the data set, Ctrl-C.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::Args;
use macrl_bundle::config::Config;
use macrl_bundle::folder::text;
use macrl_bundle::output::say;
use macrl_bundle::say;

use crate::data::identity::identity;
use crate::data::{self, Data, Reading};
use crate::run::Run;
use crate::state::State;

/// Arguments of the commands that continue from a run.
#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// Folder of the run.
    #[arg(long)]
    run: PathBuf,
    /// Folder with the images; if not given, the one that the run was trained on.
    #[arg(long)]
    pub(super) data: Option<PathBuf>,
}

impl RunArguments {
    pub(super) fn run(&self) -> Run {
        Run::new(&self.run)
    }

    /// The folder with the images.
    ///
    /// # Errors
    /// None is given, and the run does not name one that is there.
    pub(super) fn data_dir(&self) -> Result<PathBuf> {
        data_dir(&self.data, &self.run())
    }
}

/// A mistake in the arguments: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// The command was stopped on request: it is not done, and no error has occurred.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Stopped(pub(super) String);

impl Stopped {
    /// `what` names the work, where it is only a part of the command.
    pub(super) fn at(step: u64, what: &str) -> Self {
        Stopped(format!("stopped after step {step}{what}; the state is saved; --resume continues from there"))
    }
}

/// A flag that Ctrl-C sets: the command then stops after its current step.
pub(super) fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let handler = move || match seen.swap(true, Ordering::SeqCst) {
        false => say("stopping after this step; press Ctrl-C once more to end at once"),
        true => std::process::exit(130), // files on the disk are complete at any time
    };
    ctrlc::set_handler(handler).context("cannot catch Ctrl-C")?;
    Ok(stop)
}

/// Opens the data set, and prints what was found.
pub(super) fn open_data(dir: &Path, config: &Config) -> Result<Data> {
    opened(dir, data::open(dir, config)?)
}

/// The same for a command that reads every image once: only small sets are decoded into memory.
pub(super) fn open_data_once(dir: &Path, config: &Config) -> Result<Data> {
    const HELD: u64 = 256 << 20;
    let mut reading = Reading::from_config(config);
    reading.budget = reading.budget.min(HELD);
    opened(dir, data::open_with(dir, &reading, config.data.limit)?)
}

fn opened(dir: &Path, data: Data) -> Result<Data> {
    let test = data.test.as_ref().map_or(0, |t| t.len());
    let left_out = match data.left_out.is_empty() {
        true => String::new(),
        false => format!("; left out: {}", data.left_out.join(", ")),
    };
    let classes = match data.classes.len() {
        0 => "no labels".to_string(),
        1 => "1 class".to_string(),
        n => format!("{n} classes"),
    };
    let (dir, format, train) = (text(dir), data.format, data.train.len());
    say!("data: {dir} ({format}), {train} training and {test} test images, {classes}{left_out}");
    data.notes.iter().for_each(|note| say!("note: {note}"));
    if !data.skipped.is_empty() {
        let s = if data.skipped.len() == 1 { "" } else { "s" };
        say!("left out {} unreadable file{s}:", data.skipped.len());
        const SHOWN: usize = 10;
        data.skipped.iter().take(SHOWN).for_each(|(file, why)| say!("  {file}: {why}"));
    }
    Ok(data)
}

/// Checks that these are the images that the state was trained on.
pub(super) fn check_data(command: &str, state: &State, data: &Data) -> Result<()> {
    match (&state.data, identity(data)) {
        (Some(own), found) if *own != found => {
            Err(Usage(format!("{command}: the run was trained on other data: expected {own}; found {found}")).into())
        }
        _ => Ok(()),
    }
}

/// `--data`, or the folder that the run was trained on.
pub(super) fn data_dir(given: &Option<PathBuf>, run: &Run) -> Result<PathBuf> {
    match given {
        Some(dir) => Ok(dir.clone()),
        None => std::fs::read(run.data()).map(written_path).map_err(|_| {
            Usage(format!("{} does not say where its data is: give --data DIR", run.dir().display())).into()
        }),
    }
}

/// A path as the content of data.txt: its bytes and a line feed.
pub(super) fn path_line(path: &Path) -> Vec<u8> {
    [path.as_os_str().as_bytes(), b"\n"].concat()
}

/// The path in data.txt; earlier versions wrote no line feed.
fn written_path(mut line: Vec<u8>) -> PathBuf {
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    OsString::from_vec(line).into()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn every_path_is_found_again() {
        for name in [&b"/a/trail "[..], b"/a/new\n", b" /caf\xe9", b"/a"] {
            let path = PathBuf::from(OsStr::from_bytes(name));
            assert_eq!(written_path(path_line(&path)), path);
        }
        assert_eq!(written_path(b"/as before".to_vec()), PathBuf::from("/as before"));
    }
}
