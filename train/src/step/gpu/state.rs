//! The state of a run, moved to the device and brought back.

use std::cell::Cell;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use macrl_bundle::config::{Config, Optimizer};
use macrl_nn::cuda::{ScalarType, memory};
use macrl_nn::params::Group;

use crate::bank::Bank;
use crate::cuda::bank::DeviceBank;
use crate::cuda::flat::{Flat, Rule};
use crate::gradients::unreached;
use crate::method::Method;
use crate::optimizer::EPS;
use crate::part::Part;
use crate::projector::Projector;
use crate::state::State;

/// Parameters, moments and bank on the device.  The networks of the run's state refer to these parameters.
pub(super) struct DeviceState {
    /// Parameters, gradients and moments in flat vectors.
    pub(super) flat: Flat,
    /// Constants of the optimiser.
    pub(super) rule: Rule,
    /// Number of keys in the bank.
    pub(super) filled: usize,
    capacity: usize,
    /// Number of groups of the encoder, the projector and the decoder.
    counts: [usize; 3],
}

/// Numbers groups in the order in which they are moved.
struct Count(Cell<usize>);

impl Count {
    fn next(&self) -> usize {
        self.0.replace(self.0.get() + 1)
    }
}

impl DeviceState {
    /// Moves a state's networks, moments and bank to the device.
    ///
    /// # Errors
    /// The GPU's memory does not suffice.
    pub(super) fn new(device: &Device, scalar: ScalarType, config: &Config, state: &mut State) -> Result<Self> {
        let method = &mut state.method;
        let encoder = method.encoder.groups();
        let projector: Vec<&Group> = method.projector.iter().flat_map(Projector::groups).collect();
        let decoder: Vec<&Group> = method.decoder.iter().flat_map(|d| d.groups()).collect();
        let keys: Vec<&Group> = method
            .key
            .iter()
            .flat_map(|(encoder, projector)| [encoder.groups(), projector.groups()].concat())
            .collect();
        let counts = [encoder.len(), projector.len(), decoder.len()];
        let parts = [&encoder[..], &projector, &decoder];
        let flat = Flat::new(device, scalar, parts, &keys)?;
        let flat = match config.train.optimizer {
            Optimizer::Muon => flat.with_muon(scalar, parts, config.train.muon_momentum)?,
            Optimizer::Adamw => flat,
        };

        let (count, key_count) = (Count(Cell::new(0)), Count(Cell::new(0)));
        let place = |group: Group| flat.trainable(count.next(), &group);
        let place_key = |group: Group| flat.key(key_count.next(), &group);
        method.encoder = method.encoder.clone().map(place)?;
        method.projector = method.projector.take().map(|p| p.map(place)).transpose()?;
        method.decoder = method.decoder.take().map(|d| d.map(place)).transpose()?;
        method.key = match method.key.take() {
            Some((encoder, projector)) => Some((encoder.map(place_key)?, projector.map(place_key)?)),
            None => None,
        };
        method.device_bank = Some(bank_to_device(device, scalar, &method.bank, config)?);
        let train = &config.train;
        let rule = Rule {
            betas: train.betas,
            eps: EPS,
            weight_decay: train.weight_decay,
            clip_norm: train.clip_norm,
            share: 1.0 / train.accumulate.max(1) as f64,
        };
        let (filled, capacity) = (method.bank.images.len(), config.contrast.bank_size);
        let device_state = DeviceState { flat, rule, filled, capacity, counts };
        device_state.moments_to_device(state)?;
        Ok(device_state)
    }

    /// Index in the flat vectors (encoder, projector, decoder) of trainable group `i` (encoder, decoder, projector).
    fn number(&self, i: usize) -> usize {
        let [encoder, projector, decoder] = self.counts;
        match i {
            i if i < encoder => i,
            i if i < encoder + decoder => i + projector,
            i => i - decoder,
        }
    }

    /// Where a part stands among the parts of the flat vectors.
    pub(super) fn position(part: Part) -> usize {
        match part {
            Part::Encoder => 0,
            Part::Projector => 1,
            Part::Decoder => 2,
        }
    }

    fn moments_to_device(&self, state: &State) -> Result<()> {
        for (which, tensor) in self.flat.moments.iter().enumerate() {
            let mut all = vec![0f32; tensor.elem_count()];
            for (i, moments) in state.optimizer.moments.iter().enumerate() {
                let (start, len) = self.flat.range(self.number(i));
                let values = if which == 0 { &moments.first } else { &moments.second };
                all[start..start + len].copy_from_slice(values);
            }
            memory::overwrite(tensor, &all)?;
        }
        Ok(())
    }

    /// Whether past keys are kept.
    pub(super) fn has_bank(&self) -> bool {
        self.capacity > 0
    }

    /// Notes that `count` keys have entered the bank; returns the index of the next key.
    pub(super) fn pushed(&mut self, next: usize, count: usize) -> usize {
        if !self.has_bank() {
            return 0;
        }
        self.filled = (self.filled + count).min(self.capacity);
        (next + count) % self.capacity
    }

    /// Names of the parameters that the last step's gradient did not reach.
    ///
    /// # Errors
    /// A kernel has failed.
    pub(super) fn unreached(&self, method: &Method) -> Result<Vec<String>> {
        let gradient = memory::fetch(self.flat.gradient())?;
        let groups = method.trainable().into_iter().enumerate();
        let names = groups.flat_map(|(i, (_, group))| {
            let (start, len) = self.flat.range(self.number(i));
            unreached(group, &gradient[start..start + len])
        });
        Ok(names.collect())
    }

    /// Copies moments and bank back into the state.  The networks' parameters are copied when they are read.
    ///
    /// # Errors
    /// A kernel has failed.
    pub(super) fn bring_back(&self, state: &mut State) -> Result<()> {
        for (which, tensor) in self.flat.moments.iter().enumerate() {
            let all = memory::fetch(tensor)?;
            for (i, moments) in state.optimizer.moments.iter_mut().enumerate() {
                let (start, len) = self.flat.range(self.number(i));
                let values = if which == 0 { &mut moments.first } else { &mut moments.second };
                values.copy_from_slice(&all[start..start + len]);
            }
        }
        let bank = state.method.device_bank.as_ref().context("the bank is not on the device")?;
        if self.filled > 0 {
            let mut keys = memory::fetch(&bank.keys)?;
            let width = keys.len() / self.capacity;
            keys.truncate(self.filled * width);
            let images = bank.images.to_vec1::<u32>()?[..self.filled].to_vec();
            state.method.bank.keys = keys;
            state.method.bank.images = images;
        }
        Ok(())
    }
}

fn bank_to_device(device: &Device, scalar: ScalarType, bank: &Bank, config: &Config) -> Result<DeviceBank> {
    // A GPU tensor cannot be empty: without a bank it has one key that is never used.
    let (capacity, width) = (config.contrast.bank_size.max(1), config.projector.dim);
    let mut keys = bank.keys.clone();
    keys.resize(capacity * width, 0.0);
    let mut images = bank.images.clone();
    images.resize(capacity, u32::MAX); // no key yet
    Ok(DeviceBank {
        keys: memory::upload(device, scalar, &keys, (capacity, width))?,
        images: Tensor::from_vec(images, capacity, device)?,
    })
}
