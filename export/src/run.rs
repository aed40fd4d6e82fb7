//! Reads and validates the run that is exported.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use macrl_bundle::bundle;
use macrl_bundle::config::Config;
use macrl_bundle::evaluation::Evaluation;
use macrl_bundle::preprocess::Preprocess;
use macrl_bundle::probe::{LinearHead, Probe};
use macrl_nn::checkpoint;
use macrl_nn::vit::{Encoder, positions};
use safetensors::{Dtype, SafeTensors};

use crate::error::Failure;
use crate::images::ParityImages;
use crate::int8_accuracy::{self, EvaluationImages};

/// Name of the fixed positions among the weights, (1, 1 + N, D).
pub const POSITIONS: &str = "pos_embed";
/// Prefix of the encoder's tensors in a training checkpoint.
const PREFIX: &str = "encoder.";
/// Where `macrl-train finetune` leaves the checkpoints of the pretrained encoder; `--checkpoint finetuned` means these.
const FINETUNED: [&str; 2] = ["finetune/macrl/best.safetensors", "finetune/macrl/last.safetensors"];
/// Results of fine-tuning in a run.
const FINETUNE_RESULT: &str = "finetune.json";

/// A training run with everything that a bundle is made of.
#[derive(Debug)]
pub struct TrainedRun {
    /// Name of the run's folder.
    pub name: String,
    /// The run's resolved configuration.
    pub config: Config,
    /// Optimiser steps after which the weights were saved.
    pub steps: u64,
    /// File name of the checkpoint.
    pub checkpoint: String,
    /// The trained encoder.
    pub encoder: Encoder,
    /// Name of the GPU that the encoder is on; `None`: the CPU.
    pub device: Option<String>,
    /// The encoder's weights under timm's names, and [`POSITIONS`].
    pub weights: HashMap<String, Tensor>,
    /// Images for the parity check.
    pub images: ParityImages,
    /// Labelled images on which the 8-bit graph's accuracy is measured, where the run was evaluated.
    pub evaluation_images: Option<EvaluationImages>,
    /// The linear probe, where the run was evaluated.
    pub probe: Option<Probe>,
    /// The evaluation, where the run was evaluated.
    pub evaluation: Option<Evaluation>,
    /// Results of fine-tuning, where the checkpoint is a fine-tuned network with a head of its own, which then is the probe.
    pub finetuned: Option<serde_json::Value>,
    /// Path of the run's `evaluation.json`.
    pub evaluation_file: Option<PathBuf>,
}

impl TrainedRun {
    /// Moves the encoder to another device, in 32-bit precision.
    ///
    /// # Errors
    /// The device's memory does not suffice.
    pub fn on(self, device: &Device, name: String) -> Result<Self> {
        match device {
            Device::Cpu => Ok(self),
            #[cfg(feature = "cuda")]
            gpu => {
                let encoder = self.encoder.map(|group| group.to_gpu(gpu, macrl_nn::cuda::ScalarType::F32))?;
                Ok(TrainedRun { encoder, device: Some(name), ..self })
            }
            #[cfg(not(feature = "cuda"))]
            other => anyhow::bail!("this build does not compute on {other:?} ({name})"),
        }
    }
}

impl TrainedRun {
    /// Reads a run folder; `checkpoint` is `best`, `last`, `finetuned`, a file, or nothing: the one that was evaluated, else
    /// the best, else the last.
    ///
    /// # Errors
    /// [`Failure::Usage`] where the run or the checkpoint is not there, [`Failure::Work`] where a file is damaged or
    /// does not fit the others.
    pub fn read(run: &Path, checkpoint: Option<&str>) -> Result<Self, Failure> {
        if !run.is_dir() {
            let message = format!("--run: expected a run's folder at {}, found none", run.display());
            return Err(Failure::Usage(message));
        }
        let evaluation_file = existing(run.join("evaluation.json"));
        let evaluation = evaluation_file.as_deref().map(Evaluation::read).transpose().map_err(anyhow::Error::from)?;
        let path = checkpoint_path(run, checkpoint, evaluation.as_ref())?;
        Ok(Self::read_files(run, &path, evaluation, evaluation_file)?)
    }

