//! Today's layout for a bundle of an earlier version: what other programs load it by, and `logits` in its graphs.
//!
//! Nodes and weights that compute the features stay as they are, so that indexes stay valid and `parity.json` stays true.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use candle_onnx::onnx::ModelProto;
use macrl_bundle::atomic;
use macrl_bundle::bundle::{self, Bundle, FILES, HIDDEN, LOGITS, ModelConfig, POOLED, Provenance};
use macrl_bundle::evaluation::Evaluation;
use macrl_bundle::parameters::EncoderLayout;
use macrl_bundle::probe::{LinearHead, Probe};
use macrl_nn::vit::positions;
use prost::Message;

use crate::error::Failure;
use crate::folder::BundleFolder;
use crate::images::ParityImages;
use crate::run::POSITIONS;
use crate::usage::{Example, usage};
use crate::write::Weights;
use crate::{card, head, parity, share, write};

/// Images that old and new graphs must give the same bits for.
const COMPARED: usize = 9;

/// Rewrites a bundle; one that has today's layout already is written again, to the same.  `probe` names another classifier: a
/// `probe.safetensors`, or a folder with one and perhaps the `evaluation.json` that goes with it.
///
/// # Errors
/// No bundle, one that no export wrote, a probe for other features, or graphs that give other features than before.
pub fn bundle(dir: &Path, probe: Option<&Path>) -> Result<String, Failure> {
    let mut old = Bundle::open(dir).map_err(|why| Failure::Usage(why.to_string()))?;
    if let Some(path) = probe {
        exchange(&mut old, path)?;
    }
    let place = BundleFolder::claim(dir)?;
    let filled = place.fill(|new| fill(&old, new));
    Ok(filled.with_context(|| format!("{} stays as it was", dir.display()))?)
}

/// Puts another probe, and what was measured with it, in the place of the bundle's own.
fn exchange(bundle: &mut Bundle, path: &Path) -> Result<(), Failure> {
    let file = if path.is_dir() { path.join(bundle::PROBE) } else { path.to_path_buf() };
    let usage = |why: String| Failure::Usage(format!("--probe: {why}"));
    let probe = Probe::read(&file).map_err(|why| usage(why.to_string()))?;
    let (expected, found) = (bundle.config.hidden_size, probe.dim());
    if expected != found {
        return Err(usage(format!("{}: expected features of {expected} values, found {found}", file.display())));
    }
    let numbers = Some(path.join(bundle::EVALUATION)).filter(|file| file.is_file());
    let evaluation = numbers.as_deref().map(Evaluation::read).transpose();
    bundle.evaluation = evaluation.map_err(|why| usage(why.to_string()))?;
    let named = || probe.labels.iter().enumerate();
    bundle.config.id2label = named().map(|(i, label)| (i.to_string(), label.clone())).collect();
    bundle.config.label2id = named().map(|(i, label)| (label.clone(), i)).collect();
    bundle.probe = Some(probe);
    Ok(())
}

fn fill(old: &Bundle, new: &Path) -> Result<String> {
    std::fs::create_dir(new.join("onnx")).context("cannot create onnx/")?;
    for name in FILES.iter().filter(|name| old.dir.join(name).is_file()) {
        std::fs::copy(old.dir.join(name), new.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    let classifier = old.probe.as_ref().map(Probe::folded);
    write_probe(old, new)?;
    let graphs = write_graphs(old, new, classifier.as_ref())?;
    write_configuration(old, new, classifier.as_ref())?;
    for name in &graphs {
        compare(old, new, name)?;
    }
    write_card(old, new)?;
    Bundle::open(new).context("the bundle does not read back")?;
    let logits = if classifier.is_some() { "with `logits`" } else { "without classes" };
    Ok(format!("{} graphs {logits}; their features are the same as before, bit for bit", graphs.len()))
}

/// The probe, and the numbers that were measured with it.
fn write_probe(old: &Bundle, new: &Path) -> Result<()> {
    let put = |name: &str, bytes: &[u8]| {
        atomic::write_file(&new.join(name), bytes).with_context(|| format!("cannot write {name}"))
    };
    if let Some(probe) = &old.probe {
        put(bundle::PROBE, &probe.to_bytes()?)?;
    }
    match &old.evaluation {
        Some(evaluation) => put(bundle::EVALUATION, evaluation.to_json().as_bytes()),
        None => match std::fs::remove_file(new.join(bundle::EVALUATION)) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(why).context("cannot remove evaluation.json"),
            _ => Ok(()),
        },
    }
}

/// The graphs with the classifier; returns which there are.
fn write_graphs(old: &Bundle, new: &Path, classifier: Option<&LinearHead>) -> Result<Vec<&'static str>> {
    let read = |name: &str| std::fs::read(old.dir.join(name)).with_context(|| format!("cannot read {name}"));
    let decode = |bytes: &[u8]| ModelProto::decode(bytes).context("not an ONNX model");
    let put = |name: &str, bytes: &[u8]| {
        atomic::write_file(&new.join(name), bytes).with_context(|| format!("cannot write {name}"))
    };
    let before = read(bundle::ONNX)?;
    let mut full = decode(&before).context(bundle::ONNX)?;
    head::set(&mut full, classifier);
    let after = full.encode_to_vec();
    put(bundle::ONNX, &after)?;
    let mut written = vec![bundle::ONNX];
    if old.onnx_fp16.is_some() {
        let mut half = share::whole(&decode(&read(bundle::ONNX_FP16)?)?, &before).context(bundle::ONNX_FP16)?;
        head::set(&mut half, classifier);
        let owner = Path::new(bundle::ONNX).file_name().unwrap_or_default().to_string_lossy();
        put(bundle::ONNX_FP16, &share::halves(&half, &owner, &after).encode_to_vec())?;
        written.push(bundle::ONNX_FP16);
    }
    if old.onnx_int8.is_some() {
        let mut int8 = decode(&read(bundle::ONNX_INT8)?).context(bundle::ONNX_INT8)?;
        head::set(&mut int8, classifier);
        put(bundle::ONNX_INT8, &int8.encode_to_vec())?;
        written.push(bundle::ONNX_INT8);
    }
    Ok(written)
}

