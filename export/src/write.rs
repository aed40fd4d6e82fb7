//! Puts an export in its place: first written beside it, then proven, then renamed.  What fails leaves nothing behind.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_onnx::onnx::ModelProto;
use macrl_bundle::atomic;
use macrl_bundle::atomic::Temporary;
use macrl_bundle::bundle::{self, Bundle, ModelConfig, Parity, Provenance};
use macrl_bundle::preprocess::Preprocess;
use macrl_bundle::probe::LinearHead;
use macrl_bundle::regular;
use macrl_nn::checkpoint;
use macrl_nn::vit::Encoder;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::card;
use crate::error::Failure;
use crate::folder::BundleFolder;
use crate::graph::{Element, PRODUCER, Precision};
use crate::parity::{self, Exported};
use crate::run::{POSITIONS, TrainedRun};
use crate::{head, onnx, outlier, share};

/// In the proof: what was measured of an 8-bit graph that is not in the bundle.
pub const LEFT_OUT: &str = "int8_left_out";

/// The encoder as ONNX graphs.
#[derive(Debug, Clone)]
pub struct Graphs {
    /// The 32-bit graph.
    pub full: ModelProto,
    /// The graph with half-precision arithmetic.
    pub half: ModelProto,
}

impl Graphs {
    /// Builds both graphs from a run's weights, with `logits` where there is a probe.  With `weights` in halves, the weights are rounded first; the 32-bit graph stores
    /// them as halves and widens them.
    ///
    /// # Errors
    /// A tensor that is missing or misshapen.
    pub fn build(source: &TrainedRun, weights: Element) -> Result<Self> {
        let mut full = graph(source, Precision { arithmetic: Element::F32, weights })?;
        let mut half = graph(source, Element::F16)?;
        let classifier = source.head();
        [&mut full, &mut half].into_iter().for_each(|graph| head::set(graph, classifier.as_ref()));
        Ok(Self { full, half })
    }
}

/// One graph from a run's weights; its metadata carry the run's configuration.
///
/// # Errors
/// A tensor that is missing or misshapen.
pub fn graph(source: &TrainedRun, precision: impl Into<Precision>) -> Result<ModelProto> {
    let (config, precision) = (&source.config, precision.into());
    let list = |values: &[f32; 3]| format!("[{}, {}, {}]", values[0], values[1], values[2]);
    let metadata = [
        ("name", source.name.clone()),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("steps", source.steps.to_string()),
        ("pooling", card::pooling_name(config.evaluate.pooling).into()),
        ("image_mean", list(&config.data.mean)),
        ("image_std", list(&config.data.std)),
        ("config", config.to_toml()),
    ];
    let rounded;
    let weights = match precision {
        Precision { arithmetic: Element::F32, weights: Element::F16 } => {
            rounded = through_halves(&source.weights)?;
            &rounded
        }
        _ => &source.weights,
    };
    onnx::build(&config.encoder, config.evaluate.pooling, weights, precision, &metadata)
}

/// The weights rounded to halves, 32-bit again; the positions are no weights, every reader computes them.
fn through_halves(weights: &HashMap<String, Tensor>) -> Result<HashMap<String, Tensor>> {
    let round = |(name, tensor): (&String, &Tensor)| {
        let rounded =
            if name == POSITIONS { tensor.clone() } else { tensor.to_dtype(DType::F16)?.to_dtype(DType::F32)? };
        Ok((name.clone(), rounded))
    };
    weights.iter().map(round).collect()
}

/// Writes the encoder alone, once it is proven.
///
/// # Errors
/// A destination without its folder, or with a file that no export wrote; parity beyond its limits; an error of the file system.
pub fn encoder(destination: &Path, source: &TrainedRun, graph: &ModelProto) -> Result<Parity, Failure> {
    let folder = match destination.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        let message = format!("cannot write {}: there is no folder {}", destination.display(), folder.display());
        return Err(Failure::Usage(message));
    }
    check_file(destination)?;
    let staged = Temporary::beside(destination);
    let cannot_write = || format!("cannot write {}", destination.display());
    atomic::write_file(staged.path(), &graph.encode_to_vec()).with_context(cannot_write)?;
    let proof = parity::check(
        source,
        &Exported { graph: staged.path(), half: None, int8: None, rounded: None, logits: false },
    )?;
    staged.persist().with_context(cannot_write)?;
    Ok(proof)
}

