//! `macrl-train`: pretrain, evaluate, report.

use std::process::ExitCode;

/// Keeps pages instead of returning them: a training step frees and takes the same megabytes over and over.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    macrl_train::commands::run()
}
