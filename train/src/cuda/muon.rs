//! Muon's step on the device, as [`crate::ops::muon`]: matrices of one shape lie in stacks, and each step of the iteration
//! is three products of a whole stack.
//!
//! Products are in the activations' precision: bfloat16 is what Muon is commonly run in.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use macrl_nn::cuda::{Engine, ScalarType, address};
use macrl_nn::params::Matrix;

use super::batched::{Batched, Kind, Product, Strides};
use super::kernels::launch;
use super::numbers::UpdateNumbers;
use crate::ops::muon::{QUINTIC, STEPS, shape_factor};

/// Blocks that share a matrix's sum of squares; `MUON_PARTS` in `muon.cuh`.
const PARTS: usize = 8;
/// Edge of a tile; `TILE` in `muon.cuh`.
const TILE: usize = 32;
const THREADS: u32 = 256;
/// 256 bytes in bfloat16: where a stack may begin.
const ALIGN: usize = 128;
/// u32 words of a `MuonMatrix`.
const WORDS: usize = 5;

/// Addresses and numbers that a step takes from the flat vectors.
pub(super) struct Call {
    pub(super) values: u64,
    pub(super) gradient: u64,
    pub(super) momenta: u64,
    /// Address of the result of `gradient_squares`, and the number of its blocks.
    pub(super) partial: (u64, u32),
    pub(super) loss: u64,
    /// Address of a word that is 1 where nothing may change.
    pub(super) stopped: u64,
    pub(super) step: u64,
    pub(super) numbers: UpdateNumbers,
    pub(super) weight_decay: f32,
}

/// Matrices of one shape (or its transpose), `rows` <= `columns`.
struct Stack {
    place: usize,
    gram: Product,
    square: Product,
    multiply: Product,
}

/// The matrices of the transformer blocks, and room to orthogonalise them in.
pub(super) struct Muon {
    engine: Arc<Engine>,
    products: Batched,
    scalar: ScalarType,
    keep: f32,
    count: u32,
    tiles: u32,
    stacks: Vec<Stack>,
    /// (matrices, [`WORDS`]) u32
    matrices: Tensor,
    scale: Tensor,
    squares: Tensor,
    directions: [Tensor; 2],
    square: [Tensor; 2],
}

impl Muon {
    /// `matrices` with their places in the flat vectors; `momentum`: the share of it that a step keeps.
    pub(super) fn new(device: &Device, scalar: ScalarType, matrices: &[Matrix], momentum: f64) -> Result<Self> {
        let engine = Engine::at(device)?;
        let products = Batched::new(&engine.stream)?;
        let mut shapes: BTreeMap<(usize, usize), Vec<&Matrix>> = BTreeMap::new();
        for matrix in matrices {
            let (rows, columns) = (matrix.rows, matrix.columns);
            shapes.entry((rows.min(columns), rows.max(columns))).or_default().push(matrix);
        }
        let (mut stacks, mut words, mut end, mut square) = (Vec::new(), Vec::new(), 0, 0);
        for ((rows, columns), members) in shapes {
            let count = members.len();
            stacks.push(Stack::new(&products, scalar, end, count, rows, columns)?);
            for (i, matrix) in members.into_iter().enumerate() {
                let place = end + i * rows * columns;
                let factor = shape_factor(matrix.rows, matrix.columns).to_bits();
                let numbers = [matrix.range.start, matrix.rows, matrix.columns, place].map(|v| v as u32);
                words.extend(numbers.into_iter().chain([factor]));
            }
            end = (end + count * rows * columns).next_multiple_of(ALIGN);
            square = square.max(count * rows * rows);
        }
        let tiles = matrices.iter().map(|m| m.rows.div_ceil(TILE) * m.columns.div_ceil(TILE)).max().unwrap_or(0);
        let room = |len: usize| Tensor::zeros(len, scalar.dtype(), device);
        Ok(Muon {
            scale: Tensor::zeros(2, DType::F32, device)?,
            squares: Tensor::zeros(matrices.len() * PARTS, DType::F32, device)?,
            directions: [room(end)?, room(end)?],
            square: [room(square)?, room(square)?],
            matrices: Tensor::from_vec(words, matrices.len() * WORDS, device)?,
            keep: momentum as f32,
            count: matrices.len() as u32,
            tiles: tiles as u32,
            engine,
            products,
            scalar,
            stacks,
        })
    }

