//! Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//!
//! A generator is a pure function of (seed, epoch, sample index, stream): the numbers do not depend on
//! the order of the calls or on the thread.

/// Purpose of the numbers.  Two streams of the same sample are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// The strong view.
    Strong = 0,
    /// The weak view.
    Weak = 1,
    /// The order of a split's images.
    Order = 2,
    /// The shares of mixup.
    Mix = 3,
}

/// A stream of random numbers.
pub struct Philox {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Philox {
    /// The stream keyed by (seed, epoch, index, stream).
    pub fn new(seed: u64, epoch: u64, index: u32, stream: Stream) -> Self {
        let key = [seed as u32, (seed >> 32) as u32];
        // 2^32 blocks per stream; the stream shares its word with the epoch's high half.
        let high = (epoch >> 32) as u32;
        Philox { key, counter: [0, epoch as u32, index, stream as u32 ^ (high << 8)], block: [0; 4], used: 4 }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox4x32_10(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// Uniform in [0, 1) with 32 bits.
    pub fn unit(&mut self) -> f64 {
        f64::from(self.next_u32()) / 4_294_967_296.0
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0..n (n > 0), by Lemire's multiplication; its bias is below n / 2^32.
    pub fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.next_u32()) * u64::from(n)) >> 32) as u32
    }

    /// True with probability p.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// 0..n in random order (Fisher-Yates).
    pub fn permutation(&mut self, n: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i as usize, self.below(i + 1) as usize);
        }
        order
    }
}

fn philox4x32_10(mut x: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(x[0]) * 0xD251_1F53;
        let b = u64::from(x[2]) * 0xCD9E_8D57;
        x = [(b >> 32) as u32 ^ x[1] ^ key[0], b as u32, (a >> 32) as u32 ^ x[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The authors' known answers: `kat_vectors` of Random123, lines `philox4x32 10`.
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([!0; 4], [!0; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let first = |seed, epoch, index, stream| Philox::new(seed, epoch, index, stream).next_u32();
        let base = first(1, 2, 3, Stream::Strong);
        assert_eq!(base, first(1, 2, 3, Stream::Strong));
        for other in [
            first(0, 2, 3, Stream::Strong),
            first(1 | 1 << 32, 2, 3, Stream::Strong),
            first(1, 3, 3, Stream::Strong),
            first(1, 2 | 1 << 32, 3, Stream::Strong),
            first(1, 2, 4, Stream::Strong),
            first(1, 2, 3, Stream::Weak),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn draws_are_uniform() {
        let mut random = Philox::new(7, 0, 0, Stream::Strong);
        let mean = (0..10_000).map(|_| random.range(-1.0, 3.0)).sum::<f64>() / 1e4;
        // Standard error of the mean: 4 / sqrt(12 * 10_000) = 0.0115.
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        let mut counts = [0; 5];
        (0..10_000).for_each(|_| counts[random.below(5) as usize] += 1);
        assert!(counts.iter().all(|c| (1800..2200).contains(c)), "{counts:?}");
        let mut sorted = random.permutation(100);
        assert_ne!(sorted, (0..100).collect::<Vec<_>>());
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }
}