/// Checks that an existing file is one of our graphs.
fn check_file(destination: &Path) -> Result<(), Failure> {
    let ours = match regular::read(destination) {
        Ok(bytes) => ModelProto::decode(bytes.as_slice()).is_ok_and(|model| model.producer_name == PRODUCER),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    };
    if ours {
        return Ok(());
    }
    let file = destination.display();
    Err(Failure::Usage(format!(
        "{file} exists and was not written by macrl-export: name another file, or move it away"
    )))
}

/// Options of a bundle.
#[derive(Debug, Clone)]
pub struct BundleOptions {
    /// Precision of the weights in `model.safetensors`; the same as for [`Graphs::build`].
    pub weights: Element,
    /// Markdown for the model card.
    pub notes: Option<String>,
}

impl Default for BundleOptions {
    /// The trained weights without rounding, and no notes.
    fn default() -> Self {
        Self { weights: Element::F32, notes: None }
    }
}

/// Writes a bundle, after the parity check and after reading it back.
///
/// # Errors
/// A destination with files that no export wrote; parity beyond its limits; an error of the file system.
pub fn bundle(
    destination: &Path,
    source: &TrainedRun,
    graphs: &Graphs,
    options: &BundleOptions,
) -> Result<Parity, Failure> {
    let place = BundleFolder::claim(destination)?;
    let filled = place.fill(|dir| fill(dir, source, graphs, options));
    Ok(filled.with_context(|| format!("no bundle was written to {}", destination.display()))?)
}

fn fill(dir: &Path, source: &TrainedRun, graphs: &Graphs, options: &BundleOptions) -> Result<Parity> {
    let put = |name: &str, bytes: &[u8]| {
        atomic::write_file(&dir.join(name), bytes).with_context(|| format!("cannot write {name}"))
    };
    std::fs::create_dir(dir.join("onnx")).context("cannot create onnx/")?;
    let full = graphs.full.encode_to_vec();
    put(bundle::ONNX, &full)?;
    let owner = Path::new(bundle::ONNX).file_name().unwrap_or_default().to_string_lossy();
    put(bundle::ONNX_FP16, &share::halves(&graphs.half, &owner, &full).encode_to_vec())?;
    let tensors = stored_weights(source, options.weights)?;
    let (graph, half) = (dir.join(bundle::ONNX), dir.join(bundle::ONNX_FP16));
    let rounded = (options.weights == Element::F16).then(|| rounded(source, &tensors)).transpose()?;
    let int8 = dir.join(bundle::ONNX_INT8);
    outlier::write_int8(&graphs.full, &graph, &int8, &source.images)?;
    let exported = Exported {
        graph: &graph,
        half: Some(&half),
        int8: Some(&int8),
        rounded: rounded.as_ref(),
        logits: source.probe.is_some(),
    };
    let mut proof = parity::check(source, &exported)?;
    keep_if_it_holds(&int8, &mut proof)?;

    let weights = Weights::new(tensors, source.head().as_ref())?;
    put(bundle::WEIGHTS, &weights.bytes)?;
    if let Some(probe) = &source.probe {
        put(bundle::PROBE, &probe.to_bytes()?)?;
    }
    if let Some(file) = &source.evaluation_file {
        put(bundle::EVALUATION, &regular::read(file).with_context(|| format!("cannot read {}", file.display()))?)?;
    }
    bundle::write_json(&dir.join(bundle::PARITY), &proof)?;
    let config = ModelConfig::new(&source.config, source.labels(), provenance(source, &weights));
    configuration(dir, &config, &Preprocess::from_config(&source.config))?;
    put(bundle::README, card::render(source, &proof, options.notes.as_deref()).as_bytes())?;
    Bundle::open(dir).context("the bundle does not read back")?;
    Ok(proof)
}

/// Writes the files by which programs find out what the bundle is.
///
/// # Errors
/// The file system's.
pub(crate) fn configuration(dir: &Path, config: &ModelConfig, preprocess: &Preprocess) -> Result<()> {
    let mut config = config.clone();
    config.macrl.files_sha256 = bundle::hashes(dir)?;
    bundle::write_json(&dir.join(bundle::CONFIG), &config)?;
    bundle::write_json(&dir.join(bundle::TRANSFORMERS), &config.transformers(preprocess))?;
    bundle::write_json(&dir.join(bundle::PREPROCESSOR), &preprocess.to_hugging_face())?;
    Ok(())
}

