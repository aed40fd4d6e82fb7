//! `macrl`: one command for the common paths.  It starts `macrl-train`, `macrl-export` and `macrl-serve`.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![warn(clippy::print_stdout, clippy::print_stderr)] // a closed pipe must not end a run: see macrl_bundle::output

mod comments;
mod config;
mod embed;
mod fit;
mod programs;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use macrl_bundle::output::{one_line, say};
use macrl_bundle::say;

use programs::{Ended, Usage};

/// Vision encoders from your own images: pretrain, embed, serve.
#[derive(Debug, Parser)]
#[command(name = "macrl", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pretrain an encoder on images, evaluate it, export it, and offer to serve it.
    Fit(fit::Arguments),
    /// Embed images with a bundle: a folder, Parquet files or a tar archive, into Parquet, NumPy or CSV.
    Embed(embed::Arguments),
    /// Print a configuration with all of its keys, what they mean, and their values.
    Config(config::Arguments),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // --help and --version come as errors, too; they go to stdout.
        Err(said) if !said.use_stderr() => {
            let _ = said.print(); // the pipe may be closed
            return ExitCode::SUCCESS;
        }
        Err(said) => {
            let text = said.to_string();
            let lines: Vec<&str> = text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:")).collect();
            say!("{} (see --help)", lines.join(" ").trim());
            return ExitCode::from(2);
        }
    };
    let done = match cli.command {
        Command::Fit(arguments) => fit::run(&arguments),
        Command::Embed(arguments) => embed::run(&arguments),
        Command::Config(arguments) => config::run(&arguments),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    if let Some(ended) = error.downcast_ref::<Ended>() {
        return ExitCode::from(ended.0); // the program has said why
    }
    say(&format!("error: {}", one_line(error.as_ref())));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}
