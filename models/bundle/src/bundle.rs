//! The folder between training and serving: what export writes, what serve and other tools read.
//!
//! Names and contents are Hugging Face's where it has any (`config.json` of a ViT, `preprocessor_config.json`); the
//! serde types here are both the writer's and the reader's.  Opening validates every file and names the one at fault.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::config::{Config, EncoderConfig, Pooling};
use crate::evaluation::{Evaluation, EvaluationError};
use crate::onnx;
use crate::owned::MARKER;
use crate::parameters::{EncoderLayout, Parameter};
use crate::preprocess::{Preprocess, PreprocessorConfig};
use crate::probe::{Probe, ProbeError};

/// The bundle's format, in `config.json` as `macrl.format`; docs/formats.md says when it changes.
pub const FORMAT: u32 = 1;
/// `config.json`
pub const CONFIG: &str = "config.json";
/// `preprocessor_config.json`
pub const PREPROCESSOR: &str = "preprocessor_config.json";
/// `model.safetensors`
pub const WEIGHTS: &str = "model.safetensors";
/// `onnx/model.onnx`
pub const ONNX: &str = "onnx/model.onnx";
/// `onnx/model_fp16.onnx`
pub const ONNX_FP16: &str = "onnx/model_fp16.onnx";
/// `probe.safetensors`
pub const PROBE: &str = "probe.safetensors";
/// `evaluation.json`
pub const EVALUATION: &str = "evaluation.json";
/// `parity.json`
pub const PARITY: &str = "parity.json";
/// `README.md`
pub const README: &str = "README.md";

/// Every file that an export may write.
pub const FILES: [&str; 10] =
    [CONFIG, PREPROCESSOR, WEIGHTS, ONNX, ONNX_FP16, "onnx/model_quantized.onnx", PROBE, EVALUATION, PARITY, README];
/// Folder in a bundle that holds the next one while its files are moved to their places.
pub const COMMIT: &str = ".macrl-commit";

/// Name of the ONNX graph's input, (B, 3, S, S).
pub const INPUT: &str = "pixel_values";
/// Name of the ONNX graph's first output, (B, 1 + N, D).
pub const HIDDEN: &str = "last_hidden_state";
/// Name of the ONNX graph's second output, (B, D): the pooled feature, unnormalised.
pub const POOLED: &str = "pooler_output";

/// What is wrong with a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The folder itself.
    #[error("there is no bundle at {0}: expected a folder with {CONFIG}, {PREPROCESSOR}, {WEIGHTS} and {ONNX}")]
    NoFolder(PathBuf),
    /// An export was killed while it replaced the files.
    #[error("{0} is half replaced by an export that was interrupted; `macrl-export bundle {dir}` finishes it", dir = .0.display())]
    Unfinished(PathBuf),
    /// A file that every bundle has.
    #[error("{0} is missing from the bundle; `macrl-export bundle` writes it")]
    Missing(PathBuf),
    /// A file that is there and cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {path}: {cause}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Not JSON, or not the entries expected.
    #[error("{path} is not valid: {cause}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Entry, line and column.
        cause: String,
    },
    /// Entries that contradict each other or describe another network.
    #[error("{path}: {cause}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        cause: String,
    },
    /// Truncated, or not safetensors at all.
    #[error("{path} is not a whole safetensors file: {cause}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        cause: String,
    },
    /// A tensor that is missing or has another shape than the configuration's.
    #[error("{path}: tensor {name} should have shape {expected:?}, found {found}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// timm's name.
        name: String,
        /// From `config.json`.
        expected: Vec<usize>,
        /// What is there.
        found: String,
    },
    /// The graph file is empty or not a protobuf of a model.
    #[error("{path} is not an ONNX model: {cause}")]
    Onnx {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        cause: String,
    },
    /// A graph whose weights lie in another file, which is missing or another one by now.
    #[error("{path}: {cause}; `macrl-export bundle` writes both")]
    External {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        cause: String,
    },
    /// The probe.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The evaluation.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// Two files that do not belong together.
    #[error("{path} does not fit {CONFIG}: {cause}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        cause: String,
    },
}

