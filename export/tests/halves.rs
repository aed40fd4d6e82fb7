//! Weights stored as halves: the same bits out of ONNX Runtime, and files that are small enough.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod support;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use candle_onnx::onnx::ModelProto;
use macrl_bundle::bundle::{Bundle, HIDDEN, POOLED};
use macrl_bundle::config::{Config, Pooling};
use macrl_export::graph::{Element, Precision};
use macrl_export::images::ParityImages;
use macrl_export::parity::{self, Outputs};
use macrl_export::run::weights;
use macrl_export::write::{self, BundleOptions, Graphs};
use macrl_export::{onnx, share};
use macrl_nn::vit::Encoder;
use macrl_runtime::SessionOptions;
use macrl_runtime::SharedWeights;
use ort::value::TensorRef;
use prost::Message;

const HALVES: Precision = Precision { arithmetic: Element::F32, weights: Element::F16 };
const MIB: usize = 1 << 20;

fn config(set: &[&str]) -> Config {
    Config::parse("", "the test", &set.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
}

/// 4 heads of width 8: the query's scale is no power of two, so halves times the scale are no halves.
fn small() -> Config {
    config(&[
        "encoder.image_size=16",
        "encoder.patch_size=4",
        "encoder.width=32",
        "encoder.depth=2",
        "encoder.heads=4",
        "decoder.width=16",
        "decoder.heads=2",
    ])
}

/// Random weights, each of them a half.
fn rounded(config: &Config) -> HashMap<String, Tensor> {
    let all = weights(&Encoder::init(&config.encoder, 3).unwrap(), config).unwrap();
    let round = |(name, tensor): (String, Tensor)| match name.as_str() {
        "pos_embed" => (name, tensor),
        _ => (name, tensor.to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap()),
    };
    all.into_iter().map(round).collect()
}

fn graph(config: &Config, precision: impl Into<Precision>) -> ModelProto {
    onnx::build(&config.encoder, Pooling::Mean, &rounded(config), precision, &[]).unwrap()
}

fn images(size: usize) -> ParityImages {
    let pixels = (0..3 * 3 * size * size).map(|i| (0.01 * (i * i % 977) as f64).cos() as f32).collect();
    ParityImages { count: 3, size, pixels }
}

fn written(dir: &Path, name: &str, graph: &ModelProto) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, graph.encode_to_vec()).unwrap();
    path
}

fn stored_as(graph: &ModelProto, data_type: Element) -> usize {
    let tensors = &graph.graph.as_ref().unwrap().initializer;
    tensors.iter().filter(|t| i64::from(t.data_type) == data_type.onnx()).map(|t| t.raw_data.len()).sum()
}

fn assert_same_bits(a: &Outputs, b: &Outputs) {
    let bits = |o: &Outputs| o.hidden.iter().chain(&o.pooled).map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(a.pooled.iter().any(|v| v.abs() > 0.01));
    assert_eq!(bits(a), bits(b));
}

#[test]
fn a_cast_behind_halves_changes_no_bit() {
    let (config, dir) = (small(), tempfile::tempdir().unwrap());
    let (wide, narrow) = (graph(&config, Element::F32), graph(&config, HALVES));
    // Matrices of 32 x 32 and more; norms, biases and positions are small.
    assert!(stored_as(&narrow, Element::F16) > 5 * stored_as(&narrow, Element::F32));
    assert_eq!(stored_as(&wide, Element::F16), 0);
    let run = |name, graph: &ModelProto| {
        parity::onnx_runtime(&written(dir.path(), name, graph), &images(16), &[HIDDEN, POOLED]).unwrap()
    };
    assert_same_bits(&run("wide.onnx", &wide), &run("narrow.onnx", &narrow));
    let candle = |graph: &ModelProto| parity::candle_onnx(graph, &images(16)).unwrap();
    assert_same_bits(&candle(&wide), &candle(&narrow));
}

