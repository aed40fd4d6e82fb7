//! `macrl-export`: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use macrl_export::cli::{Cli, one_line};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // --help and --version come as errors too; they go to stdout.
        Err(e) if !e.use_stderr() => e.exit(),
        Err(e) => return fail(2, &format!("{}; see macrl-export --help", one_line(&e))),
    };
    let Some(job) = cli.job() else {
        return fail(2, "error: expected FILE.onnx or `bundle DIR`, and --run DIR; see macrl-export --help");
    };
    match macrl_export::run(&job) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(failure) => fail(failure.code(), &format!("error: {failure}")),
    }
}

fn fail(code: u8, line: &str) -> ExitCode {
    eprintln!("{line}");
    ExitCode::from(code)
}
