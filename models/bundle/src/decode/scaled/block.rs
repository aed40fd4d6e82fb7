//! One block of coefficients -> fewer pixels than 8 x 8.
//!
//! Each pixel is the mean of the pixels that it stands for, of the block without its high frequencies: an n x n result has as
//! many frequencies as pixels.  The coefficients behind those are passed over, several at once.

use super::bits::Bits;
use super::header::BLOCK;
use super::huffman::Table;

/// Zigzag order -> 8 * row + column of a coefficient (T.81, figure A.6).
#[rustfmt::skip]
const ZIGZAG: [u8; BLOCK] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// Largest size of a DC difference (T.81, table F.1).
const LARGEST_DC: u32 = 11;

/// How a component's blocks are read.
pub(super) struct Plan<'a> {
    dc: &'a Table,
    ac: &'a Table,
    /// In zigzag order.
    quant: [f32; BLOCK],
    /// Last coefficient in zigzag order that is needed.
    last: usize,
    /// Pixels of a block's row and column.
    pub(super) across: usize,
    pub(super) down: usize,
    /// `[u][x]`, see [`basis`].
    columns: [[f32; 8]; 8],
    rows: [[f32; 8]; 8],
}

/// The mean of c(u) / 2 * cos((2 i + 1) u pi / 16), c(0) = sqrt(1/2), over the 8 / n places i that pixel x of n stands for: the
/// inverse transform (T.81, A.3.3) and the means of its results in one.
fn basis(n: usize) -> [[f32; 8]; 8] {
    let (mut table, width) = ([[0.0; 8]; 8], 8 / n);
    for (u, row) in table.iter_mut().enumerate().take(n) {
        let c = if u == 0 { 0.5f64.sqrt() } else { 1.0 };
        let value = |i: usize| c / 2.0 * (((2 * i + 1) * u) as f64 * std::f64::consts::PI / 16.0).cos();
        for (x, mean) in row.iter_mut().enumerate().take(n) {
            *mean = ((width * x..width * (x + 1)).map(value).sum::<f64>() / width as f64) as f32;
        }
    }
    table
}

impl<'a> Plan<'a> {
    /// Blocks that become `across` x `down` pixels; `None` for sizes that the usual samplings do not need.
    pub(super) fn new(
        dc: &'a Table,
        ac: &'a Table,
        quant: &[u16; BLOCK],
        (across, down): (usize, usize),
    ) -> Option<Self> {
        let known = matches!((across, down), (1, 1) | (2, 2) | (4, 4) | (8, 8) | (2, 1) | (4, 2) | (8, 4));
        let needed = |z: &usize| usize::from(ZIGZAG[*z] % 8) < across && usize::from(ZIGZAG[*z] / 8) < down;
        let last = (0..BLOCK).rev().find(needed).unwrap_or(0);
        let quant = quant.map(f32::from);
        known.then(|| Self { dc, ac, quant, last, across, down, columns: basis(across), rows: basis(down) })
    }

    /// Reads one block and writes its pixels; `dc` is the component's last DC coefficient, and then this one.
    #[inline(always)]
    pub(super) fn block(&self, bits: &mut Bits, dc: &mut i32, out: &mut [u8], stride: usize) -> Option<()> {
        match (self.across, self.down) {
            (1, 1) => self.block_of::<1, 1>(bits, dc, out, stride),
            (2, 2) => self.block_of::<2, 2>(bits, dc, out, stride),
            (4, 4) => self.block_of::<4, 4>(bits, dc, out, stride),
            (8, 8) => self.block_of::<8, 8>(bits, dc, out, stride),
            (2, 1) => self.block_of::<2, 1>(bits, dc, out, stride),
            (4, 2) => self.block_of::<4, 2>(bits, dc, out, stride),
            _ => self.block_of::<8, 4>(bits, dc, out, stride),
        }
    }

    /// The sizes are known to the compiler: most of the time is spent here.
    #[inline(always)]
    fn block_of<const A: usize, const D: usize>(
        &self,
        bits: &mut Bits,
        dc: &mut i32,
        out: &mut [u8],
        stride: usize,
    ) -> Option<()> {
        bits.refill();
        let size = u32::from(self.dc.symbol(bits)?);
        if size > LARGEST_DC {
            return None;
        }
        *dc = dc.wrapping_add(bits.value(size));
        let mean = *dc as f32 * self.quant[0];
        if (A, D) == (1, 1) {
            self.pass(bits, 1)?;
            out[0] = pixel(mean / 8.0);
            return Some(());
        }
        let mut values = [[0.0; 8]; D];
        values[0][0] = mean;
        let next = self.coefficients(bits, &mut values)?;
        if next < BLOCK {
            self.pass(bits, next)?;
        }
        self.transform::<A, D>(&values, out, stride);
        Some(())
    }

    /// The coefficients that are needed; returns the number of the next one, [`BLOCK`] where the block has ended.
    #[inline(always)]
    fn coefficients<const D: usize>(&self, bits: &mut Bits, values: &mut [[f32; 8]; D]) -> Option<usize> {
        let mut at = 1;
        while at <= self.last {
            bits.refill();
            let symbol = self.ac.symbol(bits)?;
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 && run < 15 {
                return Some(BLOCK);
            }
            at += run;
            let (value, place) = (bits.value(size), usize::from(*ZIGZAG.get(at)?));
            if let Some(row) = values.get_mut(place / 8) {
                row[place % 8] = value as f32 * self.quant[at];
            }
            at += 1;
        }
        Some(at)
    }

    /// Passes over the coefficients from `at` on.
    #[inline(always)]
    fn pass(&self, bits: &mut Bits, mut at: usize) -> Option<()> {
        loop {
            bits.refill();
            let pass = self.ac.pass(bits);
            let next = at + pass.advance();
            if next < BLOCK {
                bits.skip(pass.bits());
                if pass.ends() {
                    return Some(());
                }
                at = next;
                continue;
            }
            // A code longer than the window, or the last coefficient, behind which the next block begins.
            let symbol = self.ac.symbol(bits)?;
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            bits.skip(size);
            if size == 0 && run < 15 {
                return Some(());
            }
            at += run + 1;
            if at >= BLOCK {
                return (at == BLOCK).then_some(());
            }
        }
    }

    /// Columns first, then rows.
    #[inline(always)]
    fn transform<const A: usize, const D: usize>(&self, values: &[[f32; 8]; D], out: &mut [u8], stride: usize) {
        let mut half = [[0.0f32; A]; D];
        for (half, row) in half.iter_mut().zip(values) {
            for (value, basis) in row.iter().zip(&self.columns).take(A) {
                half.iter_mut().zip(basis).for_each(|(sum, basis)| *sum += value * basis);
            }
        }
        for (y, out) in out.chunks_mut(stride).take(D).enumerate() {
            let mut sums = [0.0f32; A];
            for (half, basis) in half.iter().zip(&self.rows) {
                sums.iter_mut().zip(half).for_each(|(sum, value)| *sum += value * basis[y]);
            }
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = pixel(sum));
        }
    }
}

/// Samples are stored around 128.
#[inline(always)]
fn pixel(value: f32) -> u8 {
    (value + 128.5) as u8
}