    /// Queues the step: new momenta, their orthogonal directions, and those taken from the weights.  Nothing changes
    /// where loss or gradient are not finite.
    ///
    /// # Safety
    /// The addresses in `call` are of vectors that hold the matrices this was made for.
    pub(super) unsafe fn step(&self, call: &Call) -> Result<()> {
        // SAFETY: as the caller promises; everything else is this one's own room.
        unsafe {
            let (matrices, scale, squares) = (address(&self.matrices)?, address(&self.scale)?, address(&self.squares)?);
            let [first, second] = [address(&self.directions[0])?, address(&self.directions[1])?];
            let Call { values, gradient, momenta, partial: (partial, blocks), .. } = *call;
            let (by_part, by_tile) = ((PARTS as u32, self.count), (self.tiles, self.count));
            launch!(
                self.engine, "muon_scale", (1, 1), 32, 0;
                partial, blocks as i32, call.loss, call.stopped, call.numbers, scale,
            )?;
            launch!(
                self.engine, "muon_momenta", by_part, THREADS, 0;
                gradient, momenta, matrices, scale, self.keep, squares,
            )?;
            launch!(
                self.engine, self.scalar.kernel("muon_directions"), by_tile, THREADS, 0;
                gradient, momenta, matrices, scale, self.keep, squares, first,
            )?;
            let (mut from, mut to) = (first, second);
            for _ in 0..STEPS {
                for stack in &self.stacks {
                    self.iterate(stack, from, to)?;
                }
                std::mem::swap(&mut from, &mut to);
            }
            launch!(
                self.engine, self.scalar.kernel("muon_apply"), by_tile, THREADS, 0;
                values, matrices, scale, call.step, call.weight_decay, from,
            )
        }
    }

    /// X <- a X + (b A + c A^2) X with A = X X^T.
    ///
    /// # Safety
    /// `from` and `to` are this one's directions.
    unsafe fn iterate(&self, stack: &Stack, from: u64, to: u64) -> Result<()> {
        let place = (stack.place * self.scalar.size()) as u64;
        let (x, out) = (from + place, to + place);
        let [gram, polynomial] = [address(&self.square[0])?, address(&self.square[1])?];
        // SAFETY: both direction tensors hold all stacks, both square tensors hold the largest one, and all of them live as
        // long as `self`, which outlives the queued step.
        unsafe {
            self.products.run(&stack.gram, [x, x, gram, gram])?;
            self.products.run(&stack.square, [gram, gram, gram, polynomial])?;
            self.products.run(&stack.multiply, [x, polynomial, x, out])
        }
    }
}

impl Stack {
    /// Row-major (s, l) is column-major (l, s); A and its polynomial are symmetric.
    fn new(
        products: &Batched,
        scalar: ScalarType,
        place: usize,
        count: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        let (s, l) = (rows, columns);
        let [a, b, c] = QUINTIC;
        let (long, square) = (Strides { row: l, matrix: s * l }, Strides { row: s, matrix: s * s });
        let kind = |transposed, mnk, strides, alpha, beta| {
            products.product(Kind { scalar, count, transposed, mnk, strides, alpha, beta })
        };
        Ok(Stack {
            place,
            gram: kind([true, false], [s, s, l], [long, long, square], 1.0, 0.0)?,
            square: kind([false, false], [s, s, s], [square; 3], c, b)?,
            multiply: kind([false, false], [l, s, s], [long, square, long], 1.0, a)?,
        })
    }
}
