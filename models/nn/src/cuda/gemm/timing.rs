//! The fastest of the algorithms that cuBLASLt names, by the device's own clock.
//!
//! Its first one is an estimate, and a poor one where a product is short and deep: a weight gradient's (192 x 768 from
//! 67,000 rows) lives by how the depth is split.

use candle_core::Result;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::cublaslt::sys::cublasLtMatmulAlgo_t;
use candle_core::cuda::cudarc::driver::sys::CUevent_flags;

use super::plan::{ALIGNMENT, Plan, Shape};
use super::{Gemm, Operands};
use crate::cuda::address::slice_address;

/// Products between two looks at the clock, and looks; the shortest counts.
const RUNS: usize = 4;
const LOOKS: usize = 3;
/// What another algorithm's time must be below, as a share of the first's: differences below are noise, and another
/// order of additions is other bits.
const GAIN: f32 = 0.97;

impl Gemm {
    /// Puts a plan's fastest algorithm in front, by products into memory of their own.
    ///
    /// # Safety
    /// The operands are matrices of this shape that live in stream order.
    pub(super) unsafe fn choose(&self, plan: &mut Plan, shape: &Shape, at: Operands) -> Result<()> {
        if plan.algorithms.len() < 2 {
            return Ok(());
        }
        let bytes = shape.mnk[1] * shape.strides[2] * shape.values[1].size();
        // Where there is no room for a second result the first algorithm has to do.
        let Ok(room) = self.stream.alloc_zeros::<u8>(bytes + ALIGNMENT as usize) else { return Ok(()) };
        // As well aligned as the result, and no better.
        let d = slice_address(&room, &self.stream) + shape.alignments[3] % ALIGNMENT;
        let at = Operands { c: if shape.in_place { d } else { at.c }, d, ..at };
        // SAFETY: the caller's operands, with a result in memory as large.
        let times = plan.algorithms.iter().map(|algorithm| unsafe { self.time(plan, algorithm, at) });
        let times = times.collect::<Result<Vec<_>>>()?;
        let first = times.first().copied().flatten().map_or(f32::INFINITY, |first| GAIN * first);
        let timed = times.iter().enumerate().skip(1).filter_map(|(i, time)| Some((i, (*time)?)));
        let best = timed.filter(|(_, time)| *time < first).min_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((best, _)) = best {
            plan.algorithms.swap(0, best);
        }
        Ok(())
    }

    /// Milliseconds of [`RUNS`] products; `None` where the algorithm does not take them.
    ///
    /// # Safety
    /// As for [`Gemm::choose`].
    unsafe fn time(&self, plan: &Plan, algorithm: &cublasLtMatmulAlgo_t, at: Operands) -> Result<Option<f32>> {
        // SAFETY: as in `Gemm::run`, with a result that nobody reads.
        let run = || unsafe { self.execute(plan, algorithm, at) };
        if run().is_err() {
            return Ok(None);
        }
        let now = || self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w();
        let mut shortest = f32::INFINITY;
        for _ in 0..LOOKS {
            let start = now()?;
            for _ in 0..RUNS {
                if run().is_err() {
                    return Ok(None);
                }
            }
            shortest = shortest.min(start.elapsed_ms(&now()?).w()?);
        }
        Ok(Some(shortest))
    }
}
