//! All trainable parameters in flat vectors on the device: values, gradients, moments, bfloat16 copies, and the key
//! branch's moving average.  One optimiser step updates all of them in two launches.
//!
//! Order: encoder, projector, decoder, so that the key branch's vector is a prefix.  Each group begins at a multiple of
//! [`ALIGN`] values; the gaps hold zeros and stay zero.

use std::sync::Arc;

use candle_core::cuda::cudarc::driver::DeviceRepr;
use candle_core::{DType, Device, Result, Tensor};
use macrl_nn::cuda::memory::{clear, halved, variable};
use macrl_nn::cuda::{Engine, ScalarType, address, address_or_null};
use macrl_nn::ops::graph::with_values;
use macrl_nn::params::{Group, Matrix, OnDevice};

use super::kernels::launch;
use super::muon::{Call, Muon};
pub use super::numbers::StepNumbers;
use super::numbers::UpdateNumbers;

/// 256 bytes in bfloat16: matrix products are fastest at this alignment.
const ALIGN: usize = 128;
/// Blocks of the two passes over all parameters.
const BLOCKS: u32 = 512;
const THREADS: u32 = 256;

/// `MUONS` in `update.cuh`.
const MUONS: u8 = 2;

/// Numbers of one step in the device's ring; `SLOT` in `update.cuh`.  The first is the loss.
pub const SLOT: usize = 32;
/// Index of the gradient norms of encoder, projector and decoder.
pub const NORMS: usize = 1;
/// Index of the number that is 1 where the step changed something, 0 where it or an earlier one was not finite.
pub const APPLIED: usize = 4;
/// Index of the first number of the first term; the numbers of all terms follow each other.
pub const FIRST_TERM: usize = 5;
/// Most terms that a step can note; `TERMS` in `update.cuh`.
const TERMS: usize = 8;

/// Constants of the optimiser.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Moments' decay rates.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Weight decay of matrices.
    pub weight_decay: f64,
    /// Largest gradient norm; 0: no limit.
    pub clip_norm: f64,
    /// Factor on the gradient: 1 / parts of a batch.
    pub share: f64,
}

/// What a step notes in the ring.
pub struct Noted<'a> {
    /// The loss, a scalar.
    pub loss: &'a Tensor,
    /// The numbers of each term.
    pub terms: Vec<&'a Tensor>,
}

/// Addresses and numbers of values of the terms; mirrors `TermNumbers` in `update.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct TermNumbers {
    at: [u64; TERMS],
    count: [u32; TERMS],
}

// SAFETY: plain numbers in C's order.
unsafe impl DeviceRepr for TermNumbers {}

const _: () = assert!(size_of::<TermNumbers>() == 96, "update.cuh says so");

impl Noted<'_> {
    fn term_numbers(&self) -> Result<TermNumbers> {
        let count: usize = self.terms.iter().map(|term| term.elem_count()).sum();
        if self.terms.len() > TERMS || count > SLOT - FIRST_TERM {
            candle_core::bail!(
                "{} terms with {count} numbers: the ring holds at most {TERMS} terms with {} numbers",
                self.terms.len(),
                SLOT - FIRST_TERM
            )
        }
        let mut numbers = TermNumbers { at: [0; TERMS], count: [0; TERMS] };
        for (i, term) in self.terms.iter().enumerate() {
            (numbers.at[i], numbers.count[i]) = (f32_address(term, 1)?, term.elem_count() as u32);
        }
        Ok(numbers)
    }
}

impl StepNumbers {
    /// Address of a step's numbers at the start of `words`.
    ///
    /// # Errors
    /// Not u32 words on a GPU, or too few of them.
    pub fn address(words: &Tensor) -> Result<u64> {
        u32_address(words, size_of::<StepNumbers>() / 4)
    }
}

/// Address of a tensor of at least `count` u32 values.
///
/// # Errors
/// Another type, or too few values.
pub(super) fn u32_address(tensor: &Tensor, count: usize) -> Result<u64> {
    if tensor.dtype() != DType::U32 || tensor.elem_count() < count {
        candle_core::bail!("expected {count} u32 values, found {} {:?}", tensor.elem_count(), tensor.dtype())
    }
    address(tensor)
}

/// Address of a tensor of at least `count` f32 values.
fn f32_address(tensor: &Tensor, count: usize) -> Result<u64> {
    if tensor.dtype() != DType::F32 || tensor.elem_count() < count {
        candle_core::bail!("expected {count} f32 values, found {} {:?}", tensor.elem_count(), tensor.dtype())
    }
    address(tensor)
}

