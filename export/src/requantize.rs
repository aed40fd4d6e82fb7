//! An 8-bit graph for a bundle that is there already: one of an earlier version, or one whose accuracy is to be measured on other images.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use macrl_bundle::atomic;
use macrl_bundle::bundle::{self, Bundle, FILES, HIDDEN, ModelConfig, POOLED, Parity};

use crate::error::Failure;
use crate::folder::BundleFolder;
use crate::int8_accuracy::{EvaluationImages, Votes};
use crate::{card, outlier, parity, write};

/// Images whose features are compared.
const COMPARED: usize = 64;

/// Adds `onnx/model_quantized.onnx` to a bundle, with its proof on a folder's labelled images; an older one is replaced.
///
/// # Errors
/// No bundle, one that no export wrote, or one without `parity.json`; no labelled images in the folder; a graph that does not
/// run.
pub fn bundle(dir: &Path, folder: &Path) -> Result<Parity, Failure> {
    let old = Bundle::open(dir).map_err(|why| Failure::Usage(why.to_string()))?;
    if !folder.is_dir() {
        return Err(Failure::Usage(format!("--data: expected a folder of images at {}, found none", folder.display())));
    }
    let place = BundleFolder::claim(dir)?;
    let filled = place.fill(|new| fill(&old, new, folder));
    Ok(filled.with_context(|| format!("{} stays as it was", dir.display()))?)
}

fn fill(old: &Bundle, new: &Path, folder: &Path) -> Result<Parity> {
    std::fs::create_dir(new.join("onnx")).context("cannot create onnx/")?;
    for name in FILES.iter().filter(|name| old.dir.join(name).is_file()) {
        std::fs::copy(old.dir.join(name), new.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    let mut proof = old.parity.clone().context("it has no parity.json, the proof that this one would stand in")?;
    let (full, int8) = (new.join(bundle::ONNX), new.join(bundle::ONNX_INT8));
    let model = candle_onnx::read_file(&full).context("onnx/model.onnx cannot be read")?;
    let (probe, votes) = (old.probe.as_ref(), votes(old));
    let labelled = EvaluationImages::from_folder(folder, &old.preprocess, probe)?;
    let images = labelled.queries.images.spread(COMPARED);
    let reference = parity::onnx_runtime(&full, &images, &[HIDDEN, POOLED]).context("onnx/model.onnx")?;
    ensure!(!reference.pooled.is_empty(), "onnx/model.onnx gives no features");
    outlier::write_int8(&model, &full, &int8, &images)?;
    proof.extra.remove(write::LEFT_OUT);
    proof.extra.insert("int8_note".into(), parity::INT8_NOTE.into());
    proof.int8 = Some(parity::quantized([&full, &int8], (&reference, &images), Some((&labelled, votes)), probe)?);
    write::keep_if_it_holds(&int8, &mut proof)?;
    bundle::write_json(&new.join(bundle::PARITY), &proof)?;
    let mut config: ModelConfig = bundle::read_json(&new.join(bundle::CONFIG))?;
    config.macrl.files_sha256 = bundle::hashes(new)?;
    bundle::write_json(&new.join(bundle::CONFIG), &config)?;
    if let Ok(text) = std::fs::read_to_string(new.join(bundle::README)) {
        let text = card::with_int8(&text, &proof);
        atomic::write_file(&new.join(bundle::README), text.as_bytes()).context("cannot write README.md")?;
    }
    Bundle::open(new).context("the bundle does not read back")?;
    Ok(proof)
}

/// As the bundle was evaluated, or as evaluations are unless told otherwise.
fn votes(old: &Bundle) -> Votes {
    let protocol = old.evaluation.as_ref().map(|e| (e.protocol.k, e.protocol.temperature));
    let (k, temperature) = protocol.unwrap_or((20, 0.07));
    Votes { k, temperature }
}