/// The content of `model.safetensors`.
pub(crate) struct Weights {
    /// The file.
    pub(crate) bytes: Vec<u8>,
    /// SHA-256 of the file, hexadecimal.
    pub(crate) sha256: String,
    /// SHA-256 of the file without a classifier, hexadecimal.
    pub(crate) encoder_sha256: String,
}

impl Weights {
    /// The encoder's tensors as they are, and a classifier in 32 bits.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub(crate) fn new(mut tensors: Vec<(String, Tensor)>, head: Option<&LinearHead>) -> Result<Self> {
        // PyTorch readers expect this note.
        let file = |tensors: &[(String, Tensor)]| {
            checkpoint::to_bytes(tensors, HashMap::from([("format".to_string(), "pt".to_string())]))
        };
        let mut bytes = file(&tensors)?;
        let encoder_sha256 = hexadecimal(&bytes);
        if let Some(head) = head {
            let (classes, [weight, bias]) = (head.bias.len(), bundle::HEAD);
            let shape = (classes, head.weight.len() / classes.max(1));
            tensors.push((weight.into(), Tensor::from_slice(&head.weight, shape, &Device::Cpu)?));
            tensors.push((bias.into(), Tensor::from_slice(&head.bias, classes, &Device::Cpu)?));
            bytes = file(&tensors)?;
        }
        Ok(Self { sha256: hexadecimal(&bytes), bytes, encoder_sha256 })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// An 8-bit graph that costs too much is left out, and the proof says so: whoever finds one may use it.
///
/// # Errors
/// The file cannot be removed.
pub(crate) fn keep_if_it_holds(int8: &Path, proof: &mut Parity) -> Result<()> {
    let Some(measured) = proof.int8.take_if(|measured| !measured.holds()) else { return Ok(()) };
    std::fs::remove_file(int8).with_context(|| format!("cannot remove {}", int8.display()))?;
    proof.extra.insert(LEFT_OUT.into(), serde_json::to_value(&measured)?);
    Ok(())
}

/// The tensors of `model.safetensors`: timm's names in the network's order, positions first.
fn stored_weights(source: &TrainedRun, precision: Element) -> Result<Vec<(String, Tensor)>> {
    let positions = source.weights.get(POSITIONS).map(|t| (POSITIONS.to_string(), t.clone()));
    let all = positions.into_iter().chain(source.encoder.named()?);
    // Positions are no weights: other programs read them from here and must have the same as ours, which computes them.
    let stored = |name: &str| if name == POSITIONS { DType::F32 } else { precision.dtype() };
    all.map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(stored(&name))?))).collect()
}

/// The network with the weights as stored.
fn rounded(source: &TrainedRun, tensors: &[(String, Tensor)]) -> Result<Encoder> {
    Ok(Encoder::from_tensors(&source.config.encoder, &tensors.iter().cloned().collect(), "")?)
}

fn provenance(source: &TrainedRun, weights: &Weights) -> Provenance {
    let mut extra = serde_json::Map::new();
    extra.insert("checkpoint".into(), source.checkpoint.clone().into());
    if let Some(result) = &source.finetuned {
        extra.insert("finetune".into(), result.clone());
    }
    Provenance {
        format: bundle::FORMAT,
        name: source.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        weights_sha256: weights.sha256.clone(),
        encoder_sha256: Some(weights.encoder_sha256.clone()),
        config: source.config.to_toml(),
        steps: source.steps,
        files_sha256: Default::default(),
        extra,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_that_costs_too_much_is_left_out() {
        let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let proof = |min_cosine: f64| -> Parity {
            let features = serde_json::json!({ "max_abs_difference": 0.1, "min_cosine": min_cosine });
            let proof = serde_json::json!({
                "images": 8, "source": "a test", "onnxruntime": features, "int8": { "features": features },
            });
            serde_json::from_value(proof).unwrap()
        };
        let (mut good, mut bad) = (proof(0.9999), proof(0.9));
        keep_if_it_holds(&file, &mut good).unwrap();
        assert!(file.exists() && good.int8.is_some() && !good.extra.contains_key(LEFT_OUT));
        keep_if_it_holds(&file, &mut bad).unwrap();
        assert!(!file.exists() && bad.int8.is_none() && bad.extra[LEFT_OUT]["features"]["min_cosine"] == 0.9);
    }
}
