//! The inner loops of a product: tiles of the result whose sums stay in registers.

use super::vector::{Plain, Vector};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};

/// Steps of the inner dimension whose part of a panel stays in the first-level cache.
const DEPTH: usize = 192;

/// What the result is added to.
#[derive(Clone, Copy)]
pub(super) enum Start {
    Zero,
    /// A row that is added to each row of the result.
    Row(*const f32),
    /// The old contents of the result.
    Result,
}

/// `out = start + scale * a . b`, for one panel of B and all rows of A.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    pub(super) rows: usize,
    pub(super) depth: usize,
    /// Columns of the panel that belong to the result; the panel may be padded to whole registers.
    pub(super) columns: usize,
    pub(super) a: *const f32,
    pub(super) a_strides: [usize; 2],
    pub(super) b: *const f32,
    pub(super) b_stride: usize,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    pub(super) start: Start,
    pub(super) scale: f32,
}

/// The inner loops for one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Values in a register.
    pub(super) lanes: usize,
    /// Largest number of registers in a row of a panel.
    pub(super) widest: usize,
    /// Computes a strip.
    ///
    /// # Safety
    /// The processor has the instruction set.  `a` is valid for `rows` x `depth` values, `b` for `depth` rows of whole
    /// registers, `out` for `rows` x `columns` values, and the row in `start` for `columns` values.
    pub(super) run: unsafe fn(Strip),
}

impl Kernel {
    /// The fastest kernel for this processor.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        match level() {
            Level::Avx512 => return Self::avx512(),
            Level::Avx2 => return Self::avx2(),
            Level::Baseline => {}
        }
        Self::plain()
    }

    pub(super) fn plain() -> Self {
        // SAFETY: the contract of `run`.
        Kernel { lanes: Plain::LANES, widest: Plain::WIDEST, run: |strip| unsafe { blocks::<Plain>(strip) } }
    }

    #[cfg(target_arch = "x86_64")]
    fn avx512() -> Self {
        #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
        unsafe fn run(strip: Strip) {
            // SAFETY: the contract of `run`.
            unsafe { blocks::<std::arch::x86_64::__m512>(strip) }
        }
        Kernel { lanes: 16, widest: 4, run }
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn avx2() -> Self {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn run(strip: Strip) {
            // SAFETY: the contract of `run`.
            unsafe { blocks::<std::arch::x86_64::__m256>(strip) }
        }
        Kernel { lanes: 8, widest: 2, run }
    }
}

/// # Safety
/// As [`Kernel::run`], with registers of type `S`.
#[inline(always)]
unsafe fn blocks<S: Vector>(mut strip: Strip) {
    let mut left = strip.depth;
    while left > 0 {
        strip.depth = left.min(DEPTH);
        // SAFETY: a part of the strip.
        unsafe {
            match strip.columns.div_ceil(S::LANES) {
                1 => rows::<S, 1>(strip),
                2 => rows::<S, 2>(strip),
                3 => rows::<S, 3>(strip),
                _ => rows::<S, 4>(strip),
            }
            left -= strip.depth;
            if left > 0 {
                strip.a = strip.a.add(strip.depth * strip.a_strides[1]);
                strip.b = strip.b.add(strip.depth * strip.b_stride);
            }
        }
        strip.start = Start::Result;
    }
}

/// # Safety
/// As [`Kernel::run`], for a panel of `V` registers.
#[inline(always)]
unsafe fn rows<S: Vector, const V: usize>(strip: Strip) {
    if V > S::WIDEST {
        return; // no panel is as wide
    }
    let mut row = 0;
    while row < strip.rows {
        let count = (strip.rows - row).min(S::rows(V));
        // SAFETY: `count` rows from `row` on are in the strip.
        unsafe {
            match count {
                1 => tile::<S, 1, V>(&strip, row),
                2 => tile::<S, 2, V>(&strip, row),
                3 => tile::<S, 3, V>(&strip, row),
                4 => tile::<S, 4, V>(&strip, row),
                5 => tile::<S, 5, V>(&strip, row),
                6 => tile::<S, 6, V>(&strip, row),
                7 => tile::<S, 7, V>(&strip, row),
                _ => tile::<S, 8, V>(&strip, row),
            }
        }
        row += count;
    }
}

/// `R` rows of the strip from `row` on.
///
/// # Safety
/// As [`Kernel::run`]; the rows are in the strip.
#[inline(always)]
unsafe fn tile<S: Vector, const R: usize, const V: usize>(strip: &Strip, row: usize) {
    if R > S::rows(V) {
        return; // `rows` takes fewer
    }
    // SAFETY: all reads and writes are within the strip; a tile that is not as wide as its registers goes through `room`.
    unsafe {
        let sums = sums::<S, R, V>(strip, row);
        let out = strip.out.add(row * strip.out_stride);
        if strip.columns >= V * S::LANES {
            finish(sums, out, strip.out_stride, strip.start, strip.scale);
        } else {
            let mut room = [0f32; 24 * 16];
            finish(sums, room.as_mut_ptr(), V * S::LANES, Start::Zero, strip.scale);
            narrow(&room, V * S::LANES, R, strip, out);
        }
    }
}

/// The products of `R` rows with the panel.  Loops over constants only, so that the sums stay in registers.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn sums<S: Vector, const R: usize, const V: usize>(strip: &Strip, row: usize) -> [[S; V]; R] {
    let [a_row, a_column] = strip.a_strides;
    // SAFETY: reads are within the strip; the pointers behind the last step are formed with wrapping arithmetic, not read.
    unsafe {
        let mut a = strip.a.add(row * a_row);
        let mut b = strip.b;
        let mut sums = [[S::splat(0.0); V]; R];
        for _ in 0..strip.depth {
            let mut columns = [S::splat(0.0); V];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = S::load(b.add(v * S::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let value = S::splat(*a.add(r * a_row));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = value.mul_add(column, *sum);
                }
            }
            a = a.wrapping_add(a_column);
            b = b.wrapping_add(strip.b_stride);
        }
        sums
    }
}

/// Writes whole registers.
///
/// # Safety
/// `out` is valid for the rows of the sums, the row in `start` for one.
#[inline(always)]
unsafe fn finish<S: Vector, const R: usize, const V: usize>(
    sums: [[S; V]; R],
    out: *mut f32,
    stride: usize,
    start: Start,
    scale: f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let scale = S::splat(scale);
        let (before, step) = match start {
            Start::Zero => {
                for (r, sums) in sums.iter().enumerate() {
                    for (v, sum) in sums.iter().enumerate() {
                        sum.mul(scale).store(out.add(r * stride + v * S::LANES));
                    }
                }
                return;
            }
            Start::Row(row) => (row, 0),
            Start::Result => (out.cast_const(), stride),
        };
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let before = S::load(before.add(r * step + v * S::LANES));
                sum.mul_add(scale, before).store(out.add(r * stride + v * S::LANES));
            }
        }
    }
}

/// Adds a finished tile to its start where the result is narrower than the registers.
///
/// # Safety
/// `out` is valid for `rows` rows of the strip.
#[cold]
unsafe fn narrow(tile: &[f32], width: usize, rows: usize, strip: &Strip, out: *mut f32) {
    for (r, values) in tile.chunks_exact(width).take(rows).enumerate() {
        for (c, value) in values[..strip.columns].iter().enumerate() {
            // SAFETY: the column is one of the strip's.
            unsafe {
                let out = out.add(r * strip.out_stride + c);
                *out = match strip.start {
                    Start::Zero => *value,
                    Start::Row(row) => *value + *row.add(c),
                    Start::Result => *value + *out,
                };
            }
        }
    }
}
