//! Times the algorithms that cuBLASLt suggests on the device, and chooses the fastest.
//!
//! cuBLASLt's first suggestion is an estimate.  It is poor for products with a small result and a large inner
//! dimension, such as a weight gradient (192 x 768 from 67,000 rows), where the speed depends on how the inner
//! dimension is split.

use candle_core::Result;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::cublaslt::sys::cublasLtMatmulAlgo_t;
use candle_core::cuda::cudarc::driver::sys::CUevent_flags;

use super::plan::{ALIGNMENT, Plan, Shape};
use super::{Gemm, Operands};
use crate::cuda::address::slice_address;

/// Products per measurement, and number of measurements; the shortest measurement counts.
const RUNS: usize = 4;
const LOOKS: usize = 3;
/// An algorithm replaces the first one if its time is below this share of the first one's.  Smaller differences are
/// noise, and another algorithm adds in another order, which changes the result's last bits.
const GAIN: f32 = 0.97;

impl Gemm {
    /// Moves a plan's fastest algorithm to the front; the timed products write to a separate buffer.
    ///
    /// # Safety
    /// The operands are matrices of this shape that are valid in stream order.
    pub(super) unsafe fn choose(&self, plan: &mut Plan, shape: &Shape, at: Operands) -> Result<()> {
        if plan.algorithms.len() < 2 {
            return Ok(());
        }
        let bytes = shape.mnk[1] * shape.strides[2] * shape.values[1].size();
        // Without memory for a second result, the first algorithm is kept.
        let Ok(room) = self.stream.alloc_zeros::<u8>(bytes + ALIGNMENT as usize) else { return Ok(()) };
        // The address has exactly the alignment of the result.
        let d = slice_address(&room, &self.stream) + shape.alignments[3] % ALIGNMENT;
        let at = Operands { c: if shape.in_place { d } else { at.c }, d, ..at };
        // SAFETY: the caller's operands, with a result buffer of the same size.
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

    /// Milliseconds of [`RUNS`] products; `None` if the algorithm does not support them.
    ///
    /// # Safety
    /// As for [`Gemm::choose`].
    unsafe fn time(&self, plan: &Plan, algorithm: &cublasLtMatmulAlgo_t, at: Operands) -> Result<Option<f32>> {
        // SAFETY: as in `Gemm::run`, with a result that is not read.
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
