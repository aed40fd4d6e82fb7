//! Settings of a training process that must be made before any thread starts.

use std::ffi::c_int;

/// mimalloc's option `mi_option_purge_delay`, for which the binding has no name.
const PURGE_DELAY: c_int = 15;

/// Configures the allocator and Candle's thread pool.  Call it first in `main`: with several threads it leaves Candle's pool
/// as it is.
pub fn settle() {
    // Freed pages stay with the process.  A step takes and frees the same megabytes again and again, and giving them back in
    // between costs a page fault each (100 times as many of them, a tenth of the time of a ViT-Tiny step).
    // SAFETY: an option that exists, with a value that its documentation names.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() && is_single_threaded() {
        // Candle's pool spins between its (few, small) element-wise operations, and takes the cores from the fused operators,
        // which run on rayon's pool.
        // SAFETY: no other thread exists that could read the environment.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}

/// Whether this is the only thread of the process, as far as the system says.
fn is_single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}
