//! Checks that an exported graph computes the same as the trained network: real images pass through Candle, ONNX Runtime and
//! candle-onnx's evaluator, and the outputs are compared.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use macrl_bundle::bundle::{Comparison, HIDDEN, LOGITS, POOLED, Parity};
use macrl_bundle::probe::Probe;
use macrl_bundle::quantized::Quantized;
use macrl_nn::vit::Encoder;
use serde_json::json;

use crate::images::ParityImages;
use crate::int8_accuracy::{EvaluationImages, Votes};
pub use crate::outputs::{Outputs, candle, candle_onnx, onnx_runtime};
use crate::outputs::{argmax, cosine};
use crate::run::TrainedRun;

/// Largest absolute difference allowed between 32-bit outputs.
pub const MAX_DIFFERENCE: f64 = 1e-4;
/// Smallest cosine allowed between 32-bit pooled features.
pub const MIN_COSINE: f64 = 0.99999;
/// Smallest cosine allowed between a half-precision pooled feature and the 32-bit one.
pub const MIN_COSINE_HALF: f64 = 0.999;

/// Largest difference allowed between a graph's `logits` and the probe's scores of the graph's own feature, relative to 1 plus
/// the largest score.
pub const MAX_LOGITS: f64 = 1e-4;

/// The outputs that are compared: all tokens, the pooled feature, and the scores of a bundle with a probe.
const ALL: [&str; 3] = [HIDDEN, POOLED, LOGITS];
/// [`ALL`] of a bundle without a probe.
const BOTH: [&str; 2] = [HIDDEN, POOLED];

/// Compares `other` with `reference`; `width` is D.
///
/// # Errors
/// Outputs of different sizes.
pub fn compare(reference: &Outputs, other: &Outputs, width: usize, probe: Option<&Probe>) -> Result<Comparison> {
    let sizes = |o: &Outputs| (o.hidden.len(), o.pooled.len());
    let (expected, found) = (sizes(reference), sizes(other));
    ensure!(expected == found, "expected outputs of {expected:?} values, found {found:?}");
    let rows = || reference.pooled.chunks_exact(width).zip(other.pooled.chunks_exact(width));
    let agreement = |probe: &Probe| {
        let same = rows().filter(|(a, b)| argmax(&probe.logits(a)) == argmax(&probe.logits(b))).count();
        same as f64 / rows().count() as f64
    };
    Ok(Comparison {
        max_abs_difference: difference(reference, other),
        min_cosine: rows().map(|(a, b)| cosine(a, b)).fold(1.0, worse_cosine),
        argmax_agreement: probe.map(agreement),
    })
}

/// The exports that are compared with the trained network.
#[derive(Debug, Clone, Copy)]
pub struct Exported<'a> {
    /// File of the 32-bit graph.
    pub graph: &'a Path,
    /// File of the half-precision graph.
    pub half: Option<&'a Path>,
    /// File of the 8-bit graph.
    pub int8: Option<&'a Path>,
    /// The network with the stored weights, where they were rounded.
    pub rounded: Option<&'a Encoder>,
    /// Whether the graphs have the output `logits`.
    pub logits: bool,
}

/// Compares the exports with the trained network, and applies the limits.
///
/// # Errors
/// A graph that does not run, or one line with the numbers of the first comparison that is beyond its limits.
pub fn check(source: &TrainedRun, exported: &Exported) -> Result<Parity> {
    let (images, pooling) = (&source.images, source.config.evaluate.pooling);
    let (width, probe) = (source.config.encoder.width, source.probe.as_ref());
    let trained = candle(&source.encoder, images, pooling).context("Candle does not run the encoder")?;
    // The graphs hold the stored weights.  Comparing with a network of the same weights separates the evaluator's errors from
    // those of rounding.
    let stored = exported.rounded.map(|encoder| candle(encoder, images, pooling)).transpose()?;
    let reference = stored.as_ref().unwrap_or(&trained);
    let against = |name: &str, outputs: Outputs, limits: &Limits| {
        let comparison = compare(reference, &outputs, width, probe).context(name.to_string())?;
        limits.check(name, images.count, &comparison)?;
        Ok::<_, anyhow::Error>(comparison)
    };
    let wanted = if exported.logits { &ALL[..] } else { &BOTH };
    let run = |name: &str, graph: &Path| {
        let outputs = onnx_runtime(graph, images, wanted).context(name.to_string())?;
        logits(name, &outputs, probe)?;
        Ok::<_, anyhow::Error>(outputs)
    };
    let onnxruntime = against("ONNX Runtime", run("ONNX Runtime", exported.graph)?, &FULL)?;
    let model = candle_onnx::read_file(exported.graph).context("the graph cannot be read back")?;
    let candle_onnx = against("candle-onnx", candle_onnx(&model, images)?, &FULL)?;
    let half = |graph| {
        let name = "ONNX Runtime in half precision";
        against(name, run(name, graph)?, &HALF)
    };
    let rounding = |stored: &Outputs| {
        let comparison = compare(&trained, stored, width, probe)?;
        HALF.check("half-precision weights", images.count, &comparison)?;
        Ok::<_, anyhow::Error>(comparison)
    };
    let votes = Votes { k: source.config.evaluate.k, temperature: source.config.evaluate.temperature };
    let labelled = source.evaluation_images.as_ref().map(|labelled| (labelled, votes));
    let int8 = |graph| quantized([exported.graph, graph], (reference, images), labelled, probe);
    Ok(Parity {
        images: images.count,
        source: format!("held-out images of the run {} (samples.safetensors)", source.name),
        onnxruntime,
        candle_onnx: Some(candle_onnx),
        fp16: exported.half.map(half).transpose()?,
        weights_fp16: stored.as_ref().map(rounding).transpose()?,
        int8: exported.int8.map(int8).transpose()?,
        extra: notes(),
    })
}

