//! Exports a training run: the encoder as ONNX, or a bundle with everything that serving needs.
//!
//! [`run`](run()) does a whole export.  [`TrainedRun`] reads the run, [`onnx::build`] makes the graph, [`parity`] compares it
//! with the trained network, and `write` writes the files.
//!
//! ```
//! use macrl_bundle::Config;
//! use macrl_bundle::config::Pooling;
//! use macrl_export::{Element, encoder_weights, onnx};
//! use macrl_nn::Encoder;
//!
//! let config = Config::parse("[encoder]\nimage_size = 16\npatch_size = 8\nwidth = 24\ndepth = 1\nheads = 2", "", &[])?;
//! let weights = encoder_weights(&Encoder::init(&config.encoder, 7)?, &config)?;
//! let model = onnx::build(&config.encoder, Pooling::Mean, &weights, Element::F32, &[])?;
//! let outputs: Vec<&str> = model.graph.iter().flat_map(|graph| &graph.output).map(|output| output.name.as_str()).collect();
//! assert_eq!(outputs, ["last_hidden_state", "pooler_output"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This page is the public interface; hidden modules may change at any time.

#![warn(clippy::print_stdout, clippy::print_stderr)] // a closed pipe must not end an export: see macrl_bundle::output

pub mod onnx;
pub mod parity;

pub use cli::{BundleArgs, Job, RunArgs};
pub use error::Failure;
pub use graph::Element;
pub use run::{TrainedRun, weights as encoder_weights};

// Open to the workspace's own programs, tests and benches only; they may change at any time.
#[doc(hidden)]
pub mod card;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod expand;
#[doc(hidden)]
pub mod folder;
#[doc(hidden)]
pub mod graph;
#[doc(hidden)]
pub mod head;
#[doc(hidden)]
pub mod images;
#[doc(hidden)]
pub mod int8_accuracy;
#[doc(hidden)]
pub mod outlier;
#[doc(hidden)]
pub mod outputs;
#[doc(hidden)]
pub mod quantize;
#[doc(hidden)]
pub mod requantize;
#[doc(hidden)]
pub mod run;
#[doc(hidden)]
pub mod share;
#[doc(hidden)]
pub mod upgrade;
#[doc(hidden)]
pub mod usage;
#[doc(hidden)]
pub mod write;

use std::path::Path;

use macrl_bundle::bundle::{Comparison, Parity};
use macrl_bundle::quantized::{Pair, Quantized};
use macrl_nn::device;

use crate::write::{BundleOptions, Graphs};

/// Does one export; returns in a few lines what was written and how well it agrees with the trained network.
///
/// # Errors
/// [`Failure`]; nothing is left at the destination.
pub fn run(job: &Job) -> Result<String, Failure> {
    let read = |run: &RunArgs| -> Result<TrainedRun, Failure> {
        let (device, name) = device::open(run.device).map_err(|why| Failure::Usage(why.to_string()))?;
        Ok(TrainedRun::read(&run.run, run.checkpoint.as_deref())?.on(&device, name)?)
    };
    let (path, source, proof) = match job {
        Job::Encoder(file, run) => {
            let source = read(run)?;
            let proof = write::encoder(file, &source, &write::graph(&source, Element::F32)?)?;
            (file, source, proof)
        }
        Job::Bundle(dir, run, options) => {
            let options = BundleOptions { weights: options.weights, notes: read_notes(options.notes.as_deref())? };
            let source = read(run)?;
            let proof = write::bundle(dir, &source, &Graphs::build(&source, options.weights)?, &options)?;
            (dir, source, proof)
        }
        Job::Upgrade(dir, probe) => {
            let said = upgrade::bundle(dir, probe.as_deref())?;
            return Ok(format!("{}: {said}", dir.display()));
        }
        Job::Quantize(dir, data) => {
            let proof = requantize::bundle(dir, data)?;
            return Ok(format!("{}: {}", dir.display(), int8_summary(&proof)));
        }
    };
    let head = format!("{}: {} of {}, {} steps", path.display(), source.checkpoint, source.name, source.steps);
    let on = source.device.map(|name| format!("; the trained network computed on {name}")).unwrap_or_default();
    Ok(format!("{head}{on}\n{}", summary(&proof)))
}

fn read_notes(path: Option<&Path>) -> Result<Option<String>, Failure> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|why| Failure::Usage(format!("--notes: {}: {why}", path.display())))
    };
    path.map(read).transpose()
}

/// The parity check in words, one line for each comparison.
fn summary(proof: &Parity) -> String {
    let line = |name: &str, c: &Comparison| {
        format!(
            "parity with {name} on {} images: largest difference {:.1e}, smallest cosine {:.7}",
            proof.images, c.max_abs_difference, c.min_cosine
        )
    };
    let all = [
        Some(line("ONNX Runtime", &proof.onnxruntime)),
        proof.candle_onnx.as_ref().map(|c| line("candle-onnx", c)),
        proof.fp16.as_ref().map(|c| line("ONNX Runtime in half precision", c)),
        proof.weights_fp16.as_ref().map(|c| line("model.safetensors in half precision", c)),
    ];
    let int8 = Some(int8_summary(proof)).filter(|_| proof.fp16.is_some());
    all.into_iter().flatten().chain(int8).collect::<Vec<_>>().join("\n")
}

/// What 8 bits cost, in a line.
fn int8_summary(proof: &Parity) -> String {
    let left_out = || serde_json::from_value(proof.extra.get(write::LEFT_OUT)?.clone()).ok();
    let (measured, kept): (Option<Quantized>, bool) = match &proof.int8 {
        Some(measured) => (Some(measured.clone()), true),
        None => (left_out(), false),
    };
    let Some(Quantized { features, accuracy }) = measured else { return "no 8-bit graph".into() };
    let mut text = format!("8 bits: smallest cosine {:.5}", features.min_cosine);
    if let Some(a) = accuracy {
        let mut pair =
            |name: &str, p: Pair| text += &format!(", {name} {:.1} % (32 bits {:.1} %)", 100.0 * p.int8, 100.0 * p.f32);
        pair("kNN", a.knn);
        a.linear.into_iter().for_each(|p| pair("linear", p));
        text += &format!(" on {} images", a.query_images);
    }
    if !kept {
        text += "; that costs too much, so onnx/model_quantized.onnx was left out";
    }
    text
}
