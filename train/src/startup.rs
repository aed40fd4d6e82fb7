//! Settings of a training process that must be made before any thread starts.

use std::ffi::c_int;

/// mimalloc's option `mi_option_purge_delay`, for which the binding has no name.
const PURGE_DELAY: c_int = 15;

/// Call first in `main`, before any thread is started.
pub fn settle() {
    // Freed pages stay with the process: a step takes and frees the same megabytes over and over, and giving them back
    // in between costs a page fault each (100 times as many of them, a tenth of the time of a ViT-Tiny step).
    // SAFETY: an option that exists, with a value that its documentation names.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // Candle's own pool spins between its (few, small) element-wise operations and takes the cores from the fused
        // operators, which run on rayon's.
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}