/// The 8-bit graph's outputs on n images against `reference`, and its accuracy where there are labelled images.
///
/// # Errors
/// A graph that does not run.
pub fn quantized(
    graphs: [&Path; 2],
    (reference, images): (&Outputs, &ParityImages),
    labelled: Option<(&EvaluationImages, Votes)>,
    probe: Option<&Probe>,
) -> Result<Quantized> {
    let [full, int8] = graphs;
    let width = reference.pooled.len() / images.count.max(1);
    let name = "ONNX Runtime in 8 bits";
    let outputs = onnx_runtime(int8, images, &BOTH).context(name)?;
    let features = compare(reference, &outputs, width, probe).context(name)?;
    let accuracy = labelled.map(|(labelled, votes)| labelled.accuracy(full, int8, votes, probe)).transpose()?;
    Ok(Quantized { features, accuracy })
}

/// Checks that a graph's `logits` are the probe's scores of its features; nothing without either.
///
/// # Errors
/// One line with the largest difference beyond [`MAX_LOGITS`].
pub fn logits(name: &str, outputs: &Outputs, probe: Option<&Probe>) -> Result<()> {
    let Some(probe) = probe.filter(|_| !outputs.logits.is_empty()) else { return Ok(()) };
    let rows = outputs.pooled.chunks_exact(probe.dim()).zip(outputs.logits.chunks_exact(probe.classes()));
    for (feature, found) in rows {
        let expected = probe.logits(feature);
        let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let beyond = |(a, b): (&f32, &f32)| {
            let difference = f64::from((a - b).abs()) / (1.0 + f64::from(largest));
            // False for NaN, too.
            if difference <= MAX_LOGITS { None } else { Some(difference) }
        };
        if let Some(difference) = expected.iter().zip(found).find_map(beyond) {
            bail!(
                "parity failed: {name}: `logits` differ from the probe's scores by {difference:.1e} (at most {MAX_LOGITS:.0e}, relative)"
            );
        }
    }
    Ok(())
}

struct Limits {
    difference: f64,
    cosine: f64,
    argmax: bool,
}

const FULL: Limits = Limits { difference: MAX_DIFFERENCE, cosine: MIN_COSINE, argmax: true };
/// Only the direction of half-precision features is limited: a near tie of two classes may be decided either way.
const HALF: Limits = Limits { difference: f64::INFINITY, cosine: MIN_COSINE_HALF, argmax: false };

impl Limits {
    fn check(&self, name: &str, images: usize, c: &Comparison) -> Result<()> {
        let agreement = c.argmax_agreement.unwrap_or(1.0);
        // NaN must exceed every limit, so each comparison is written to be false for NaN.
        let within = c.max_abs_difference <= self.difference
            && c.min_cosine >= self.cosine
            && (!self.argmax || agreement >= 1.0);
        if within && c.max_abs_difference.is_finite() {
            return Ok(());
        }
        bail!(
            "parity failed: Candle against {name} on {images} images: largest difference {:.3e} (at most {:.0e}), \
             smallest cosine {:.7} (at least {}), same class on {:.1} %{}",
            c.max_abs_difference,
            self.difference,
            c.min_cosine,
            self.cosine,
            100.0 * agreement,
            if self.argmax { " (100 expected)" } else { "" }
        )
    }
}

fn notes() -> serde_json::Map<String, serde_json::Value> {
    let notes = json!({
        "compared": "every value of last_hidden_state and pooler_output; cosine and argmax of pooler_output",
        "limits": {
            "max_abs_difference": MAX_DIFFERENCE, "min_cosine": MIN_COSINE, "argmax_agreement": 1.0,
            "fp16_min_cosine": MIN_COSINE_HALF, "int8_min_cosine": Quantized::MIN_COSINE, "int8_max_loss": Quantized::MAX_LOSS,
        },
        "candle_onnx_note": "onnx/model.onnx itself, with each LayerNormalization node replaced by its definition in \
            basic operators on the same weights: candle-onnx's evaluator lacks that one operator",
        "weights_fp16_note": "where weights are stored as halves, the other rows compare with the network of the rounded \
            weights, and this one says what the rounding changed",
        "fp16_note": "weights and activations are halves, inputs and outputs 32-bit; on a CPU ONNX Runtime computes \
            most of its operators in 32-bit",
        "int8_note": INT8_NOTE,
        "jpeg_note": "a JPEG that is more than twice as large as needed is decoded at 1/2, 1/4 or 1/8 of its size, unless \
            preprocessor_config.json says jpeg_decoding: exact",
    });
    notes.as_object().cloned().unwrap_or_default()
}

/// What a reader of the 8-bit numbers must know.
pub const INT8_NOTE: &str = "matrix products in integers, all but at most one: weights in 7 bits, a scale per column; activations in 8 bits, a scale \
    per batch, so that an image's feature depends a little on the others of its batch (measured in batches of 8); \
    int8_max_loss may be exceeded by two standard errors of the difference";

/// The largest absolute difference; NaN if any difference is.
fn difference(a: &Outputs, b: &Outputs) -> f64 {
    let pairs = a.hidden.iter().zip(&b.hidden).chain(a.pooled.iter().zip(&b.pooled));
    pairs.map(|(x, y)| f64::from((x - y).abs())).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

fn worse_cosine(worst: f64, cosine: f64) -> f64 {
    if cosine < worst || cosine.is_nan() { cosine } else { worst }
}
