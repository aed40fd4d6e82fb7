//! Outputs of a network for the parity images: in Candle, ONNX Runtime and candle-onnx's evaluator.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Tensor;
use candle_onnx::onnx::ModelProto;
use macrl_bundle::bundle::{HIDDEN, INPUT, LOGITS, POOLED};
use macrl_bundle::config::Pooling;
use macrl_nn::ops::tokens::pool;
use macrl_nn::vit::Encoder;
use macrl_runtime::{Device, SessionOptions};
use ort::session::{OutputSelector, RunOptions};
use ort::value::TensorRef;

use crate::expand;
use crate::images::ParityImages;

/// Images in one call; candle-onnx keeps every intermediate value in memory.
const BATCH: usize = 8;

/// Outputs of a network for n images.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// `last_hidden_state` (n, 1 + N, D).
    pub hidden: Vec<f32>,
    /// `pooler_output` (n, D).
    pub pooled: Vec<f32>,
    /// `logits` (n, C), if they were wanted of a graph.
    pub logits: Vec<f32>,
}

impl Outputs {
    fn push(&mut self, hidden: &Tensor, pooled: &Tensor) -> candle_core::Result<()> {
        self.hidden.extend(hidden.flatten_all()?.to_vec1::<f32>()?);
        self.pooled.extend(pooled.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }
}

/// Outputs of a network in Candle: the trained one, or one with the stored weights.
///
/// # Errors
/// A tensor operation fails.
pub fn candle(encoder: &Encoder, images: &ParityImages, pooling: Pooling) -> Result<Outputs> {
    let mut outputs = Outputs::default();
    for (from, to) in batches(images.count) {
        let hidden = encoder.forward_pixels(&images.batch(from, to)?)?;
        let hidden = hidden.to_device(&candle_core::Device::Cpu)?;
        outputs.push(&hidden, &pool(&hidden, pooling)?)?;
    }
    Ok(outputs)
}

/// A graph in ONNX Runtime, on the CPU; outputs that are not `wanted` stay empty.
///
/// # Errors
/// No ONNX Runtime, or a graph that it does not run.
pub fn onnx_runtime(graph: &Path, images: &ParityImages, wanted: &[&str]) -> Result<Outputs> {
    let options = SessionOptions { device: Device::Cpu, ..Default::default() };
    let mut session = macrl_runtime::session(graph, &options)?.session;
    let mut outputs = Outputs::default();
    let (s, values) = (images.size, 3 * images.size * images.size);
    let selector = wanted.iter().fold(OutputSelector::no_default(), |selector, name| selector.with(*name));
    let selected = RunOptions::new()?.with_outputs(selector);
    for (from, to) in batches(images.count) {
        let pixels = (vec![to - from, 3, s, s], &images.pixels[from * values..to * values]);
        let inputs = ort::inputs![INPUT => TensorRef::from_array_view(pixels)?];
        let results = session.run_with_options(inputs, &selected)?;
        let Outputs { hidden, pooled, logits } = &mut outputs;
        for (name, to) in [(HIDDEN, hidden), (POOLED, pooled), (LOGITS, logits)] {
            if wanted.contains(&name) {
                to.extend(results[name].try_extract_tensor::<f32>()?.1);
            }
        }
    }
    Ok(outputs)
}

/// Outputs of a graph in candle-onnx's evaluator, with `LayerNormalization` replaced by basic operators.
///
/// # Errors
/// An operator that the evaluator lacks.
pub fn candle_onnx(graph: &ModelProto, images: &ParityImages) -> Result<Outputs> {
    let (graph, _) = expand::layer_norms(graph);
    let mut outputs = Outputs::default();
    for (from, to) in batches(images.count) {
        let inputs = HashMap::from([(INPUT.to_string(), images.batch(from, to)?)]);
        let results = candle_onnx::simple_eval(&graph, inputs)?;
        let output = |name| results.get(name).with_context(|| format!("the graph has no output {name}"));
        outputs.push(output(HIDDEN)?, output(POOLED)?)?;
    }
    Ok(outputs)
}

fn batches(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).step_by(BATCH).map(move |from| (from, (from + BATCH).min(count)))
}

/// Cosine of the angle between two features.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Index of the largest score; nothing without scores.
pub(crate) fn argmax(scores: &[f32]) -> Option<usize> {
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
}
