//! Queues steps, captures one as a CUDA graph, and fetches their numbers.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaGraph, PinnedHostSlice};
use candle_core::{DType, Device, Tensor};
use macrl_bundle::config::{Config, Precision};
use macrl_nn::cuda::{Engine, ScalarType, memory};

use super::batches::{DeviceBatch, HEAD, HostBatch, HostBatches};
use super::state::DeviceState;
use crate::cuda::flat::{APPLIED, FIRST_TERM, NORMS, Noted, SLOT, StepNumbers};
use crate::data::Dataset;
use crate::gradients::Norms;
use crate::inputs::Inputs;
use crate::losses::{Losses, Term, TermNumbers};
use crate::ops::contrast::KeyImages;
use crate::part::Part;
use crate::schedule::Schedule;
use crate::state::State;
use crate::step::contract::{Finished, Measured, Stepper};

/// Steps between two fetches of their numbers.
const FETCH: usize = 16;
/// Fetches between two checks of which parameters the gradient reaches: each check copies all of it.  After one that found
/// some without a gradient, every fetch checks.
const REACH: u64 = 32;
/// Batches that may be on their way to the device.
const AHEAD: usize = 3;
/// Steps before the capture: they fill the memory pools and choose the algorithms of the matrix products.
const WARM: u64 = 2;

/// A step that has been queued, and the counters before it.
struct Queued {
    step: u64,
    updates: u64,
    bank: [usize; 2],
    images: Vec<u32>,
    waited: f64,
}

/// A page-locked copy of a batch, and the event that marks the end of its transfer.
struct Staging {
    words: PinnedHostSlice<u32>,
    copied: Option<CudaEvent>,
}

/// Pretraining on one GPU.
pub struct GpuStepper {
    engine: Arc<Engine>,
    device_state: DeviceState,
    batches: HostBatches,
    batch: DeviceBatch,
    inputs: Vec<Inputs>,
    /// (FETCH, SLOT): the numbers of the queued steps.
    ring: Tensor,
    staging: Vec<Staging>,
    queued: Vec<Queued>,
    since: Instant,
    steps: u64,
    fetches: u64,
    unreached: Vec<String>,
    captured: Option<CudaGraph>,
    capture: bool,
    /// The terms of the loss in the order in which the ring holds their numbers; known once a step has been queued.
    terms: OnceCell<Vec<&'static Term>>,
}

impl GpuStepper {
    /// Moves a state to the device and starts making its batches.
    ///
    /// # Errors
    /// Too few images for a batch, or out of memory.
    pub fn new(device: &Device, data: Arc<dyn Dataset>, config: &Config, state: &mut State) -> Result<Self> {
        let scalar = match config.train.precision {
            Precision::F32 => ScalarType::F32,
            Precision::Bf16 => ScalarType::Bf16,
        };
        let engine = Engine::at(device)?;
        let device_state = DeviceState::new(device, scalar, config, state)?;
        let (batches, batch) = HostBatches::new(device, scalar, data, config, state.step)?;
        let count = batch.words.elem_count();
        let staging = (0..AHEAD)
            .map(|_| {
                // SAFETY: written before it is copied.
                let words = unsafe { engine.stream.context().alloc_pinned_with_flags(count, 0) }?;
                Ok(Staging { words, copied: None })
            })
            .collect::<Result<_>>()?;
        Ok(GpuStepper {
            inputs: batch.inputs()?,
            ring: Tensor::zeros(FETCH * SLOT, DType::F32, device)?,
            staging,
            queued: Vec::new(),
            since: Instant::now(),
            steps: 0,
            fetches: 0,
            unreached: Vec::new(),
            captured: None,
            capture: std::env::var_os("MACRL_NO_CUDA_GRAPH").is_none(),
            terms: OnceCell::new(),
            engine,
            device_state,
            batches,
            batch,
        })
    }

    /// Whether the views are made on the device.
    pub fn is_resident(&self) -> bool {
        self.batch.is_resident()
    }

    /// Waits for all queued steps and gives their numbers; the state stays on the device.
    ///
    /// # Errors
    /// A kernel has failed.
    pub fn drain(&mut self, state: &mut State) -> Result<Vec<Finished>> {
        self.fetch(state)
    }

