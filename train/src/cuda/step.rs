//! Steps on the device: queued one behind the other, captured once as a CUDA graph, their numbers fetched now and then.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaGraph, PinnedHostSlice};
use candle_core::{DType, Device, Tensor};
use macrl_models::config::{Config, Precision};
use macrl_models::cuda::flat::{APPLIED, Noted, SLOT, StepNumbers};
use macrl_models::cuda::{Engine, Real, memory};
use macrl_models::ops::info_nce::Contrast;
use macrl_models::ops::tokens::Images;

use super::feed::{Fed, Feed, HEAD, Room};
use super::place::Placed;
use crate::data::Dataset;
use crate::inputs::Inputs;
use crate::optimizer::Norms;
use crate::schedule::Schedule;
use crate::state::State;
use crate::stepper::Done;
use crate::trainer::Measured;

/// Steps between two looks at their numbers.
const FETCH: usize = 16;
/// Looks between two checks of which parameters the gradient reaches: each copies all of it.  After one that found some
/// without, every look checks.
const REACH: u64 = 32;
/// Steps whose words may be on their way.
const AHEAD: usize = 3;
/// Steps before the capture: they fill the pools and choose the products' algorithms.
const WARM: u64 = 2;

/// A step that has been queued, and the counters before it.
struct Queued {
    at: u64,
    updates: u64,
    bank: [usize; 2],
    indices: Vec<u32>,
    waited: f64,
}

/// Page-locked words, and when their copy was done.
struct Staging {
    words: PinnedHostSlice<u32>,
    copied: Option<CudaEvent>,
}

/// A run's training on one GPU.
pub struct Trainer {
    engine: Arc<Engine>,
    placed: Placed,
    feed: Feed,
    room: Room,
    inputs: Vec<Inputs>,
    ring: Tensor,
    staging: Vec<Staging>,
    queued: Vec<Queued>,
    since: Instant,
    steps: u64,
    looks: u64,
    dead: Vec<String>,
    captured: Option<CudaGraph>,
    capture: bool,
    has: [bool; 2],
}

impl Trainer {
    /// Moves a state to the device and starts making its batches.
    ///
    /// # Errors
    /// Too few images for a batch, or out of memory.
    pub fn new(device: &Device, data: Arc<dyn Dataset>, config: &Config, state: &mut State) -> Result<Self> {
        let real = match config.train.precision {
            Precision::F32 => Real::F32,
            Precision::Bf16 => Real::Bf16,
        };
        let engine = Engine::at(device)?;
        let placed = Placed::new(device, real, config, state)?;
        let (feed, room) = Feed::new(device, real, data, config, state.step)?;
        let count = room.words.elem_count();
        let staging = (0..AHEAD)
            .map(|_| {
                // SAFETY: written before it is copied.
                let words = unsafe { engine.stream.context().alloc_pinned_with_flags(count, 0) }?;
                Ok(Staging { words, copied: None })
            })
            .collect::<Result<_>>()?;
        Ok(Trainer {
            inputs: room.inputs()?,
            ring: Tensor::zeros(FETCH * SLOT, DType::F32, device)?,
            staging,
            queued: Vec::new(),
            since: Instant::now(),
            steps: 0,
            looks: 0,
            dead: Vec::new(),
            captured: None,
            capture: std::env::var_os("MACRL_NO_CUDA_GRAPH").is_none(),
            has: [state.method.projector.is_some(), state.method.decoder.is_some()],
            engine,
            placed,
            feed,
            room,
        })
    }

