//! Which product stays in 32 bits.
//!
//! A batch has one scale for all values of an activation.  Where an MLP's second product takes a few values that are far larger
//! than all others, those others lose most of their bits.  In the encoder of models/pretrained/cifar10 that is the first
//! block's: left in 32 bits it costs 7 % of the images a second and takes away 60 % of the error (docs/results.md).

use std::path::Path;

use anyhow::{Context, Result};
use candle_onnx::onnx::ModelProto;
use macrl_bundle::atomic;
use macrl_bundle::bundle::POOLED;
use prost::Message;

use crate::images::ParityImages;
use crate::outputs::{cosine, onnx_runtime};
use crate::quantize;

/// Images that are tried.
const IMAGES: usize = 16;
/// How an MLP's second product is named.
const SECOND: &str = ".mlp.fc2.product";
/// Part of the error that must be left for a product to be worth its 32 bits.
const WORTH: f64 = 0.5;

/// Writes the 8-bit graph of `model` (which lies in the file `full`) to `int8`: with all products in 8 bits, or all but the one
/// that causes most of the error.
///
/// # Errors
/// A graph that cannot be written, quantised or run.
pub fn write_int8(model: &ModelProto, full: &Path, int8: &Path, images: &ParityImages) -> Result<()> {
    let images = images.spread(IMAGES);
    let reference = onnx_runtime(full, &images, &[POOLED])?.pooled;
    let width = reference.len() / images.count.max(1);
    let write = |wide: &[&str]| {
        let bytes = quantize::dynamic(model, wide)?.encode_to_vec();
        atomic::write_file(int8, &bytes).with_context(|| format!("cannot write {}", int8.display()))
    };
    let error = |wide: &[&str]| -> Result<f64> {
        write(wide)?;
        let pooled = onnx_runtime(int8, &images, &[POOLED]).context("ONNX Runtime in 8 bits")?.pooled;
        let rows = reference.chunks_exact(width).zip(pooled.chunks_exact(width));
        Ok(rows.map(|(a, b)| 1.0 - cosine(a, b)).sum())
    };
    let mut best = (WORTH * error(&[])?, None);
    let nodes = model.graph.iter().flat_map(|graph| &graph.node);
    for name in nodes.filter(|n| n.op_type == "MatMul" && n.name.ends_with(SECOND)).map(|n| n.name.as_str()) {
        let error = error(&[name])?;
        if error < best.0 {
            best = (error, Some(name));
        }
    }
    write(&Vec::from_iter(best.1))
}
