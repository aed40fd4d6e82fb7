//! `macrl-serve`: parse, run, and say what went wrong in one line.

use std::process::ExitCode;

use clap::Parser;
use macrl_serve::cli::{Cli, UsageError};

/// Batches come and go at a steady pace; mimalloc gives their memory back where the system's allocator fragments.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            let text = error.render().to_string();
            let lines: Vec<&str> = text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:")).collect();
            eprintln!("{} (see --help)", lines.join(" ").trim());
            return ExitCode::from(2);
        }
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}
