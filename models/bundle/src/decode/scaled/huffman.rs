//! Huffman tables, and what can be read off a window of bits at once.

use super::bits::Bits;

/// Bits of a window in which one code is looked up; longer codes are searched.
const CODE: u32 = 11;
/// Bits of a window in which several codes with their values are passed over at once.
const PASS: u32 = 13;
/// The symbol of 16 zeros; the others without a value end the block.
const ZEROS: u8 = 0xf0;

/// A code's symbol and length; length 0: it is longer than the window, or no code.
#[derive(Debug, Clone, Copy, Default)]
struct Code {
    symbol: u8,
    length: u8,
}

/// Whole codes of a window, with their values: bits 0 to 3 how many bits they take, bit 4 whether the last is the end of the
/// block, from bit 8 on how many coefficients they stand for, more than a block has where not even one fits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass(u16);

impl Pass {
    const ENDS: u16 = 1 << 4;
    const NONE: Self = Self(64 << 8);

    /// Coefficients; 64 where not even one code fits.
    #[inline(always)]
    pub(super) fn advance(self) -> usize {
        usize::from(self.0 >> 8)
    }

    /// Bits that the codes and their values take.
    #[inline(always)]
    pub(super) fn bits(self) -> u32 {
        u32::from(self.0 & 15)
    }

    /// Whether the last code is the end of the block.
    #[inline(always)]
    pub(super) fn ends(self) -> bool {
        self.0 & Self::ENDS != 0
    }
}

/// One table of a file (T.81, C.2).
pub(super) struct Table {
    codes: Vec<Code>,
    passes: Vec<Pass>,
    symbols: Vec<u8>,
    /// For each length: one more than the largest code of it, in 16 bits, and what to add to a code for its symbol.
    limits: [(u32, i32); 17],
}

impl Table {
    /// `counts`: codes of each length from 1 to 16.  `None` where they are more than there are codes.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut codes = vec![Code::default(); 1 << CODE];
        let (mut code, mut first, mut limits) = (0u32, 0usize, [(0, 0); 17]);
        for (length, count) in (1u32..).zip(counts) {
            let (count, offset) = (usize::from(*count), first as i32 - code as i32);
            for symbol in symbols.get(first..first + count)? {
                if code >> length != 0 {
                    return None;
                }
                if length <= CODE {
                    let start = (code as usize) << (CODE - length);
                    codes[start..start + (1 << (CODE - length))].fill(Code { symbol: *symbol, length: length as u8 });
                }
                code += 1;
            }
            limits[length as usize] = (code << (16 - length), offset);
            first += count;
            code <<= 1;
        }
        Some(Self { codes, passes: Vec::new(), symbols: symbols[..first].to_vec(), limits })
    }

    /// Prepares [`Table::pass`].
    pub(super) fn with_passes(mut self) -> Self {
        self.passes = (0..1 << PASS).map(|window| self.passed(window)).collect();
        self
    }

    fn passed(&self, window: usize) -> Pass {
        let (mut bits, mut advance, mut ends) = (0, 0, false);
        while advance <= 47 {
            let shifted = (window << bits) & ((1 << PASS) - 1);
            let Code { symbol, length } = self.codes[shifted >> (PASS - CODE)];
            let taken = bits + u32::from(length + (symbol & 15));
            if length == 0 || taken > PASS {
                break;
            }
            bits = taken;
            ends = symbol & 15 == 0 && symbol != ZEROS;
            if ends {
                break;
            }
            advance += u16::from(symbol >> 4) + 1;
        }
        let ends = if ends { Pass::ENDS } else { 0 };
        if bits == 0 { Pass::NONE } else { Pass(advance << 8 | ends | bits as u16) }
    }

    /// What the next bits hold; they are not taken yet.
    #[inline(always)]
    pub(super) fn pass(&self, bits: &Bits) -> Pass {
        self.passes[bits.peek(PASS)]
    }

    /// The next symbol; `None`: no code begins like this.  Takes 16 bits at most.
    #[inline(always)]
    pub(super) fn symbol(&self, bits: &mut Bits) -> Option<u8> {
        let Code { symbol, length } = self.codes[bits.peek(CODE)];
        if length == 0 {
            return self.long(bits);
        }
        bits.skip(u32::from(length));
        Some(symbol)
    }

    #[cold]
    fn long(&self, bits: &mut Bits) -> Option<u8> {
        let window = bits.peek(16) as u32;
        let length = (CODE as usize + 1..=16).find(|length| window < self.limits[*length].0)?;
        bits.skip(length as u32);
        let index = (window >> (16 - length)) as i32 + self.limits[length].1;
        self.symbols.get(usize::try_from(index).ok()?).copied()
    }
}