/// `config.json`: the encoder's geometry under the names of Hugging Face's ViT, and where the weights come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// `["ViTModel"]`.
    pub architectures: Vec<String>,
    /// `vit`.
    pub model_type: String,
    /// S, pixels.
    pub image_size: usize,
    /// Pixels.
    pub patch_size: usize,
    /// 3.
    pub num_channels: usize,
    /// D.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// Hidden width of a block's MLP.
    pub intermediate_size: usize,
    /// `gelu`, the exact one.
    pub hidden_act: String,
    /// 1e-6.
    pub layer_norm_eps: f64,
    /// True.
    pub qkv_bias: bool,
    /// What `pooler_output` is.
    pub pooling: Pooling,
    /// Class index, as text, -> name; empty without labels.
    #[serde(default)]
    pub id2label: BTreeMap<String, String>,
    /// The inverse.
    #[serde(default)]
    pub label2id: BTreeMap<String, usize>,
    /// Where the weights come from.
    pub macrl: Provenance,
}

/// Where a bundle's weights come from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// Of the bundle, see [`FORMAT`]; 1 where the file does not say.
    #[serde(default = "first_format")]
    pub format: u32,
    /// Name of the model: the run's folder.
    pub name: String,
    /// Version of the program that wrote the bundle.
    pub version: String,
    /// SHA-256 of `model.safetensors`, hexadecimal.
    pub weights_sha256: String,
    /// The run's resolved configuration, TOML.
    pub config: String,
    /// Optimiser steps behind the weights.
    #[serde(default)]
    pub steps: u64,
    /// More, free.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

fn first_format() -> u32 {
    1
}

impl ModelConfig {
    /// The file's content for a run; `labels` in the order of the probe's rows.
    pub fn new(config: &Config, labels: &[String], provenance: Provenance) -> Self {
        let e = &config.encoder;
        Self {
            architectures: vec!["ViTModel".into()],
            model_type: "vit".into(),
            image_size: e.image_size,
            patch_size: e.patch_size,
            num_channels: 3,
            hidden_size: e.width,
            num_hidden_layers: e.depth,
            num_attention_heads: e.heads,
            intermediate_size: e.width * e.mlp_ratio,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-6,
            qkv_bias: true,
            pooling: config.evaluate.pooling,
            id2label: labels.iter().enumerate().map(|(i, l)| (i.to_string(), l.clone())).collect(),
            label2id: labels.iter().enumerate().map(|(i, l)| (l.clone(), i)).collect(),
            macrl: Provenance { format: FORMAT, ..provenance },
        }
    }

    /// The geometry as the network takes it.
    pub fn encoder(&self) -> EncoderConfig {
        EncoderConfig {
            image_size: self.image_size,
            patch_size: self.patch_size,
            width: self.hidden_size,
            depth: self.num_hidden_layers,
            heads: self.num_attention_heads,
            mlp_ratio: self.intermediate_size / self.hidden_size.max(1),
        }
    }

    /// Class names in index order (C); empty without labels.
    pub fn labels(&self) -> Vec<String> {
        (0..self.id2label.len()).filter_map(|i| self.id2label.get(&i.to_string()).cloned()).collect()
    }

    fn check(&self) -> Result<(), String> {
        let expect = |holds: bool, what: String| if holds { Ok(()) } else { Err(what) };
        let format = self.macrl.format;
        expect(
            (1..=FORMAT).contains(&format),
            format!("macrl.format must be in 1..={FORMAT}, found {format}: use a newer version of this program"),
        )?;
        expect(self.model_type == "vit", format!("model_type must be vit, found {}", self.model_type))?;
        expect(self.num_channels == 3, format!("num_channels must be 3, found {}", self.num_channels))?;
        expect(self.hidden_act == "gelu", format!("hidden_act must be gelu, found {}", self.hidden_act))?;
        expect(
            (self.layer_norm_eps - 1e-6).abs() < 1e-12,
            format!("layer_norm_eps must be 1e-6, found {}", self.layer_norm_eps),
        )?;
        expect(self.qkv_bias, "qkv_bias must be true".into())?;
        let (s, p, d, h) = (self.image_size, self.patch_size, self.hidden_size, self.num_attention_heads);
        expect((1..=4096).contains(&s), format!("image_size must be in 1..=4096, found {s}"))?;
        expect(p > 0 && s.is_multiple_of(p), format!("patch_size must divide image_size ({s}), found {p}"))?;
        expect(
            h > 0 && d > 0 && d.is_multiple_of(h),
            format!("num_attention_heads must divide hidden_size ({d}), found {h}"),
        )?;
        expect(self.num_hidden_layers > 0, "num_hidden_layers must be above 0".into())?;
        let m = self.intermediate_size;
        expect(
            m > 0 && m.is_multiple_of(d),
            format!("intermediate_size must be a multiple of hidden_size ({d}), found {m}"),
        )?;
        expect(self.labels().len() == self.id2label.len(), "id2label must number its classes 0, 1, 2 ...".into())
    }
}

