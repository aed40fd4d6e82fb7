//! The command line: arguments -> one function per command -> exit code.

mod claim;
mod enough;
mod evaluate;
mod finetune;
mod pretrain;
mod replay;
mod report;
mod unpack;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use macrl_models::config::ConfigError;
use macrl_models::folder::text;
use macrl_models::output::{one_line, say};
use macrl_models::say;

use crate::data::identity::identity;
use crate::data::{self, Data, Reading};
use crate::run::Run;
use crate::state::State;

/// Pretrains a vision encoder on images without labels, and says how good it is.
#[derive(Debug, Parser)]
#[command(name = "macrl-train", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pretrain an encoder (MACRL: masked contrastive representation learning).
    Pretrain(pretrain::Arguments),
    /// kNN and linear probe of a run's encoder, beside an untrained encoder and raw pixels; without labels spread and
    /// effective rank of its features.
    Evaluate(evaluate::Arguments),
    /// Train a run's encoder on the labels, end to end, beside the same network from random weights.
    Finetune(finetune::Arguments),
    /// Compute a step that was not finite again, and say where it comes from.
    Replay(replay::Arguments),
    /// Write report.html, one self-contained page about a run.
    Report(report::Arguments),
    /// Write a split's images as PNG files into class sub-folders.
    Unpack(unpack::Arguments),
}

/// A mistake in the arguments: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Stopped on request: not done, and no error either.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Stopped(String);

impl Stopped {
    /// `what` names the work where it is only a part of the command's.
    fn at(step: u64, what: &str) -> Self {
        Stopped(format!("stopped after step {step}{what}; the state is saved, --resume goes on from there"))
    }
}

/// Runs the command that the arguments name; errors are printed here, once, in one line.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(said) => return refuse(&said),
    };
    let done = match cli.command {
        Command::Pretrain(arguments) => pretrain::run(&arguments),
        Command::Evaluate(arguments) => evaluate::run(&arguments),
        Command::Finetune(arguments) => finetune::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Unpack(arguments) => unpack::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(stopped) = error.downcast_ref::<Stopped>() {
                say(&stopped.0);
                return ExitCode::FAILURE;
            }
            say!("error: {}", one_line(error.as_ref()));
            let mistake = error.chain().any(|e| e.is::<ConfigError>() || e.is::<Usage>() || e.is::<data::Unclear>());
            ExitCode::from(if mistake { 2 } else { 1 })
        }
    }
}

/// --help and --version as clap prints them; a mistake as one line.
fn refuse(said: &clap::Error) -> ExitCode {
    if !said.use_stderr() {
        let _ = said.print(); // to a pipe that nobody reads, perhaps
        return ExitCode::SUCCESS;
    }
    let text = said.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:")).collect();
    say!("{} (see --help)", lines.join(" ").trim());
    ExitCode::from(2)
}

/// A flag that Ctrl-C sets: the work stops where it can go on from.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let handler = move || match seen.swap(true, Ordering::SeqCst) {
        false => say("stopping after this step; once more ends at once"),
        true => std::process::exit(130), // what is on the disk is whole at any time
    };
    ctrlc::set_handler(handler).context("cannot catch Ctrl-C")?;
    Ok(stop)
}

/// Opens the data set, and says what was found.
fn open_data(dir: &std::path::Path, config: &macrl_models::config::Config) -> Result<Data> {
    opened(dir, data::open(dir, config)?)
}

/// The same for a command that looks at every image once: only small sets are held in memory.
fn open_data_once(dir: &std::path::Path, config: &macrl_models::config::Config) -> Result<Data> {
    const HELD: u64 = 256 << 20;
    let mut reading = Reading::from_config(config);
    reading.budget = reading.budget.min(HELD);
    opened(dir, data::open_with(dir, &reading, config.data.limit)?)
}

fn opened(dir: &std::path::Path, data: Data) -> Result<Data> {
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

/// Whether these are the images that a state was trained on.
fn check_data(command: &str, state: &State, data: &Data) -> Result<()> {
    match (&state.data, identity(data)) {
        (Some(own), found) if *own != found => {
            Err(Usage(format!("{command}: the run was trained on other data: expected {own}; found {found}")).into())
        }
        _ => Ok(()),
    }
}

/// `--data`, or where the run found its data.
fn data_dir(given: &Option<PathBuf>, run: &Run) -> Result<PathBuf> {
    match given {
        Some(dir) => Ok(dir.clone()),
        None => std::fs::read(run.data()).map(written_path).map_err(|_| {
            Usage(format!("{} does not say where its data is: give --data DIR", run.dir().display())).into()
        }),
    }
}

/// A path as data.txt holds it: its bytes, one line feed.
fn path_line(path: &std::path::Path) -> Vec<u8> {
    [path.as_os_str().as_bytes(), b"\n"].concat()
}

/// What [`path_line`] wrote; earlier versions wrote no line feed.
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
