//! `macrl-train`: pretrain, evaluate, report.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    macrl_train::startup::settle();
    macrl_train::commands::run()
}
