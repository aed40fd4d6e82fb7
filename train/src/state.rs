//! A run's state and its checkpoints: networks, moments, moving average, bank and counters.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use macrl_bundle::config::Config;
use macrl_nn::checkpoint::{self, Checkpoint};
use macrl_nn::ops::graph::with_values;
use macrl_nn::params::Group;
use macrl_nn::vit::Encoder;

use crate::method::Method;
use crate::optimizer::{AdamW, Moments};
use crate::part::Part;

/// Everything that a step changes.
pub struct State {
    /// The networks and the bank.
    pub method: Method,
    /// Moments and number of updates.
    pub optimizer: AdamW,
    /// Number of steps done.
    pub step: u64,
    /// Best online kNN accuracy so far.
    pub best_knn: Option<f64>,
    /// Identity of the training data, see [`crate::data::identity`]; `None` in checkpoints of earlier versions.
    pub data: Option<String>,
}

/// The parameters of all networks, by their names in a checkpoint.
pub struct Weights(Vec<(String, Tensor)>);

const STEP: &str = "step";
/// Not `best_knn`, the key of earlier versions: they measured it on other images, so the numbers cannot be compared.
const BEST: &str = "best_online_knn";
const NEXT: &str = "bank.next";
const DATA: &str = "data";

impl State {
    /// The initial state of a run.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn init(config: &Config) -> Result<Self> {
        Ok(Self::of(Method::init(config)?, config))
    }

    /// The initial state of a run that starts from a given encoder.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn starting_from(config: &Config, encoder: Encoder) -> Result<Self> {
        Ok(Self::of(Method::starting_from(config, encoder)?, config))
    }

    fn of(method: Method, config: &Config) -> Self {
        let optimizer = AdamW::new(&method.trainable(), &config.train);
        State { method, optimizer, step: 0, best_knn: None, data: None }
    }

    /// All parameters on the host; those on a GPU are copied.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn weights(&self) -> Result<Weights> {
        let mut tensors = Vec::new();
        let mut add = |prefix: &str, groups: Vec<&Group>| -> candle_core::Result<()> {
            for (name, tensor) in
                groups.into_iter().map(Group::named).collect::<candle_core::Result<Vec<_>>>()?.concat()
            {
                tensors.push((format!("{prefix}{name}"), tensor));
            }
            Ok(())
        };
        add("encoder.", self.method.encoder.groups())?;
        if let Some(decoder) = &self.method.decoder {
            add("", decoder.groups())?;
        }
        if let Some(projector) = &self.method.projector {
            add("", projector.groups())?;
        }
        if let Some((encoder, projector)) = &self.method.key {
            add("key.encoder.", encoder.groups())?;
            add("key.", projector.groups())?;
        }
        Ok(Weights(tensors))
    }

    /// Writes a checkpoint atomically.
    ///
    /// # Errors
    /// The file cannot be written; the old one is then unchanged.
    pub fn save(&self, path: &Path, config: &Config) -> Result<()> {
        self.save_with(&self.weights()?, path, config)
    }

    /// The same, with weights that [`State::weights`] has given already.
    ///
    /// # Errors
    /// The file cannot be written; the old one is then unchanged.
    pub fn save_with(&self, weights: &Weights, path: &Path, config: &Config) -> Result<()> {
        let mut tensors = weights.0.clone();
        tensors.extend(moment_tensors(&self.optimizer)?);
        let bank = &self.method.bank;
        if !bank.images.is_empty() {
            let rows = bank.images.len();
            tensors.push((
                "bank.keys".into(),
                Tensor::from_slice(&bank.keys, (rows, bank.keys.len() / rows), &Device::Cpu)?,
            ));
            tensors.push(("bank.images".into(), Tensor::from_slice(&bank.images, rows, &Device::Cpu)?));
        }
        let mut notes = HashMap::from([
            (STEP.to_string(), self.step.to_string()),
            (NEXT.to_string(), bank.next.to_string()),
            ("version".to_string(), env!("CARGO_PKG_VERSION").to_string()),
        ]);
        if let Some(best) = self.best_knn {
            notes.insert(BEST.into(), best.to_string());
        }
        if let Some(data) = &self.data {
            notes.insert(DATA.into(), data.clone());
        }
        checkpoint::save(path, config, &notes, &tensors)?;
        Ok(())
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// The checkpoint is missing or damaged, or its parts do not fit its configuration.
    pub fn load(path: &Path) -> Result<(Self, Config)> {
        let Checkpoint { config, notes, tensors, .. } = checkpoint::load(path)?;
        let named = || format!("checkpoint {}", path.display());
        let number = |key: &str| -> Result<u64> {
            let text = notes.get(key).with_context(|| format!("{} has no `{key}`", named()))?;
            text.parse().with_context(|| format!("{}: `{key}` is {text}, not a number", named()))
        };
        let mut method = Method::from_tensors(&config, &tensors).with_context(named)?;
        let step = number(STEP)?;
        let held = config.bank_keys(step);
        if held > 0 {
            let tensor = |name: &str| tensors.get(name).with_context(|| format!("tensor `{name}` is missing"));
            let (keys, images) = (tensor("bank.keys").with_context(named)?, tensor("bank.images").with_context(named)?);
            let (keys, images) = (keys.flatten_all()?.to_vec1::<f32>()?, images.to_vec1::<u32>()?);
            ensure!(
                images.len() == held,
                "{}: after {step} steps the memory bank should hold {held} keys, found {}",
                named(),
                images.len()
            );
            method.bank = method.bank.restore(keys, images, number(NEXT)? as usize).with_context(named)?;
        }
        let optimizer = moments(&method.trainable(), &config, &tensors, step).with_context(named)?;
        let best_knn = notes.get(BEST).and_then(|text| text.parse().ok());
        let data = notes.get(DATA).cloned();
        Ok((State { method, optimizer, step, best_knn, data }, config))
    }

    /// Names of the parameters with a value that is not finite, the key branch's included.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn non_finite(&self) -> Result<Vec<String>> {
        self.weights()?.non_finite()
    }
}

