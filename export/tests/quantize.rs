//! The 8-bit graph: what it looks like, how near it is, and how a bundle gets one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod support;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use candle_onnx::onnx::ModelProto;
use image::{Rgb, RgbImage};
use macrl_bundle::bundle::{Bundle, HIDDEN, ONNX, ONNX_INT8, PARITY, POOLED, README};
use macrl_bundle::config::Pooling;
use macrl_export::graph::Element;
use macrl_export::run::TrainedRun;
use macrl_export::write::{self, BundleOptions, Graphs};
use macrl_export::{parity, quantize, requantize};
use macrl_nn::checkpoint;
use prost::Message;

fn evaluated(dir: &Path) -> TrainedRun {
    support::source(&support::write_run(dir, Pooling::Mean, true))
}

fn written(dir: &Path, name: &str, graph: &ModelProto) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, graph.encode_to_vec()).unwrap();
    path
}

/// Number of nodes of each operator.
fn operators(model: &ModelProto) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for node in &model.graph.as_ref().unwrap().node {
        *counts.entry(node.op_type.clone()).or_default() += 1;
    }
    counts
}

// from onnxruntime.quantization import quantize_dynamic, QuantType
// quantize_dynamic("model.onnx", "out.onnx", op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True,
//                  weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True})
// collections.Counter(n.op_type for n in onnx.load("out.onnx").graph.node): a block has 6, 4, 2, 6 and 12; here are 3.
const BY_ONNXRUNTIME: [(&str, usize); 5] =
    [("Cast", 18), ("DynamicQuantizeLinear", 12), ("MatMul", 6), ("MatMulInteger", 18), ("Mul", 36)];

#[test]
fn the_graph_is_that_of_onnxruntimes_tool() {
    let dir = tempfile::tempdir().unwrap();
    let source = evaluated(dir.path());
    let full = Graphs::build(&source, Element::F32).unwrap().full;
    let int8 = quantize::dynamic(&full, &[]).unwrap();
    let mut counts = operators(&int8);
    // The classifier stays in 32 bits; the counts above are those of a graph without one.
    *counts.get_mut("MatMul").unwrap() -= 1;
    assert_eq!(BY_ONNXRUNTIME.map(|(op, _)| (op, counts[op])), BY_ONNXRUNTIME);
    let ends = |model: &ModelProto| {
        let graph = model.graph.as_ref().unwrap();
        (graph.input.clone(), graph.output.clone())
    };
    assert_eq!(ends(&int8), ends(&full));
    let weights =
        |suffix: &str| int8.graph.as_ref().unwrap().initializer.iter().filter(|t| t.name.ends_with(suffix)).count();
    assert_eq!((weights(".weight.int8"), weights("qkv.weight"), weights("fc1.weight")), (18, 0, 0));
    assert!(quantize::dynamic(&int8, &[]).unwrap_err().to_string().contains("no product with a constant matrix"));
}

#[test]
fn its_features_are_near_those_of_32_bits() {
    let dir = tempfile::tempdir().unwrap();
    let source = evaluated(dir.path());
    let run = |name: &str, graph: &ModelProto| {
        parity::onnx_runtime(&written(dir.path(), name, graph), &source.images, &[HIDDEN, POOLED]).unwrap()
    };
    let graph = |weights| Graphs::build(&source, weights).unwrap().full;
    let full = run("full.onnx", &graph(Element::F32));
    let int8 = run("int8.onnx", &quantize::dynamic(&graph(Element::F32), &[]).unwrap());
    let compared = parity::compare(&full, &int8, source.config.encoder.width, None).unwrap();
    assert!(compared.min_cosine > 0.999 && compared.max_abs_difference > 1e-6, "{compared:?}");
    // Stored as halves and widened by the graph: nearly the same weights, so nearly the same scales.
    let halves = run("halves.onnx", &quantize::dynamic(&graph(Element::F16), &[]).unwrap());
    let compared = parity::compare(&int8, &halves, source.config.encoder.width, None).unwrap();
    assert!(compared.min_cosine > 0.999, "{compared:?}");
}

#[test]
fn a_product_that_spoils_the_features_stays_in_32_bits() {
    let dir = tempfile::tempdir().unwrap();
    let source = evaluated(dir.path());
    let mut full = Graphs::build(&source, Element::F32).unwrap().full;
    let wide = |path: &Path| operators(&candle_onnx::read_file(path).unwrap())["MatMul"];
    let write = |full: &ModelProto| {
        let (from, to) = (written(dir.path(), "full.onnx", full), dir.path().join("int8.onnx"));
        macrl_export::outlier::write_int8(full, &from, &to, &source.images).unwrap();
        to
    };
    // Two products of activations in each of 3 blocks, and the classifier.
    assert_eq!(wide(&write(&full)), 7);
    // One huge value between the second block's MLP's products, without weight behind it.
    let graph = full.graph.as_mut().unwrap();
    let mut set = |name: &str, value: f32, row: usize| {
        let tensor = graph.initializer.iter_mut().find(|t| t.name == name).unwrap();
        let length = tensor.dims.last().copied().unwrap() as usize;
        let all = if tensor.dims.len() == 1 { 1 } else { length };
        tensor.raw_data[4 * row * all..4 * (row + 1) * all].as_chunks_mut().0.fill(value.to_le_bytes());
    };
    set("blocks.1.mlp.fc1.bias", 3000.0, 5);
    set("blocks.1.mlp.fc2.weight", 0.0, 5);
    let int8 = write(&full);
    assert_eq!(wide(&int8), 8);
    let kept = candle_onnx::read_file(&int8).unwrap().graph.unwrap();
    assert!(kept.node.iter().any(|n| n.op_type == "MatMul" && n.name == "blocks.1.mlp.fc2.product"));
}

