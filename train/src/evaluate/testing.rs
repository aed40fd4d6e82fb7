//! Numbers for tests that NumPy reproduces.
//!
//! ```python
//! def draws(n, seed):
//!     i = np.arange(n, dtype=np.uint64)
//!     z = (i + 1) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed * 0xD1B54A32D192ED03 % 2**64)
//!     z = (z ^ (z >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
//!     z = (z ^ (z >> 27)) * np.uint64(0x94D049BB133111EB)
//!     z = z ^ (z >> 31)
//!     return ((z >> 40) / 2**23 - 1).astype(np.float32)
//! ```

use super::draw::mix;
use super::features::Features;

/// `n` numbers in [-1, 1).
pub(crate) fn draws(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64).map(|i| (mix(seed, i) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// x = draws(60 * 4, 5).reshape(60, 4); y = (x[:, 0] + 0.5 * draws(60, 6) > 0) + (x[:, 1] > 0.3)
pub(crate) fn three_classes() -> Features {
    let (values, noise) = (draws(240, 5), draws(60, 6));
    let label = |(x, noise): (&[f32], &f32)| u32::from(x[0] + 0.5 * noise > 0.0) + u32::from(x[1] > 0.3);
    let labels = values.chunks(4).zip(&noise).map(label).collect();
    Features { values, labels, dim: 4 }
}