/// How far two implementations of one network are apart, on the same images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Largest absolute difference of any output value.
    pub max_abs_difference: f64,
    /// Smallest cosine between two pooled features of the same image.
    pub min_cosine: f64,
    /// Share of images on which the probe names the same class; `None` without a probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argmax_agreement: Option<f64>,
}

/// `parity.json`: the exported graph against the network it was exported from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parity {
    /// Number of images.
    pub images: usize,
    /// What they were.
    pub source: String,
    /// Candle against ONNX Runtime.
    pub onnxruntime: Comparison,
    /// Candle against candle-onnx's own evaluator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candle_onnx: Option<Comparison>,
    /// Candle (f32) against the half-precision graph in ONNX Runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fp16: Option<Comparison>,
    /// The trained network against itself with the weights of `model.safetensors`, where that holds halves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_fp16: Option<Comparison>,
    /// More, free.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A folder that passed every check.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The folder.
    pub dir: PathBuf,
    /// `config.json`.
    pub config: ModelConfig,
    /// The evaluation transform.
    pub preprocess: Preprocess,
    /// The linear probe, where there is one.
    pub probe: Option<Probe>,
    /// The numbers measured, where they are there.
    pub evaluation: Option<Evaluation>,
    /// The export's proof, where it is there.
    pub parity: Option<Parity>,
    /// `model.safetensors`.
    pub weights: PathBuf,
    /// `onnx/model.onnx`.
    pub onnx: PathBuf,
    /// `onnx/model_fp16.onnx`, where there is one.
    pub onnx_fp16: Option<PathBuf>,
}

impl Bundle {
    /// Reads and validates a folder.  ONNX Runtime has the last word on the graph, when a session is opened.
    ///
    /// # Errors
    /// Every [`BundleError`] but `Write`.
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
        })
    }
}

/// Writes any of the JSON files, indented, atomically.
///
/// # Errors
/// [`BundleError::Write`] or [`BundleError::Json`] (a number that JSON cannot hold).
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), BundleError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| BundleError::Json { path: path.into(), cause: e.to_string() })?;
    atomic::write_file(path, (text + "\n").as_bytes()).map_err(|cause| BundleError::Write { path: path.into(), cause })
}

/// Reads any of the JSON files.
///
/// # Errors
/// [`BundleError::Missing`], `Read` or `Json`.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, BundleError> {
    serde_json::from_slice(&read(path)?).map_err(|e| BundleError::Json { path: path.into(), cause: e.to_string() })
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    std::fs::read(path).map_err(|cause| match cause.kind() {
        std::io::ErrorKind::NotFound => BundleError::Missing(path.into()),
        _ => BundleError::Read { path: path.into(), cause },
    })
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
        let cause = format!("image_size is {expected}, the size here is {found}");
        return Err(BundleError::Mismatch { path: path.into(), cause });
    }
    Ok(preprocess)
}

fn read_probe(path: &Path, config: &ModelConfig) -> Result<Probe, BundleError> {
    let probe = Probe::read(path)?;
    let mismatch = |cause: String| BundleError::Mismatch { path: path.into(), cause };
    if probe.dim() != config.hidden_size {
        return Err(mismatch(format!(
            "hidden_size is {}, the probe's features have {}",
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