/// `evaluation_images.safetensors` as evaluation writes it: two classes, one bright.
fn write_evaluation_images(run: &Path, size: usize) {
    let part = |name: &str, count: usize| {
        let values = (0..count * size * size * 3).map(|i| shade(i / (size * size * 3) % 2, i as u32));
        let pixels = Tensor::from_vec(values.collect::<Vec<u8>>(), (count, size, size, 3), &Device::Cpu).unwrap();
        let labels =
            Tensor::from_vec((0..count as i64).map(|i| i % 2).collect::<Vec<i64>>(), count, &Device::Cpu).unwrap();
        [(format!("{name}_pixels"), pixels), (format!("{name}_labels"), labels)]
    };
    let tensors = [part("lookup", 30), part("query", 20)].concat();
    fs::write(run.join("evaluation_images.safetensors"), checkpoint::to_bytes(&tensors, HashMap::new()).unwrap())
        .unwrap();
}

fn shade(class: usize, seed: u32) -> u8 {
    (seed.wrapping_mul(2_654_435_761) >> 25) as u8 + [0, 120][class]
}

#[test]
fn a_bundle_says_what_8_bits_cost() {
    let dir = tempfile::tempdir().unwrap();
    let run = support::write_run(dir.path(), Pooling::Mean, true);
    write_evaluation_images(&run, 16);
    let source = support::source(&run);
    let target = dir.path().join("bundle");
    write::bundle(&target, &source, &Graphs::build(&source, Element::F32).unwrap(), &BundleOptions::default()).unwrap();
    let bundle = Bundle::open(&target).unwrap();
    assert_eq!(bundle.onnx_int8, Some(target.join(ONNX_INT8)));
    let proof = bundle.parity.unwrap().int8.unwrap();
    let accuracy = proof.accuracy.as_ref().unwrap();
    assert_eq!((accuracy.lookup_images, accuracy.query_images), (30, 20));
    // Bright and dark are told apart in any precision.
    assert_eq!((accuracy.knn.f32, accuracy.knn.int8, accuracy.knn.agreement), (1.0, 1.0, 1.0));
    assert!(accuracy.linear.is_some() && proof.holds());
    let card = fs::read_to_string(target.join(README)).unwrap();
    assert!(card.contains("`onnx/model_quantized.onnx`") && card.contains("8 bits: kNN 100.0 % instead of 100.0 %"));
}

#[test]
fn an_older_bundle_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    let source = evaluated(dir.path());
    let target = dir.path().join("bundle");
    let halves = BundleOptions { weights: Element::F16, notes: None };
    write::bundle(&target, &source, &Graphs::build(&source, Element::F16).unwrap(), &halves).unwrap();
    // As an earlier version wrote it.
    for name in [ONNX_INT8, ".macrl.json"] {
        fs::remove_file(target.join(name)).unwrap();
    }
    let old: serde_json::Value = serde_json::from_slice(&fs::read(target.join(PARITY)).unwrap()).unwrap();
    let mut older = old.clone();
    older.as_object_mut().unwrap().remove("int8").unwrap();
    fs::write(target.join(PARITY), older.to_string()).unwrap();
    let model = fs::read(target.join(ONNX)).unwrap();
    assert!(Bundle::open(&target).unwrap().onnx_int8.is_none());

    let folder = dir.path().join("images");
    for (class, name) in ["boot", "bag"].iter().enumerate() {
        fs::create_dir_all(folder.join(name)).unwrap();
        for i in 0..6 {
            let image = RgbImage::from_fn(20, 18, |x, y| Rgb([shade(class, x * 31 + y * 7 + i); 3]));
            image.save(folder.join(format!("{name}/{i}.png"))).unwrap();
        }
    }
    // Twice: the second replaces the first.
    for _ in 0..2 {
        requantize::bundle(&target, &folder).unwrap();
    }
    let bundle = Bundle::open(&target).unwrap();
    let proof = bundle.parity.unwrap().int8.unwrap();
    let accuracy = proof.accuracy.unwrap();
    assert_eq!((accuracy.lookup_images, accuracy.query_images), (8, 4));
    assert_eq!(bundle.unverified, [""; 0]);
    assert!(bundle.onnx_int8.is_some() && accuracy.linear.is_some() && fs::read(target.join(ONNX)).unwrap() == model);
    let card = fs::read_to_string(target.join(README)).unwrap();
    for once in ["| `onnx/model_quantized.onnx`", "| ONNX Runtime, `model_quantized.onnx`", "\n8 bits: "] {
        assert_eq!(card.matches(once).count(), 1, "{once}");
    }
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let refused = requantize::bundle(&target, &empty).unwrap_err().to_string();
    assert!(refused.contains("expected readable images in class sub-folders"), "{refused}");
    assert!(Bundle::open(&target).unwrap().onnx_int8.is_some());
    let missing = requantize::bundle(&target, &dir.path().join("nowhere")).unwrap_err();
    assert_eq!(missing.code(), 2);
}
