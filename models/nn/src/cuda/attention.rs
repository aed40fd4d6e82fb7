//! Launches the attention kernels: tensor-core kernels for bfloat16 with 32 or 64 values per head and at most 272
//! tokens, plain kernels otherwise.

use std::sync::Arc;

use candle_core::{Result, bail};

use super::engine::{Engine, launch};
use super::memory::Scratch;
use super::scalar::ScalarType;
use super::spans::Spans;
use crate::ops::attention::Heads;

/// Threads in a block of the plain kernels: four warps.
const THREADS: u32 = 128;
const WARPS: usize = 4;
/// In the forward pass, one block handles up to this many queries; longer sequences are divided into tiles of [`ROWS`].
const WHOLE: usize = 96;
const ROWS: usize = 64;
/// Queries in a tile of the backward pass.
const QUERIES: usize = 32;
/// Longest sequence that the tensor-core kernels support, in tokens.
const LONGEST: usize = 272;

/// Tiling of a sequence for the tensor-core kernels; see `attention_matrix.cuh`.
#[derive(Clone, Copy)]
struct Tiles {
    padded: usize,
    forward: Forward,
    backward: Backward,
}

#[derive(Clone, Copy)]
struct Forward {
    rows: usize,
    /// Groups of 32 scores in a row; part of the kernel's name.
    columns: usize,
    warps: usize,
}

#[derive(Clone, Copy)]
struct Backward {
    /// Part of the kernel's name.
    name: &'static str,
    keys: usize,
    /// Whether one tile contains all keys.
    one: bool,
    warps: usize,
}

impl Tiles {
    fn of(tokens: usize) -> Self {
        let padded = tokens.next_multiple_of(16);
        let forward = Forward {
            rows: if padded <= WHOLE { padded } else { ROWS },
            columns: match padded {
                0..=64 => 2,
                65..=96 => 3,
                _ => 9,
            },
            warps: if padded <= 32 { 4 } else { 8 },
        };
        let backward = match padded {
            0..=32 => Backward { name: "32", keys: 32, one: true, warps: 4 },
            33..=64 => Backward { name: "64", keys: 64, one: true, warps: 8 },
            65..=80 => Backward { name: "80", keys: 80, one: true, warps: 5 },
            _ => Backward { name: "long", keys: 64, one: false, warps: 8 },
        };
        Tiles { padded, forward, backward }
    }

    /// Shared memory of `attention_fwd_D_COLUMNS` in bytes.
    fn forward_shared(&self, d: usize) -> usize {
        let Tiles { padded, forward: Forward { rows, warps, .. }, .. } = *self;
        let room = 4 * 256 * warps;
        2 * padded * (d + 8) + 4 * rows * (padded + 4) + (2 * (padded + rows) * (d + 8)).max(room)
    }

    /// Shared memory of `attention_bwd_D_NAME` in bytes.
    fn backward_shared(&self, d: usize) -> usize {
        let Tiles { padded, backward: Backward { keys, one, .. }, .. } = *self;
        let gathered = if one { 0 } else { padded * (d + 4) };
        2 * (2 * padded + 2 * keys) * (d + 8) + 4 * (2 * QUERIES * (keys + 4) + 2 * padded + gathered)
    }
}

/// The tiling of a sequence; `None` if the plain kernels must be used.
fn tiles(engine: &Engine, scalar: ScalarType, at: Heads, tokens: usize) -> Option<Tiles> {
    let (d, tiles) = (at.head_width(), Tiles::of(tokens));
    let shared = tiles.forward_shared(d).max(tiles.backward_shared(d));
    (scalar == ScalarType::Bf16 && matches!(d, 32 | 64) && tokens <= LONGEST && shared <= engine.shared_limit)
        .then_some(tiles)
}

/// Joins adjacent views of equal length into one larger batch.
fn merged(spans: &Spans) -> Spans {
    let mut merged: Spans = Vec::new();
    for (images, tokens) in spans {
        match merged.last_mut().filter(|(_, t)| t == tokens) {
            Some(last) => last.0 += images,
            None => merged.push((*images, *tokens)),
        }
    }
    merged
}