    fn numbers(&self, state: &State, schedule: &Schedule) -> StepNumbers {
        let rates = schedule.rates(state.step);
        StepNumbers {
            lr: rates.adamw as f32,
            momentum: schedule.momentum(state.step) as f32,
            corrections: state.optimizer.corrections(state.optimizer.step + 1),
            bank_next: state.method.bank.next as u32,
            slot: self.queued.len() as u32,
            muon_lr: rates.muon as f32,
            unused: 0,
        }
    }

    /// Copies a step's words to the device behind the steps before.
    fn send(&mut self, batch: &HostBatch, numbers: StepNumbers) -> Result<()> {
        let staging = &mut self.staging[self.steps as usize % AHEAD];
        if let Some(copied) = &staging.copied {
            copied.synchronize()?;
        }
        let words = staging.words.as_mut_slice()?;
        words.copy_from_slice(&batch.words);
        words[..HEAD].copy_from_slice(bytemuck::cast_slice(&[numbers]));
        // SAFETY: the words are written again only once the event behind the copy has passed.
        unsafe { memory::send(&self.batch.words, words)? };
        staging.copied = Some(self.engine.stream.record_event(None)?);
        Ok(())
    }

    fn launch(&mut self, state: &mut State) -> Result<()> {
        if self.captured.is_none() && self.capture && self.steps >= WARM {
            match self.engine.capture(|| self.queue(state))? {
                Ok(graph) => self.captured = Some(graph),
                Err(why) => {
                    self.capture = false;
                    let why = format!("{why:#}");
                    let why = why.lines().next().unwrap_or_default(); // a backtrace may follow
                    macrl_bundle::say!(
                        "note: the step could not be captured as a CUDA graph and is queued in parts: {why}"
                    );
                }
            }
        }
        match &self.captured {
            Some(graph) => Ok(graph.launch()?),
            None => self.queue(state),
        }
    }