    fn read_files(
        run: &Path,
        path: &Path,
        evaluation: Option<Evaluation>,
        evaluation_file: Option<PathBuf>,
    ) -> Result<Self> {
        let checkpoint = checkpoint::load(path)?;
        let config = checkpoint.config;
        let encoder = Encoder::from_tensors(&config.encoder, &checkpoint.tensors, PREFIX)
            .with_context(|| format!("checkpoint {}", path.display()))?;
        let note = |key: &str| checkpoint.notes.get(key).and_then(|v| v.parse().ok());
        let steps = note("steps").or_else(|| note("step")).unwrap_or(0);
        let old_probe = existing(run.join("probe.safetensors")).as_deref().map(Probe::read).transpose()?;
        let head = own_head(&checkpoint.tensors, &checkpoint.notes, old_probe.as_ref())
            .with_context(|| format!("checkpoint {}", path.display()))?;
        let mut evaluation_images = read_evaluation_images(run, &config)?;
        let is_finetuned = head.is_some();
        let (probe, evaluation, evaluation_file) = match head {
            // What was measured of the frozen encoder does not describe other weights.
            Some(head) => {
                let same = old_probe.as_ref().is_some_and(|probe| probe.labels == head.labels);
                evaluation_images = evaluation_images.filter(|_| same);
                (Some(head), None, None)
            }
            None => {
                check_evaluation(run, path, steps, &config, evaluation.as_ref(), old_probe.as_ref())?;
                (old_probe, evaluation, evaluation_file)
            }
        };
        let shown = path.strip_prefix(run).ok().filter(|_| is_finetuned);
        Ok(Self {
            name: run_name(run),
            steps,
            checkpoint: shown.map_or_else(|| file_name(path), |path| path.display().to_string()),
            finetuned: is_finetuned.then(|| finetune_result(run)),
            weights: weights(&encoder, &config)?,
            encoder,
            device: None,
            images: read_images(&run.join("samples.safetensors"), &config)?,
            evaluation_images,
            config,
            probe,
            evaluation,
            evaluation_file,
        })
    }

    /// Class names in label order (C); empty without a probe.
    pub fn labels(&self) -> &[String] {
        self.probe.as_ref().map_or(&[], |p| &p.labels)
    }

    /// The classifier that other programs get; `None` without a probe.
    pub fn head(&self) -> Option<LinearHead> {
        self.probe.as_ref().map(Probe::folded)
    }
}

/// The encoder's weights under timm's names, the fixed positions among them.
///
/// # Errors
/// A tensor operation fails.
pub fn weights(encoder: &Encoder, config: &Config) -> Result<HashMap<String, Tensor>> {
    let (e, d) = (&config.encoder, config.encoder.width);
    let positions = Tensor::from_vec(positions(e.grid(), d), (1, 1 + e.patches(), d), &Device::Cpu)?;
    Ok(encoder.named()?.into_iter().chain([(POSITIONS.to_string(), positions)]).collect())
}

fn checkpoint_path(run: &Path, wanted: Option<&str>, evaluation: Option<&Evaluation>) -> Result<PathBuf, Failure> {
    let named = |name: &str| run.join("checkpoints").join(format!("{name}.safetensors"));
    let evaluated = evaluation.and_then(|e| e.protocol.extra.get("checkpoint")).and_then(|c| c.as_str());
    let candidates = match (wanted, evaluated) {
        (Some("finetuned"), _) => FINETUNED.map(|name| run.join(name)).to_vec(),
        (Some(name @ ("best" | "last")), _) => vec![named(name)],
        (Some(path), _) => vec![PathBuf::from(path)],
        (None, Some(name @ ("best" | "last"))) => vec![named(name), named("best"), named("last")],
        (None, _) => vec![named("best"), named("last")],
    };
    let missing = || {
        let expected: Vec<String> = candidates.iter().map(|c| c.display().to_string()).collect();
        Failure::Usage(format!("expected a checkpoint at {}, found none", expected.join(" or ")))
    };
    candidates.iter().find(|c| c.is_file()).cloned().ok_or_else(missing)
}