/// Attention within each image; returns the log-sum-exps that the backward pass needs.
///
/// # Shapes
/// `qkv` (rows, 3 D), `out` (rows, D).
///
/// # Errors
/// The sequence is too long for the shared memory of every kernel.
pub(super) fn forward(
    engine: &Arc<Engine>,
    scalar: ScalarType,
    at: Heads,
    spans: &Spans,
    qkv: u64,
    out: u64,
) -> Result<Vec<Scratch>> {
    let (mut row, mut sums) = (0, Vec::new());
    for (images, tokens) in merged(spans) {
        let lse = Scratch::new(engine, ScalarType::F32, images * at.heads * tokens)?;
        let (qkv, out) = (part(qkv, scalar, row, 3 * at.width), part(out, scalar, row, at.width));
        let (blocks, d) = ((images * at.heads) as u32, at.head_width());
        if let Some(tiles) = tiles(engine, scalar, at, tokens) {
            let Tiles { padded, forward: Forward { rows, columns, warps }, .. } = tiles;
            let (grid, threads) = ((blocks, padded.div_ceil(rows) as u32), 32 * warps as u32);
            // SAFETY: callers in this module pass matrices of these sizes that stay allocated in stream order.
            unsafe {
                launch!(
                    engine, format!("attention_fwd_{d}_{columns}"), grid, threads, tiles.forward_shared(d);
                    qkv, out, lse.at(), tokens as i32, at.heads as i32, padded as i32, rows as i32,
                )
            }?;
        } else {
            let shared = fits(engine, 4 * WARPS * tokens, tokens)?;
            // SAFETY: callers in this module pass matrices of these sizes that stay allocated in stream order.
            unsafe {
                launch!(
                    engine, scalar.kernel("attention_any_fwd"), (blocks, 1), THREADS, shared;
                    qkv, out, lse.at(), tokens as i32, at.heads as i32, d as i32,
                )
            }?;
        }
        row += images * tokens;
        sums.push(lse);
    }
    Ok(sums)
}

/// Writes the gradient of `qkv`.
///
/// # Shapes
/// `qkv` and `dqkv` (rows, 3 D), `out` and `dout` (rows, D).
///
/// # Errors
/// The sequence is too long for the shared memory of every kernel.
pub(super) fn backward(
    engine: &Arc<Engine>,
    scalar: ScalarType,
    at: Heads,
    spans: &Spans,
    [qkv, out, dout, dqkv]: [u64; 4],
    sums: &[Scratch],
) -> Result<()> {
    let mut row = 0;
    for ((images, tokens), lse) in merged(spans).into_iter().zip(sums) {
        let wide = |at_: u64| part(at_, scalar, row, 3 * at.width);
        let (qkv, dqkv) = (wide(qkv), wide(dqkv));
        let (out, dout) = (part(out, scalar, row, at.width), part(dout, scalar, row, at.width));
        let (blocks, d) = ((images * at.heads) as u32, at.head_width());
        if let Some(tiles) = tiles(engine, scalar, at, tokens) {
            let Tiles { padded, backward: Backward { name, warps, .. }, .. } = tiles;
            let threads = 32 * warps as u32;
            // SAFETY: callers in this module pass matrices of these sizes that stay allocated in stream order.
            unsafe {
                launch!(
                    engine, format!("attention_bwd_{d}_{name}"), (blocks, 1), threads, tiles.backward_shared(d);
                    qkv, out, dout, lse.at(), dqkv, tokens as i32, at.heads as i32, padded as i32,
                )
            }?;
        } else {
            let shared = fits(engine, 4 * (1 + 2 * WARPS) * tokens, tokens)?;
            // SAFETY: callers in this module pass matrices of these sizes that stay allocated in stream order.
            unsafe {
                launch!(
                    engine, scalar.kernel("attention_any_bwd"), (blocks, 1), THREADS, shared;
                    qkv, dout, lse.at(), dqkv, tokens as i32, at.heads as i32, d as i32,
                )
            }?;
        }
        row += images * tokens;
    }
    Ok(())
}

fn part(at: u64, scalar: ScalarType, row: usize, width: usize) -> u64 {
    at + (row * width * scalar.size()) as u64
}

fn fits(engine: &Engine, shared: usize, tokens: usize) -> Result<usize> {
    if shared > engine.shared_limit {
        bail!(
            "attention over {tokens} tokens needs {shared} bytes of shared memory, the GPU has {}",
            engine.shared_limit
        )
    }
    Ok(shared)
}