    /// Mean over the batch's parts; none where no part has the number.
    fn mean<'a>(&self, mut parts: impl Iterator<Item = &'a Tensor>) -> Result<Option<Tensor>> {
        let Some(first) = parts.next() else { return Ok(None) };
        let (mut sum, mut several) = (first.detach(), false);
        for part in parts {
            sum = (sum + part.detach())?;
            several = true;
        }
        Ok(Some(if several { (sum * self.device_state.rule.share)? } else { sum }))
    }

    /// Queues every operation of one step.
    fn queue(&self, state: &mut State) -> Result<()> {
        self.device_state.flat.clear()?;
        self.batch.prepare()?;
        let mut all = Vec::new();
        for inputs in &self.inputs {
            let losses = state.method.losses(inputs)?;
            losses.total.backward()?;
            all.push(losses);
        }
        let total = self.mean(all.iter().map(|losses| &losses.total))?.context("an empty batch")?;
        let terms = self.means(&all)?;
        self.terms.get_or_init(|| terms.iter().map(|(term, _)| *term).collect());
        let noted = Noted { loss: &total, terms: terms.iter().map(|(_, numbers)| numbers).collect() };
        let DeviceState { flat, rule, .. } = &self.device_state;
        // SAFETY: the slot in the step's numbers is below the ring's length.
        unsafe { flat.update(rule, &self.batch.words, &noted, &self.ring)? };
        self.push_keys(state, &all)
    }

    /// The numbers of each term, as means over the batch's parts.
    fn means(&self, parts: &[Losses]) -> Result<Vec<(&'static Term, Tensor)>> {
        let count = parts.first().map_or(0, |losses| losses.terms.len());
        let mean = |i: usize| {
            let mean = self.mean(parts.iter().map(|losses| &losses.terms[i].1))?;
            Ok((parts[0].terms[i].0, mean.context("an empty batch")?))
        };
        (0..count).map(mean).collect()
    }

    /// Queues the entry of the step's keys into the bank.
    fn push_keys(&self, state: &State, parts: &[Losses]) -> Result<()> {
        let mut offset = 0;
        for (losses, inputs) in parts.iter().zip(&self.inputs).filter(|_| self.device_state.has_bank()) {
            let bank = state.method.device_bank.as_ref().context("the bank is not on the device")?;
            if let (Some(keys), KeyImages::Device(images)) = (&losses.keys, &inputs.images) {
                bank.push(keys, images, &self.batch.words, self.device_state.flat.stopped(), offset)?;
                offset += keys.dim(0)?;
            }
        }
        Ok(())
    }

    /// Waits for the queued steps and reads their numbers.
    fn fetch(&mut self, state: &mut State) -> Result<Vec<Finished>> {
        if self.queued.is_empty() {
            return Ok(Vec::new());
        }
        let ring = memory::fetch(&self.ring)?;
        let broken = self.queued.iter().zip(ring.chunks_exact(SLOT)).position(|(_, n)| n[APPLIED] == 0.0);
        if let Some(first) = broken {
            self.back_to(first, state)?;
        }
        if self.fetches.is_multiple_of(REACH) || !self.unreached.is_empty() {
            self.unreached = self.device_state.unreached(&state.method)?;
        }
        self.fetches += 1;
        let seconds = self.since.elapsed().as_secs_f64() / self.queued.len() as f64;
        self.since = Instant::now();
        let queued = std::mem::take(&mut self.queued);
        let done = |(Queued { step, images, waited, .. }, numbers): (Queued, &[f32])| {
            let measured = self.measured(numbers);
            Finished { step, measured, images, seconds, waiting: waited / seconds.max(1e-9) }
        };
        Ok(queued.into_iter().zip(ring.chunks_exact(SLOT)).map(done).collect())
    }

    /// One step's numbers as the ring holds them.
    fn measured(&self, numbers: &[f32]) -> Measured {
        let loss = f64::from(numbers[0]);
        let norm = |part: Part| f64::from(numbers[NORMS + DeviceState::position(part)]);
        let parts = Part::ALL.map(norm);
        // The device takes the norm in single precision.
        let total = match numbers[APPLIED] == 0.0 && loss.is_finite() {
            true => f64::INFINITY,
            false => parts.iter().map(|v| v * v).sum::<f64>().sqrt(),
        };
        let mut at = FIRST_TERM;
        let terms = self.terms.get().into_iter().flatten().map(|term| {
            let first = at;
            at += term.count();
            TermNumbers { term, values: numbers[first..at].to_vec() }
        });
        let terms = terms.collect();
        Measured { loss, terms, norms: Norms::new(total, parts), unreached: self.unreached.clone() }
    }

    /// Takes back queued step `first`, which was not finite, and those behind it: none of them has changed anything on
    /// the device.
    fn back_to(&mut self, first: usize, state: &mut State) -> Result<()> {
        let Queued { step, updates, bank: [next, filled], .. } = self.queued[first];
        (state.step, state.optimizer.step) = (step, updates);
        (state.method.bank.next, self.device_state.filled) = (next, filled);
        self.queued.truncate(first + 1);
        self.device_state.flat.go_on()?;
        // `replay` needs the state before the step.
        self.device_state.bring_back(state)
    }
}

impl Stepper for GpuStepper {
    fn steps_per_epoch(&self) -> u64 {
        self.batches.steps_per_epoch()
    }

    /// Queues the next step; gives numbers once every [`FETCH`] steps.
    fn advance(&mut self, state: &mut State, schedule: &Schedule) -> Result<Vec<Finished>> {
        let waited = self.batches.waited();
        let batch = self.batches.next_batch()?;
        let waited = (self.batches.waited() - waited).as_secs_f64();
        self.send(&batch, self.numbers(state, schedule))?;
        self.launch(state)?;
        let bank = [state.method.bank.next, self.device_state.filled];
        let count = batch.indices.len();
        self.queued.push(Queued {
            step: state.step,
            updates: state.optimizer.step,
            bank,
            images: batch.indices,
            waited,
        });
        self.steps += 1;
        state.step += 1;
        state.optimizer.step += 1;
        if state.method.projector.is_some() {
            state.method.bank.next = self.device_state.pushed(state.method.bank.next, count);
        }
        if self.queued.len() == FETCH { self.fetch(state) } else { Ok(Vec::new()) }
    }

    fn settle(&mut self, state: &mut State) -> Result<Vec<Finished>> {
        let done = self.fetch(state)?;
        self.device_state.bring_back(state)?;
        self.since = Instant::now();
        Ok(done)
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn is_captured(&self) -> bool {
        self.captured.is_some()
    }

    fn skipped(&self) -> Vec<(String, String)> {
        self.batches.skipped()
    }
}