    /// Whole batches in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.feed.steps_per_epoch()
    }

    /// Images that could not be read.
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.feed.skipped()
    }

    /// Whether the step runs as one captured graph by now, and whether the views are made on the device.
    pub fn manner(&self) -> (bool, bool) {
        (self.captured.is_some(), self.room.is_resident())
    }

    /// Queues the next step; gives numbers once every [`FETCH`] steps.  They end with a step that was not finite, if
    /// there is one: the state is then the one before it, as on the CPU, and what was queued behind it is dropped.
    ///
    /// # Errors
    /// Unreadable data, or what a kernel did wrong.
    pub fn advance(&mut self, state: &mut State, schedule: &Schedule) -> Result<Vec<Done>> {
        let waited = self.feed.waited();
        let fed = self.feed.next_batch()?;
        let waited = (self.feed.waited() - waited).as_secs_f64();
        self.send(&fed, self.numbers(state, schedule))?;
        self.launch(state)?;
        let bank = [state.method.bank.next, self.placed.filled];
        self.queued.push(Queued { at: state.step, updates: state.optimizer.step, bank, indices: fed.indices, waited });
        self.steps += 1;
        state.step += 1;
        state.optimizer.step += 1;
        let count = self.queued.last().map_or(0, |q| q.indices.len());
        if self.has[0] {
            state.method.bank.next = self.placed.pushed(state.method.bank.next, count);
        }
        if self.queued.len() == FETCH { self.fetch(state) } else { Ok(Vec::new()) }
    }

    /// Waits for all steps; the state stays on the device.
    ///
    /// # Errors
    /// What a kernel did wrong.
    pub fn drain(&mut self, state: &mut State) -> Result<Vec<Done>> {
        self.fetch(state)
    }

    /// Waits for all steps and brings the state up to date.
    ///
    /// # Errors
    /// What a kernel did wrong.
    pub fn settle(&mut self, state: &mut State) -> Result<Vec<Done>> {
        let done = self.fetch(state)?;
        self.placed.bring_back(state)?;
        self.since = Instant::now();
        Ok(done)
    }

    fn numbers(&self, state: &State, schedule: &Schedule) -> StepNumbers {
        let t = (state.optimizer.step + 1) as f64;
        StepNumbers {
            lr: schedule.rates(state.step).adamw as f32,
            momentum: schedule.momentum(state.step) as f32,
            corrections: self.placed.rule.betas.map(|beta| (1.0 - beta.powf(t)) as f32),
            bank_next: state.method.bank.next as u32,
            slot: self.queued.len() as u32,
            muon_lr: schedule.rates(state.step).muon as f32,
            unused: 0,
        }
    }

    /// Copies a step's words to the device behind the steps before.
    fn send(&mut self, fed: &Fed, numbers: StepNumbers) -> Result<()> {
        let staging = &mut self.staging[self.steps as usize % AHEAD];
        if let Some(copied) = &staging.copied {
            copied.synchronize()?;
        }
        let words = staging.words.as_mut_slice()?;
        words.copy_from_slice(&fed.words);
        words[..HEAD].copy_from_slice(&[
            numbers.lr.to_bits(),
            numbers.momentum.to_bits(),
            numbers.corrections[0].to_bits(),
            numbers.corrections[1].to_bits(),
            numbers.bank_next,
            numbers.slot,
            numbers.muon_lr.to_bits(),
            0,
        ]);
        memory::send(&self.room.words, words)?;
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
                    let why = why.lines().next().unwrap_or_default(); // behind it there may be a backtrace
                    macrl_models::say!(
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
        Ok(Some(if several { (sum * self.placed.rule.share)? } else { sum }))
    }

    /// Queues every operation of one step.
    fn queue(&self, state: &mut State) -> Result<()> {
        let step = memory::address(&self.room.words)?;
        self.placed.flat.clear()?;
        self.room.prepare()?;
        let mut all = Vec::new();
        for inputs in &self.inputs {
            let losses = state.method.losses(inputs)?;
            losses.total.backward()?;
            all.push(losses);
        }
        let total = self.mean(all.iter().map(|losses| &losses.total))?.context("an empty batch")?;
        let contrast = self.mean(all.iter().filter_map(|losses| losses.contrast.as_ref()))?;
        let l1 = self.mean(all.iter().filter_map(|losses| losses.reconstruction.as_ref()))?;
        let noted = Noted {
            loss: memory::address(&total)?,
            contrast: memory::address_or_null(contrast.as_ref())?,
            l1: memory::address_or_null(l1.as_ref())?,
        };
        self.placed.flat.update(&self.placed.rule, step, noted, memory::address(&self.ring)?)?;
        let mut offset = 0;
        for (losses, inputs) in all.iter().zip(&self.inputs).filter(|_| self.placed.has_bank()) {
            let bank = state.method.device_bank.as_ref().context("the bank is not on the device")?;
            if let (Some(keys), Images::Device(images)) = (&losses.keys, &inputs.images) {
                bank.push(keys, images, step + BANK_NEXT, self.placed.flat.stopped()?, offset)?;
                offset += keys.dim(0)?;
            }
        }
        Ok(())
    }

    /// Waits for the queued steps and reads their numbers.
    fn fetch(&mut self, state: &mut State) -> Result<Vec<Done>> {
        if self.queued.is_empty() {
            return Ok(Vec::new());
        }
        let ring = memory::fetch(&self.ring)?;
        let broken = self.queued.iter().zip(ring.chunks_exact(SLOT)).position(|(_, n)| n[APPLIED] == 0.0);
        if let Some(first) = broken {
            self.back_to(first, state)?;
        }
        if self.looks.is_multiple_of(REACH) || !self.dead.is_empty() {
            self.dead = self.placed.dead(&state.method)?;
        }
        self.looks += 1;
        let seconds = self.since.elapsed().as_secs_f64() / self.queued.len() as f64;
        self.since = Instant::now();
        let (has, dead) = (self.has, &self.dead);
        let done = |(Queued { at, indices, waited, .. }, n): (Queued, &[f32])| {
            let norms = [1, 2, 3].map(|i| f64::from(n[i]));
            let total = norms.iter().map(|v| v * v).sum::<f64>().sqrt();
            let measured = Measured {
                contrast: has[0].then(|| Contrast { loss: n[4], positive: n[5], negative: n[6] }),
                reconstruction: has[1].then(|| [n[7], n[8]]),
                loss: f64::from(n[0]),
                norms: Norms {
                    // The device takes it in single precision.
                    total: if n[APPLIED] == 0.0 && f64::from(n[0]).is_finite() { f64::INFINITY } else { total },
                    encoder: norms[0],
                    projector: norms[1],
                    decoder: norms[2],
                },
                dead: dead.clone(),
            };
            Done { at, measured, indices, seconds, waiting: waited / seconds.max(1e-9) }
        };
        Ok(self.queued.drain(..).zip(ring.chunks_exact(SLOT)).map(done).collect())
    }

    /// Takes back queued step `first`, which was not finite, and those behind it: none of them has changed anything on
    /// the device.
    fn back_to(&mut self, first: usize, state: &mut State) -> Result<()> {
        let Queued { at, updates, bank: [next, filled], .. } = self.queued[first];
        (state.step, state.optimizer.step) = (at, updates);
        (state.method.bank.next, self.placed.filled) = (next, filled);
        self.queued.truncate(first + 1);
        self.placed.flat.go_on()?;
        // Whoever looks into the cause finds the state before the step.
        self.placed.bring_back(state)
    }
}

/// Bytes from the step's numbers to the bank's place.
const BANK_NEXT: u64 = std::mem::offset_of!(StepNumbers, bank_next) as u64;
