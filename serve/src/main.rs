//! `macrl-serve`: parses the arguments, runs the command, and reports an error in one line.

#![warn(clippy::print_stdout, clippy::print_stderr)] // all output goes through macrl_bundle::output

use std::process::ExitCode;

use clap::Parser;
use macrl_bundle::output::one_line;
use macrl_bundle::say;
use macrl_serve::arguments::UsageError;
use macrl_serve::cli::Cli;

/// mimalloc returns the memory of batches to the system; with the system's allocator, it would fragment.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            let _ = error.print(); // fails if stdout is a closed pipe
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let text = error.render().to_string();
            let lines: Vec<&str> = text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:")).collect();
            say!("{} (see --help)", lines.join(" ").trim());
            return ExitCode::from(2);
        }
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("error: {}", one_line(error.as_ref()));
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}
