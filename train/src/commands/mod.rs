//! The command line: arguments -> one function per command -> exit code.

mod choose;
mod claim;
mod enough;
mod estimate;
mod evaluate;
mod finetune;
mod pretrain;
mod probe;
mod replay;
mod report;
mod shared;
mod unpack;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use macrl_bundle::config::ConfigError;
use macrl_bundle::output::{one_line, say};
use macrl_bundle::say;

use shared::{Stopped, Usage};

use crate::data::Unclear;

/// Pretrains a vision encoder on images without labels, and evaluates it.
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
    /// Measure kNN and linear probe of a run's encoder, of an untrained encoder and of raw pixels; without labels, spread and
    /// effective rank of the features.
    Evaluate(evaluate::Arguments),
    /// Train a run's encoder on the labels, end to end, and the same network from random weights for comparison.
    Finetune(finetune::Arguments),
    /// Fit a bundle's linear probe on other labels, and put it into the bundle.
    Probe(probe::Arguments),
    /// Compute a step that was not finite again, and name the loss, the parameters and the images.
    Replay(replay::Arguments),
    /// Write report.html, one self-contained page about a run.
    Report(report::Arguments),
    /// Write a split's images as PNG files into class sub-folders.
    Unpack(unpack::Arguments),
}

/// Runs the command that the arguments name.  Errors are printed here, once, in one line.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(said) => return refuse(&said),
    };
    let done = match cli.command {
        Command::Pretrain(arguments) => pretrain::run(&arguments),
        Command::Evaluate(arguments) => evaluate::run(&arguments),
        Command::Finetune(arguments) => finetune::run(&arguments),
        Command::Probe(arguments) => probe::run(&arguments),
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
            let mistake = error.chain().any(|e| e.is::<ConfigError>() || e.is::<Usage>() || e.is::<Unclear>());
            ExitCode::from(if mistake { 2 } else { 1 })
        }
    }
}

/// Prints --help and --version as clap does, and a mistake as one line.
fn refuse(said: &clap::Error) -> ExitCode {
    if !said.use_stderr() {
        let _ = said.print(); // the pipe may be closed
        return ExitCode::SUCCESS;
    }
    let text = said.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:")).collect();
    say!("{} (see --help)", lines.join(" ").trim());
    ExitCode::from(2)
}
