//! A pool of `f32` buffers: each training step reuses the buffers of the step before.
//!
//! The operating system zeroes fresh pages and maps them one page fault at a time, which costs more than much of the
//! arithmetic done in them.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

type Pool = HashMap<usize, Vec<Vec<f32>>>;

fn pool() -> MutexGuard<'static, Pool> {
    static POOL: OnceLock<Mutex<Pool>> = OnceLock::new();
    // A thread that panicked while it held the lock left a valid list behind.
    POOL.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// A buffer of `f32` values that returns to the pool when it is dropped.
#[derive(Debug, Default)]
pub struct Buffer(Vec<f32>);

impl Buffer {
    /// A buffer with arbitrary (old) contents, for results that are written in full.
    pub fn dirty(len: usize) -> Self {
        let old = pool().get_mut(&len).and_then(Vec::pop);
        Buffer(old.unwrap_or_else(|| vec![0.0; len]))
    }

    /// A buffer of zeros, for sums.
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::dirty(len);
        buffer.fill(0.0);
        buffer
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            let values = std::mem::take(&mut self.0);
            pool().entry(values.len()).or_default().push(values);
        }
    }
}

/// Returns all unused buffers to the operating system, for example after training.
pub fn release() {
    pool().clear();
}
