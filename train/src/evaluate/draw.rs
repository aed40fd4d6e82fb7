//! The few random choices of evaluation: reproducible anywhere from a seed.

use macrl_models::rng;

/// The numbers 0..n in an order that `seed` decides.
pub fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_cached_key(|&i| mix(seed, i as u64));
    order
}

/// Some bits for counter `i` of stream `seed`: SplitMix64's output function (Steele, Lea and Flood 2014).
pub(crate) fn mix(seed: u64, i: u64) -> u64 {
    rng::mix((i + 1).wrapping_mul(rng::STEP).wrapping_add(seed.wrapping_mul(0xD1B5_4A32_D192_ED03)))
}
