//! `macrl-export`: arguments in, exit code out.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![warn(clippy::print_stdout, clippy::print_stderr)] // a closed pipe must not end an export: see macrl_bundle::output

use std::process::ExitCode;

use clap::Parser;
use macrl_bundle::output::{answer, say};
use macrl_export::Job;
use macrl_export::cli::{Cli, one_line};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // --help and --version come as errors too; they go to stdout.
        Err(e) if !e.use_stderr() => {
            let _ = e.print(); // the pipe may be closed
            return ExitCode::SUCCESS;
        }
        Err(e) => return fail(2, &format!("{}; see macrl-export --help", one_line(&e))),
    };
    let Some(job) = cli.job() else {
        return fail(2, "error: expected FILE.onnx or `bundle DIR`, and --run DIR; see macrl-export --help");
    };
    match macrl_export::run(&job) {
        Ok(summary) => {
            answer(&summary);
            if let Job::Bundle(dir, ..) = &job {
                say(&format!("next: macrl-serve --bundle {}", dir.display()));
            }
            ExitCode::SUCCESS
        }
        Err(failure) => fail(failure.code(), &format!("error: {failure}")),
    }
}

fn fail(code: u8, line: &str) -> ExitCode {
    say(line);
    ExitCode::from(code)
}