/// The flat vectors; their three parts are the encoder's, the projector's and the decoder's groups.
pub struct Flat {
    engine: Arc<Engine>,
    values: Tensor,
    gradient: Tensor,
    /// First and second moments.
    pub moments: [Tensor; 2],
    half: Option<Tensor>,
    keys: Option<(Tensor, Option<Tensor>)>,
    /// One u8 a parameter: 1 where weight decay applies, [`MUONS`] where Muon updates it.
    decay: Tensor,
    muon: Option<Muon>,
    partial: Tensor,
    /// (1) u32: 1 once a step was not finite; the steps behind it change nothing then.
    stopped: Tensor,
    ranges: Vec<(usize, usize)>,
    anchor: Tensor,
    ends: [usize; 3],
}

impl Flat {
    /// Copies groups (encoder's, projector's, decoder's) to the device; `keys` are the moving average's groups, in the
    /// order of the first two parts.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn new(device: &Device, scalar: ScalarType, parts: [&[&Group]; 3], keys: &[&Group]) -> Result<Self> {
        let engine = Engine::at(device)?;
        let mut end = 0;
        let mut ranges = Vec::new();
        let ends = parts.map(|groups| {
            for group in groups {
                let len = group.values().elem_count();
                ranges.push((end, len));
                end += len.next_multiple_of(ALIGN);
            }
            end
        });
        let groups: Vec<&Group> = parts.concat();
        let values = gathered(&groups, &ranges, end, device)?;
        let keys = match keys.is_empty() {
            true => None,
            false => {
                let values = gathered(keys, &ranges[..keys.len()], ends[1], device)?;
                let half = halved(scalar, &values)?;
                Some((values, half))
            }
        };
        let zeros = || Tensor::zeros(end, DType::F32, device);
        Ok(Flat {
            half: halved(scalar, &values)?,
            decay: Tensor::from_vec(decay(&groups, &ranges, end), end, device)?,
            muon: None,
            gradient: zeros()?,
            moments: [zeros()?, zeros()?],
            partial: Tensor::zeros(4 * BLOCKS as usize, DType::F64, device)?,
            stopped: Tensor::zeros(1, DType::U32, device)?,
            anchor: variable(device)?,
            engine,
            values,
            keys,
            ranges,
            ends,
        })
    }

    /// The same with Muon for the matrices of transformer blocks; `parts` as for [`Flat::new`], `momentum`: the share of
    /// it that a step keeps.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn with_muon(self, scalar: ScalarType, parts: [&[&Group]; 3], momentum: f64) -> Result<Self> {
        let (groups, device) = (parts.concat(), self.values.device());
        let mut decay = decay(&groups, &self.ranges, self.ends[2]);
        let mut matrices: Vec<Matrix> = Vec::new();
        for (group, (start, _)) in groups.iter().zip(&self.ranges) {
            for matrix in group.parameters().iter().flat_map(|p| p.block_matrices()) {
                let range = start + matrix.range.start..start + matrix.range.end;
                decay[range.clone()].fill(MUONS);
                matrices.push(Matrix { range, ..matrix });
            }
        }
        if matrices.is_empty() {
            return Ok(self);
        }
        let muon = Muon::new(device, scalar, &matrices, momentum)?;
        Ok(Flat { decay: Tensor::from_vec(decay, self.ends[2], device)?, muon: Some(muon), ..self })
    }

    /// Group `i` of the trainable ones, on the device.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn trainable(&self, i: usize, group: &Group) -> Result<Group> {
        let (start, len) = self.ranges[i];
        let part = |whole: &Tensor| whole.narrow(0, start, len);
        let place = OnDevice {
            gradient: Some(part(&self.gradient)?),
            half: self.half.as_ref().map(part).transpose()?,
            anchor: Some(self.anchor.clone()),
        };
        Ok(group.clone().placed(part(&self.values)?, place))
    }

    /// Group `i` of the key branch, on the device.
    ///
    /// # Errors
    /// There is no key branch.
    pub fn key(&self, i: usize, group: &Group) -> Result<Group> {
        let Some((values, half)) = &self.keys else { candle_core::bail!("there is no key branch") };
        let (start, len) = self.ranges[i];
        let part = |whole: &Tensor| whole.narrow(0, start, len);
        let place = OnDevice { gradient: None, half: half.as_ref().map(part).transpose()?, anchor: None };
        Ok(group.clone().placed(part(values)?, place))
    }

    /// Range of group `i` in the vectors: first value and length.
    pub fn range(&self, i: usize) -> (usize, usize) {
        self.ranges[i]
    }

    /// The gradients of all groups, flat.
    pub fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    /// Sets the gradients to zero.
    ///
    /// # Errors
    /// A call of the CUDA driver fails.
    pub fn clear(&self) -> Result<()> {
        clear(&self.gradient)
    }

    /// (1) u32: 1 once a step was not finite.
    pub fn stopped(&self) -> &Tensor {
        &self.stopped
    }

    /// Lets steps change the parameters again, after one that was not finite.
    ///
    /// # Errors
    /// A call of the CUDA driver fails.
    pub fn go_on(&self) -> Result<()> {
        clear(&self.stopped)
    }

    /// Queues one step with the gradients that have been added up: norms, clipping, AdamW, Muon where it is used, moving
    /// average, bfloat16 copies; the step's numbers go into `ring`.  Nothing changes where the loss or the gradient is not
    /// finite, nor in later steps, until [`Flat::go_on`].
    ///
    /// # Shapes
    /// `step`: u32 words that begin with the [`StepNumbers`], whose `slot` is a row of `ring` (n, [`SLOT`]).
    ///
    /// # Safety
    /// The slot in the step's numbers is a row of `ring`.
    ///
    /// # Errors
    /// Tensors of other types or sizes, too many terms, or a launch that fails.
    pub unsafe fn update(&self, rule: &Rule, step: &Tensor, noted: &Noted, ring: &Tensor) -> Result<()> {
        let (step, ring) = (StepNumbers::address(step)?, f32_address(ring, SLOT)?);
        let (loss, terms) = (f32_address(noted.loss, 1)?, noted.term_numbers()?);
        let stopped = address(&self.stopped)?;
        let numbers = UpdateNumbers {
            betas: rule.betas.map(|b| b as f32),
            eps: rule.eps,
            weight_decay: rule.weight_decay as f32,
            clip: rule.clip_norm as f32,
            share: rule.share as f32,
            first_projector: self.ends[0] as u32,
            first_decoder: self.ends[1] as u32,
            total: self.ends[2] as u32,
            keys: if self.keys.is_some() { self.ends[1] as u32 } else { 0 },
        };
        let (gradient, partial) = (address(&self.gradient)?, address(&self.partial)?);
        // SAFETY: vectors of `total` values each, made together; the rest as the caller promises.
        unsafe { launch!(self.engine, "gradient_squares", (BLOCKS, 1), THREADS, 0; gradient, partial, numbers)? };
        if let Some(muon) = &self.muon {
            let call = Call {
                values: address(&self.values)?,
                gradient,
                momenta: address(&self.moments[0])?,
                partial: (partial, BLOCKS),
                loss,
                stopped,
                step,
                numbers,
                weight_decay: rule.weight_decay as f32,
            };
            // SAFETY: as above.
            unsafe { muon.step(&call)? };
        }
        let keys = self.keys.as_ref();
        // SAFETY: as above.
        unsafe {
            launch!(
                self.engine, "adamw_all", (BLOCKS, 1), THREADS, 0;
                address(&self.values)?, gradient, address(&self.moments[0])?, address(&self.moments[1])?,
                address(&self.decay)?, address_or_null(self.half.as_ref())?, address_or_null(keys.map(|k| &k.0))?,
                address_or_null(keys.and_then(|k| k.1.as_ref()))?, partial, BLOCKS as i32, step, loss,
                terms, ring, stopped, numbers,
            )
        }
    }
}

/// A vector of length `len` with the groups' values in their ranges.
fn gathered(groups: &[&Group], ranges: &[(usize, usize)], len: usize, device: &Device) -> Result<Tensor> {
    let mut all = vec![0f32; len];
    for (group, (start, len)) in groups.iter().zip(ranges) {
        with_values(group.values(), |values| {
            all[*start..start + len].copy_from_slice(values);
            Ok(())
        })?;
    }
    Tensor::from_vec(all, len, device)
}

fn decay(groups: &[&Group], ranges: &[(usize, usize)], len: usize) -> Vec<u8> {
    let mut all = vec![0u8; len];
    for (group, (start, _)) in groups.iter().zip(ranges) {
        for parameter in group.parameters().iter().filter(|p| p.decay) {
            all[start + parameter.range.start..start + parameter.range.end].fill(1);
        }
    }
    all
}
