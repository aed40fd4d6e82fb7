//! All trainable parameters in flat vectors on the device: values, gradients, moments, bfloat16 copies, and the key
//! branch's moving average; one optimiser step over all of them in two launches.
//!
//! Order: encoder, projector, decoder, so that the key branch's vector is a prefix.  Each group begins at a multiple of
//! [`ALIGN`] values; the gaps hold zeros and stay zero.

use std::sync::Arc;

use candle_core::cuda::cudarc::driver::DeviceRepr;
use candle_core::{DType, Device, Result, Tensor};
use macrl_nn::cuda::memory::{clear, halved, variable};
use macrl_nn::cuda::{Engine, Real, address, address_or_null};
use macrl_nn::ops::graph::with_values;
use macrl_nn::params::{Group, Matrix, OnDevice};

use super::kernels::launch;
use super::muon::{Call, Muon};

/// 256 bytes in bfloat16: what matrix products like best.
const ALIGN: usize = 128;
/// Blocks of the two passes over all parameters.
const BLOCKS: u32 = 512;
const THREADS: u32 = 256;

/// `MUONS` in `update.cuh`.
const MUONS: u8 = 2;

/// Numbers of a step as the device's ring holds them; see `update.cuh`.
pub const SLOT: usize = 16;
/// Which of them is 1 where the step changed something, 0 where it or one before it was not finite.
pub const APPLIED: usize = 9;

/// What changes from step to step; mirrors `StepNumbers` in `update.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepNumbers {
    /// Learning rate.
    pub lr: f32,
    /// Of the moving average.
    pub momentum: f32,
    /// 1 - beta^t for both betas.
    pub corrections: [f32; 2],
    /// Where the bank's next key goes.
    pub bank_next: u32,
    /// Where in the ring this step's numbers go.
    pub slot: u32,
    /// Muon's learning rate.
    pub muon_lr: f32,
    /// Room.
    pub unused: u32,
}

/// What does not; mirrors `UpdateNumbers`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct UpdateNumbers {
    betas: [f32; 2],
    eps: f32,
    weight_decay: f32,
    clip: f32,
    share: f32,
    first_projector: u32,
    first_decoder: u32,
    total: u32,
    keys: u32,
}

// SAFETY: plain numbers in C's order.
unsafe impl DeviceRepr for StepNumbers {}
// SAFETY: plain numbers in C's order.
unsafe impl DeviceRepr for UpdateNumbers {}

const _: () = assert!(size_of::<StepNumbers>() == 32 && size_of::<UpdateNumbers>() == 40, "update.cuh says so");

/// The optimiser's constants.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Moments' decay rates.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Of matrices.
    pub weight_decay: f64,
    /// Largest gradient norm; 0: none.
    pub clip_norm: f64,
    /// Factor on the gradient: 1 / parts of a batch.
    pub share: f64,
}

/// Where a step's loss and its companions lie; absent: 0 is noted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Noted {
    /// The loss.
    pub loss: u64,
    /// Three numbers of the contrast.
    pub contrast: u64,
    /// Two of the reconstruction.
    pub l1: u64,
}

/// Groups in three parts, in the flat vectors' order.
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
    /// Candle's.
    pub fn new(device: &Device, real: Real, parts: [&[&Group]; 3], keys: &[&Group]) -> Result<Self> {
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
                let half = halved(real, &values)?;
                Some((values, half))
            }
        };
        let zeros = || Tensor::zeros(end, DType::F32, device);
        Ok(Flat {
            half: halved(real, &values)?,
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
    /// Candle's.
    pub fn with_muon(self, real: Real, parts: [&[&Group]; 3], momentum: f64) -> Result<Self> {
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
        let muon = Muon::new(device, real, &matrices, momentum)?;
        Ok(Flat { decay: Tensor::from_vec(decay, self.ends[2], device)?, muon: Some(muon), ..self })
    }

    /// Group `i` of the trainable ones, on the device.
    ///
    /// # Errors
    /// Candle's.
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
    /// Candle's, or no key branch.
    pub fn key(&self, i: usize, group: &Group) -> Result<Group> {
        let Some((values, half)) = &self.keys else { candle_core::bail!("there is no key branch") };
        let (start, len) = self.ranges[i];
        let part = |whole: &Tensor| whole.narrow(0, start, len);
        let place = OnDevice { gradient: None, half: half.as_ref().map(part).transpose()?, anchor: None };
        Ok(group.clone().placed(part(values)?, place))
    }

    /// Where group `i` lies: first value and length.
    pub fn range(&self, i: usize) -> (usize, usize) {
        self.ranges[i]
    }

    /// The gradients, all of them: what a reduction over machines runs on.
    pub fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    /// Sets the gradients to zero.
    ///
    /// # Errors
    /// The driver's.
    pub fn clear(&self) -> Result<()> {
        clear(&self.gradient)
    }

    /// Address of the word that is 1 once a step was not finite.
    ///
    /// # Errors
    /// Candle's.
    pub fn stopped(&self) -> Result<u64> {
        address(&self.stopped)
    }

    /// Lets steps change things again after one that was not finite.
    ///
    /// # Errors
    /// The driver's.
    pub fn go_on(&self) -> Result<()> {
        clear(&self.stopped)
    }

    /// One step with the gradients there are: norms, clipping, AdamW, Muon where it has a share, moving average, copies; the
    /// step's numbers go into `ring`.  Nothing changes where the loss or the gradient is not finite, nor in the steps behind such a one until
    /// [`Flat::go_on`].
    ///
    /// # Safety
    /// `step` is the address of a [`StepNumbers`] on the device whose slot lies within `ring`, the address of slots of
    /// [`SLOT`] float32 numbers; those in `noted` are of as many float32 numbers as it says.
    ///
    /// # Errors
    /// The driver's.
    pub unsafe fn update(&self, rule: &Rule, step: u64, noted: Noted, ring: u64) -> Result<()> {
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
                loss: noted.loss,
                stopped: self.stopped()?,
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
                address_or_null(keys.and_then(|k| k.1.as_ref()))?, partial, BLOCKS as i32, step, noted.loss,
                noted.contrast, noted.l1, ring, self.stopped()?, numbers,
            )
        }
    }
}

/// The groups' values at their places in a vector of `len`.
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