/// The weights with the classifier, and the files that describe them.
fn write_configuration(old: &Bundle, new: &Path, classifier: Option<&LinearHead>) -> Result<()> {
    let mut stored = candle_core::safetensors::load(&old.weights, &Device::Cpu)?;
    let encoder = old.config.encoder();
    let shape = (1, encoder.tokens().count(), encoder.width);
    // Earlier versions rounded the positions with the weights, but no graph did.
    let fixed = Tensor::from_vec(positions(encoder.grid(), encoder.width), shape, &Device::Cpu)?;
    let mut tensors = vec![(POSITIONS.to_string(), fixed)];
    for parameter in EncoderLayout::new(&encoder).parameters() {
        let tensor = stored.remove(&parameter.name).with_context(|| format!("no tensor {}", parameter.name))?;
        tensors.push((parameter.name.clone(), tensor));
    }
    let weights = Weights::new(tensors, classifier)?;
    atomic::write_file(&new.join(bundle::WEIGHTS), &weights.bytes).context("cannot write the weights")?;
    let macrl = Provenance {
        weights_sha256: weights.sha256,
        encoder_sha256: Some(old.config.macrl.encoder().to_string()),
        ..old.config.macrl.clone()
    };
    let class = if old.config.id2label.is_empty() { "ViTModel" } else { "ViTForImageClassification" };
    let config = ModelConfig { architectures: vec![class.into()], macrl, ..old.config.clone() };
    write::configuration(new, &config.with_clients(&old.preprocess), &old.preprocess)
}

/// Checks that a new graph gives the old one's features, and the probe's scores of them.
fn compare(old: &Bundle, new: &Path, name: &str) -> Result<()> {
    let values = COMPARED * old.preprocess.values();
    let rgb: Vec<u8> =
        (0..values).map(|i| (127.5 + 127.0 * (0.011 * i as f64).sin() * (0.0003 * i as f64).cos()) as u8).collect();
    let images = ParityImages::normalized(&rgb, &old.preprocess);
    let before = parity::onnx_runtime(&old.dir.join(name), &images, &[HIDDEN, POOLED]).context("the old graph")?;
    let wanted = [HIDDEN, POOLED, LOGITS];
    let wanted = if old.probe.is_some() { &wanted[..] } else { &wanted[..2] };
    let after = parity::onnx_runtime(&new.join(name), &images, wanted).with_context(|| name.to_string())?;
    ensure!(before.pooled == after.pooled && before.hidden == after.hidden, "{name}: other features than before");
    parity::logits(name, &after, old.probe.as_ref())
}

/// The model card with today's sections on files and use; a card that is not ours stays as it is.
fn write_card(old: &Bundle, new: &Path) -> Result<()> {
    let (file, Some(proof)) = (new.join(bundle::README), &old.parity) else { return Ok(()) };
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(()) };
    let example = Example {
        name: old.config.macrl.name.clone(),
        encoder: old.config.encoder(),
        preprocess: old.preprocess.clone(),
        classes: old.probe.is_some(),
    };
    let text = card::with_section(&text, &card::files(old.probe.is_some(), old.evaluation.is_some(), proof));
    let text = card::with_section(&text, &usage(&example));
    let text = card::with_section(&text, &card::numbers(old.evaluation.as_ref(), old.probe.is_some(), None));
    atomic::write_file(&file, text.as_bytes()).context("cannot write README.md")
}