/// A probe and numbers that belong to other weights must not travel with these.
fn check_evaluation(
    run: &Path,
    checkpoint: &Path,
    steps: u64,
    config: &Config,
    evaluation: Option<&Evaluation>,
    probe: Option<&Probe>,
) -> Result<()> {
    let (run, checkpoint) = (run.display(), checkpoint.display());
    let again = format!("run `macrl-train evaluate --run {run}` again");
    if let Some(evaluation) = evaluation {
        let evaluated = evaluation.protocol.extra.get("steps").and_then(|s| s.as_u64());
        ensure!(
            evaluated.is_none_or(|e| e == steps),
            "{run}/evaluation.json was measured after {} steps, {checkpoint} has {steps}: export the checkpoint that \
             was evaluated, or {again}",
            evaluated.unwrap_or(0)
        );
        let (expected, found) = (config.evaluate.pooling, evaluation.protocol.pooling);
        ensure!(
            expected == found,
            "{run}/evaluation.json was measured with pooling {found:?}, {checkpoint} has {expected:?}: {again}"
        );
    }
    if let Some(probe) = probe {
        let (expected, found) = (config.encoder.width, probe.dim());
        ensure!(
            expected == found,
            "{run}/probe.safetensors is for features of {found} values, not {expected}: {again}"
        );
    }
    Ok(())
}

/// The head of a fine-tuned network, as a probe without standardisation; `None` in a checkpoint of pretraining.
///
/// Classes have the names that fine-tuning noted.  Earlier versions noted none: the run's probe names as many, or numbers do.
fn own_head(
    tensors: &HashMap<String, Tensor>,
    notes: &HashMap<String, String>,
    old: Option<&Probe>,
) -> Result<Option<Probe>> {
    let [Some(weight), Some(bias)] = bundle::HEAD.map(|name| tensors.get(name)) else { return Ok(None) };
    let (classes, dim) = weight.dims2().context("head.weight")?;
    let noted = notes.get("labels").and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
    let fitting = |labels: &Vec<String>| labels.len() == classes;
    let labels = noted.filter(fitting).or_else(|| old.map(|probe| probe.labels.clone()).filter(fitting));
    let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let head = Probe {
        weight: values(weight)?,
        bias: values(bias)?,
        mean: vec![0.0; dim],
        std: vec![1.0; dim],
        labels: labels.unwrap_or_else(|| (0..classes).map(|i| i.to_string()).collect()),
    };
    head.to_bytes().context("its head")?; // checks shapes and values
    Ok(Some(head))
}

/// `finetune.json`, or null.
fn finetune_result(run: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(run.join(FINETUNE_RESULT)).ok();
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// Runs that were evaluated by an earlier version have none.
fn read_evaluation_images(run: &Path, config: &Config) -> Result<Option<EvaluationImages>> {
    let file = existing(run.join(int8_accuracy::FILE));
    file.map(|file| EvaluationImages::read(&file, &Preprocess::from_config(config))).transpose()
}

/// `samples.safetensors`: `pixels` u8 (n, S, S, 3), held-out images after the evaluation transform.
fn read_images(path: &Path, config: &Config) -> Result<ParityImages> {
    let name = path.display();
    let bytes = macrl_bundle::regular::read(path).with_context(|| {
        format!("cannot read {name}, the run's held-out images for the parity proof (`macrl-train pretrain` writes it)")
    })?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| format!("{name} is not a whole safetensors file"))?;
    let view = file.tensor("pixels").with_context(|| format!("{name} has no tensor `pixels`"))?;
    let size = config.encoder.image_size;
    let fits = view.dtype() == Dtype::U8 && matches!(view.shape(), &[n, h, w, 3] if n > 0 && h == size && w == size);
    ensure!(fits, "{name}: `pixels` should be U8 (n, {size}, {size}, 3), found {:?} {:?}", view.dtype(), view.shape());
    Ok(ParityImages::normalized(view.data(), &Preprocess::from_config(config)))
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.exists().then_some(path)
}

fn run_name(run: &Path) -> String {
    // `--run .` has no file name of its own.
    let full = run.canonicalize().unwrap_or_else(|_| run.to_path_buf());
    file_name(&full)
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}
