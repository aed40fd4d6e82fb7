//! `macrl-train`: pretrain, evaluate, report.

use std::process::ExitCode;

/// Keeps pages instead of returning them: a training step frees and takes the same megabytes over and over.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // Candle's own pool spins between its (few, small) element-wise operations and takes the cores from the fused
        // operators, which run on rayon's.
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    macrl_train::commands::run()
}
