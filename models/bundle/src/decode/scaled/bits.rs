//! Entropy-coded data as a stream of bits.

/// Bytes that are copied at once where none of them is 0xff.
const STRIDE: usize = 32;

/// The data of one scan: stuffed bytes and restart markers are taken out.
pub(super) struct Entropy {
    bytes: Vec<u8>,
    /// Where each restart interval ends in `bytes`.
    ends: Vec<usize>,
}

impl Entropy {
    /// Reads up to the end-of-image marker; `None` where another marker comes first, or none at all.
    pub(super) fn read(data: &[u8]) -> Option<Self> {
        let (mut bytes, mut ends, mut at) = (Vec::with_capacity(data.len()), Vec::new(), 0);
        loop {
            while let Some(chunk) = data.get(at..at + STRIDE)
                && !chunk.iter().fold(false, |any, b| any | (*b == 0xff))
            {
                bytes.extend_from_slice(chunk);
                at += STRIDE;
            }
            let rest = &data[at..];
            let plain = rest.iter().position(|b| *b == 0xff)?;
            bytes.extend_from_slice(&rest[..plain]);
            at += plain + 1;
            match data.get(at)? {
                0x00 => bytes.push(0xff),
                0xd0..=0xd7 => ends.push(bytes.len()),
                0xd9 => break,
                _ => return None,
            }
            at += 1;
        }
        ends.push(bytes.len());
        Some(Self { bytes, ends })
    }

    /// Number of restart intervals.
    pub(super) fn intervals(&self) -> usize {
        self.ends.len()
    }

    /// The bits of one restart interval.
    pub(super) fn interval(&self, number: usize) -> Option<Bits<'_>> {
        let start = if number == 0 { 0 } else { *self.ends.get(number - 1)? };
        let bytes = self.bytes.get(start..*self.ends.get(number)?)?;
        Some(Bits { bytes, at: 0, buffer: 0, count: 0 })
    }
}

/// Reads bits from the highest of each byte on; behind the end there are zeros.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, the first of them highest.
    buffer: u64,
    /// How many of them are known to be valid.
    count: u32,
}

impl Bits<'_> {
    /// Afterwards at least 56 bits can be peeked at.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        let word = match self.bytes.get(self.at..self.at + 8) {
            Some(bytes) => u64::from_be_bytes(bytes.try_into().unwrap_or_default()),
            None => self.last(),
        };
        self.buffer |= word >> self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    #[cold]
    fn last(&self) -> u64 {
        let mut bytes = [0; 8];
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        bytes[..rest.len()].copy_from_slice(rest);
        u64::from_be_bytes(bytes)
    }

    /// The next `count` bits, 1 to 32 of them.
    #[inline(always)]
    pub(super) fn peek(&self, count: u32) -> usize {
        (self.buffer >> (64 - count)) as usize
    }

    /// Takes `count` bits.
    #[inline(always)]
    pub(super) fn skip(&mut self, count: u32) {
        self.buffer <<= count;
        self.count = self.count.wrapping_sub(count);
    }

    /// The value of the next `size` bits as JPEG codes it (T.81, F.2.2.1): the upper half of the range is positive.
    #[inline(always)]
    pub(super) fn value(&mut self, size: u32) -> i32 {
        if size == 0 {
            return 0;
        }
        let bits = self.peek(size) as i32;
        self.skip(size);
        if bits >> (size - 1) != 0 { bits } else { bits - (1 << size) + 1 }
    }

    /// Whether no bit was taken from behind the end.
    pub(super) fn is_within(&self) -> bool {
        8 * self.at <= 8 * self.bytes.len() + self.count as usize
    }
}
