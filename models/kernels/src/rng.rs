//! Counter-based random numbers: a draw depends on its coordinates only, not on order or thread.

/// A random stream identified by up to four coordinates, for example (seed, epoch, image, view).
///
/// SplitMix64 (Steele, Lea, Flood 2014); the start state is a hash of the coordinates.
///
/// ```
/// use macrl_kernels::Rng;
///
/// let draw = |image| Rng::new([7, 0, image, 1]).uniform();
/// let forwards = [draw(0), draw(1)];
/// let backwards = [draw(1), draw(0)];
/// assert_eq!(forwards, [backwards[1], backwards[0]]);
/// ```
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

/// SplitMix64's output function: hashes the bits of `z`.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// SplitMix64's increment: 2^64 divided by the golden ratio.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rng {
    /// The stream of these coordinates.
    pub fn new(coordinates: [u64; 4]) -> Self {
        let state = coordinates.iter().fold(STEP, |key, c| mix(key ^ mix(c.wrapping_add(STEP))).wrapping_add(STEP));
        Rng { state }
    }

    /// The next 64 random bits of the stream.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// A number from the uniform distribution on [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An integer from the uniform distribution on 0..n; `n` must be above 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// A number from the standard normal distribution (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}
