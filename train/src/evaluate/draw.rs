//! The few random choices of evaluation: reproducible anywhere from a seed.

/// The numbers 0..n in an order that `seed` decides.
pub fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_cached_key(|&i| mix(seed, i as u64));
    order
}

/// Some bits for counter `i` of stream `seed`: SplitMix64's output function (Steele, Lea and Flood 2014).
pub(crate) fn mix(seed: u64, i: u64) -> u64 {
    let mut z = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed.wrapping_mul(0xD1B5_4A32_D192_ED03));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