#[test]
fn weights_that_are_no_halves_stay_wide() {
    let config = small();
    let encoder = Encoder::init(&config.encoder, 3).unwrap();
    let graph = onnx::build(&config.encoder, Pooling::Mean, &weights(&encoder, &config).unwrap(), HALVES, &[]).unwrap();
    assert_eq!(stored_as(&graph, Element::F16), 0);
}

#[test]
fn sessions_share_weights_that_are_stored_as_halves() {
    let (config, dir) = (small(), tempfile::tempdir().unwrap());
    let path = written(dir.path(), "model.onnx", &graph(&config, HALVES));
    let shared = SharedWeights::read(&path).unwrap();
    let features = |weights| {
        let options = SessionOptions { device: macrl_runtime::Device::Cpu, threads: 1, weights, ..Default::default() };
        let mut session = macrl_runtime::session(&path, &options).unwrap().session;
        let (images, mut outputs) = (images(16), Outputs::default());
        let pixels = TensorRef::from_array_view((vec![3, 3, 16, 16], images.pixels.as_slice())).unwrap();
        let results = session.run(ort::inputs!["pixel_values" => pixels]).unwrap();
        outputs.hidden.extend(results["last_hidden_state"].try_extract_tensor::<f32>().unwrap().1);
        outputs.pooled.extend(results["pooler_output"].try_extract_tensor::<f32>().unwrap().1);
        outputs
    };
    let alone = features(None);
    assert_same_bits(&alone, &features(Some(&shared)));
    assert_same_bits(&alone, &features(Some(&shared)));
}

#[test]
fn a_half_precision_graph_takes_its_weights_from_the_file_it_was_written_with() {
    let dir = tempfile::tempdir().unwrap();
    let source = support::source(&support::write_run(dir.path(), Pooling::Mean, true));
    let (target, plain) = (dir.path().join("bundle"), dir.path().join("plain"));
    let options = BundleOptions { weights: Element::F16, notes: None };
    let graphs = Graphs::build(&source, Element::F16).unwrap();
    let proof = write::bundle(&target, &source, &graphs, &options).unwrap();
    assert!(proof.fp16.is_some() && proof.onnxruntime.max_abs_difference <= 1e-4);
    write::bundle(&plain, &source, &Graphs::build(&source, Element::F32).unwrap(), &BundleOptions::default()).unwrap();
    let size = |dir: &Path, name: &str| std::fs::metadata(dir.join("onnx").join(name)).unwrap().len();
    assert!(size(&target, "model.onnx") < size(&plain, "model.onnx"));
    assert!(size(&target, "model_fp16.onnx") < size(&plain, "model_fp16.onnx"));
    Bundle::open(&target).unwrap();

    let model = target.join("onnx/model.onnx");
    let whole = std::fs::read(&model).unwrap();
    let mut other = whole.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&model, other).unwrap();
    let message = Bundle::open(&target).unwrap_err().to_string();
    assert!(message.contains("model_fp16.onnx: its weights are in model.onnx: expected SHA-256"), "{message}");
    std::fs::write(&model, whole).unwrap();
    Bundle::open(&target).unwrap();
}

#[test]
fn a_vit_tiny_fits_into_what_a_repository_holds() {
    let config = config(&[]);
    let shape = &config.encoder;
    assert_eq!((shape.width, shape.depth, shape.patch_size), (192, 12, 4));
    let full = graph(&config, HALVES).encode_to_vec();
    let half = share::halves(&graph(&config, Element::F16), "model.onnx", &full).encode_to_vec();
    let halves = rounded(&config).into_iter().map(|(name, t)| (name, t.to_dtype(DType::F16).unwrap()));
    let tensors: Vec<_> = halves.collect();
    let weights = macrl_nn::checkpoint::to_bytes(&tensors, HashMap::new()).unwrap();
    let sizes = [full.len(), half.len(), weights.len()];
    assert!(sizes.iter().all(|size| *size < 12 * MIB) && sizes.iter().sum::<usize>() < 24 * MIB, "{sizes:?}");
    assert_eq!(weights.len() / MIB, 10);
}
