//! `macrl-train`: pretrain, evaluate, report.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![warn(clippy::print_stdout, clippy::print_stderr)] // a closed pipe must not end a run: see macrl_bundle::output

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    macrl_train::startup::settle();
    macrl_train::commands::run()
}