impl Weights {
    /// Names of the parameters with a value that is not finite.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn non_finite(&self) -> Result<Vec<String>> {
        non_finite(&self.0)
    }
}

/// Names of the parameters with a value that is not finite.
pub(crate) fn non_finite(tensors: &[(String, Tensor)]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (name, tensor) in tensors {
        if with_values(tensor, |values| Ok(values.iter().any(|v| !v.is_finite())))? {
            names.push(without_encoder(name));
        }
    }
    Ok(names)
}

/// A parameter's name in its network; names of the key branch keep their `key.`.
fn without_encoder(name: &str) -> String {
    match name.strip_prefix("key.") {
        Some(rest) => format!("key.{}", rest.strip_prefix("encoder.").unwrap_or(rest)),
        None => name.strip_prefix("encoder.").unwrap_or(name).to_string(),
    }
}

fn moment_name(kind: &str, group: usize) -> String {
    format!("adamw.{kind}.{group:03}")
}

/// An optimiser's moments as the tensors of a checkpoint.
pub(crate) fn moment_tensors(optimizer: &AdamW) -> candle_core::Result<Vec<(String, Tensor)>> {
    let mut tensors = Vec::new();
    for (i, moments) in optimizer.moments.iter().enumerate() {
        for (name, values) in [("first", &moments.first), ("second", &moments.second)] {
            tensors.push((moment_name(name, i), Tensor::from_slice(values, values.len(), &Device::Cpu)?));
        }
    }
    Ok(tensors)
}

/// The optimiser from the tensors of a checkpoint.
pub(crate) fn moments(
    groups: &[(Part, &Group)],
    config: &Config,
    tensors: &HashMap<String, Tensor>,
    step: u64,
) -> Result<AdamW> {
    let mut optimizer = AdamW::new(groups, &config.train);
    optimizer.step = step;
    for (i, Moments { first, second }) in optimizer.moments.iter_mut().enumerate() {
        for (kind, values) in [("first", first), ("second", second)] {
            let name = moment_name(kind, i);
            let stored = tensors.get(&name).with_context(|| format!("tensor `{name}` is missing"))?.to_vec1::<f32>()?;
            ensure!(
                stored.len() == values.len(),
                "`{name}` should have {} values, found {}",
                values.len(),
                stored.len()
            );
            *values = stored;
        }
    }
    Ok(optimizer)
}
