//! The bundle: the folder that export writes and that the server and other tools read.
//!
//! Names and contents follow Hugging Face if it has a convention (`config.json` of a ViT, `preprocessor_config.json`).
//! The same serde types write and read them.  Opening a bundle validates every file; an error names the faulty one.

mod clients;
mod error;
mod files;
mod hashes;
mod model;
mod names;
mod parity;

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::Metadata;

use crate::config::EncoderConfig;
use crate::evaluation::Evaluation;
use crate::onnx;
use crate::owned::MARKER;
use crate::parameters::{EncoderLayout, Parameter};
use crate::preprocess::{Preprocess, PreprocessorConfig};
use crate::probe::Probe;

pub use crate::comparison::Comparison;
pub use error::BundleError;
use files::read;
pub use files::{read_json, write_json};
pub use hashes::hashes;
pub use model::{ModelConfig, Provenance};
pub use names::*;
pub use parity::Parity;

/// A bundle whose files passed every check.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Path of the folder.
    pub dir: PathBuf,
    /// The content of `config.json`: geometry, labels, provenance.
    pub config: ModelConfig,
    /// The evaluation transform, from `preprocessor_config.json`.
    pub preprocess: Preprocess,
    /// The linear probe, if there is one.
    pub probe: Option<Probe>,
    /// The measured accuracies, if there are any.
    pub evaluation: Option<Evaluation>,
    /// The exported graphs' differences from the network, if they were measured.
    pub parity: Option<Parity>,
    /// Path of `model.safetensors`.
    pub weights: PathBuf,
    /// Path of `onnx/model.onnx`.
    pub onnx: PathBuf,
    /// Path of `onnx/model_fp16.onnx`, if it exists.
    pub onnx_fp16: Option<PathBuf>,
    /// `onnx/model_quantized.onnx`, where there is one; whether it can be used, only a session tells.
    pub onnx_int8: Option<PathBuf>,
    /// Files with numbers that `config.json` records no SHA-256 of: those of earlier versions were not recorded.
    pub unverified: Vec<String>,
}

impl Bundle {
    /// Reads and validates a folder.  The ONNX graph is validated fully only when ONNX Runtime opens a session.
    ///
    /// # Errors
    /// Every [`BundleError`] except `Write`.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        if !dir.is_dir() {
            return Err(BundleError::NoFolder(dir.into()));
        }
        if dir.join(COMMIT).join(MARKER).is_file() {
            return Err(BundleError::Unfinished(dir.into()));
        }
        let config = read_config(&dir.join(CONFIG))?;
        let preprocess = read_preprocess(&dir.join(PREPROCESSOR), &config)?;
        check_weights(&dir.join(WEIGHTS), &config.encoder())?;
        check_onnx(&dir.join(ONNX))?;
        let fp16 = dir.join(ONNX_FP16);
        if fp16.exists() {
            check_onnx(&fp16)?;
            let fault = |cause| BundleError::External { path: fp16.clone(), cause };
            onnx::check_external(&fp16).map_err(fault)?;
        }
        let optional = |name: &str| Some(dir.join(name)).filter(|p| p.exists());
        let probe = optional(PROBE).map(|p| read_probe(&p, &config)).transpose()?;
        let evaluation = optional(EVALUATION).map(|p| Evaluation::read(&p)).transpose()?;
        let parity = optional(PARITY).map(|p| read_json(&p)).transpose()?;
        let unverified = hashes::verify(dir, &config.macrl)?;
        Ok(Self {
            dir: dir.into(),
            config,
            preprocess,
            probe,
            evaluation,
            parity,
            weights: dir.join(WEIGHTS),
            onnx: dir.join(ONNX),
            onnx_fp16: fp16.exists().then_some(fp16),
            onnx_int8: optional(ONNX_INT8),
            unverified,
        })
    }
}

fn read_config(path: &Path) -> Result<ModelConfig, BundleError> {
    let config: ModelConfig = read_json(path)?;
    config.check().map_err(|cause| BundleError::Config { path: path.into(), cause })?;
    Ok(config)
}

fn read_preprocess(path: &Path, config: &ModelConfig) -> Result<Preprocess, BundleError> {
    let file: PreprocessorConfig = read_json(path)?;
    let preprocess =
        Preprocess::from_hugging_face(&file).map_err(|cause| BundleError::Config { path: path.into(), cause })?;
    let (expected, found) = (config.image_size, preprocess.image_size);
    if expected != found {
        let cause = format!("expected the size of image_size ({expected}), found {found}");
        return Err(BundleError::Mismatch { path: path.into(), cause });
    }
    Ok(preprocess)
}

fn read_probe(path: &Path, config: &ModelConfig) -> Result<Probe, BundleError> {
    let probe = Probe::read(path)?;
    let mismatch = |cause: String| BundleError::Mismatch { path: path.into(), cause };
    if probe.dim() != config.hidden_size {
        return Err(mismatch(format!(
            "expected features of hidden_size ({}) values, found {}",
            config.hidden_size,
            probe.dim()
        )));
    }
    let (named, classes) = (config.id2label.len(), probe.labels.len());
    if named > 0 && named != classes {
        return Err(mismatch(format!("id2label names {named} classes, the probe has {classes}")));
    }
    Ok(probe)
}

fn check_weights(path: &Path, encoder: &EncoderConfig) -> Result<(), BundleError> {
    let bytes = read(path)?;
    let fault = |cause: String| BundleError::Weights { path: path.into(), cause };
    let (_, header): (usize, Metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| fault(e.to_string()))?;
    SafeTensors::deserialize(&bytes).map_err(|e| fault(e.to_string()))?;
    for Parameter { name, shape, .. } in EncoderLayout::new(encoder).parameters() {
        let found = header.info(name).map(|t| &t.shape);
        if found != Some(shape) {
            let found = found.map_or("none".to_string(), |shape| format!("{shape:?}"));
            return Err(BundleError::Tensor { path: path.into(), name: name.clone(), expected: shape.clone(), found });
        }
    }
    Ok(())
}

/// An ONNX file is a protobuf whose first field is `ir_version` (number 1, a varint): its first byte is 0x08.
fn check_onnx(path: &Path) -> Result<(), BundleError> {
    let bytes = read(path)?;
    match bytes.first() {
        Some(0x08) => Ok(()),
        Some(_) => Err(BundleError::Onnx { path: path.into(), cause: "its first bytes are not ir_version".into() }),
        None => Err(BundleError::Onnx { path: path.into(), cause: "the file is empty".into() }),
    }
}
