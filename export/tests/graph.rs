//! The graph against PyTorch: the same weights and pixels, both evaluators, both poolings, both precisions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod support;

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use candle_onnx::onnx::ModelProto;
use macrl_bundle::bundle::{HIDDEN, POOLED};
use macrl_bundle::config::{EncoderConfig, Pooling};
use macrl_bundle::parameters::EncoderLayout;
use macrl_export::graph::{Element, OPSET};
use macrl_export::images::ParityImages;
use macrl_export::parity::{self, Outputs};
use macrl_export::{expand, onnx, write};
use prost::Message;

const SHAPE: EncoderConfig = EncoderConfig { image_size: 8, patch_size: 4, width: 8, depth: 2, heads: 2, mlp_ratio: 2 };

// import numpy as np, torch, torch.nn.functional as F
// S, P, D, L, H, M = 8, 4, 8, 2, 2, 16
// block = {"norm1.weight": [D], "norm1.bias": [D], "attn.qkv.weight": [3*D, D], "attn.qkv.bias": [3*D],
//          "attn.proj.weight": [D, D], "attn.proj.bias": [D], "norm2.weight": [D], "norm2.bias": [D],
//          "mlp.fc1.weight": [M, D], "mlp.fc1.bias": [M], "mlp.fc2.weight": [D, M], "mlp.fc2.bias": [D]}
// shapes = {"pos_embed": [1, 5, D], "cls_token": [1, 1, D], "patch_embed.proj.weight": [D, 3, P, P],
//           "patch_embed.proj.bias": [D]}
// shapes |= {f"blocks.{i}.{n}": s for i in range(L) for n, s in block.items()}
// shapes |= {"norm.weight": [D], "norm.bias": [D]}
// w = {n: torch.from_numpy(np.sin(0.37 * np.arange(np.prod(s)) ** 2 + j).astype("float32")).reshape(s)
//      for j, (n, s) in enumerate(shapes.items())}
// x = torch.from_numpy(np.cos(0.01 * np.arange(2 * 3 * S * S) ** 2).astype("float32")).reshape(2, 3, S, S)
// lin = lambda x, n: F.linear(x, w[n + ".weight"], w[n + ".bias"])
// norm = lambda x, n: F.layer_norm(x, [D], w[n + ".weight"], w[n + ".bias"], 1e-6)
// t = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], P).flatten(2).transpose(1, 2)
// t = torch.cat([w["cls_token"].expand(2, -1, -1), t], 1) + w["pos_embed"]
// for b in (f"blocks.{i}." for i in range(L)):
//     q, k, v = lin(norm(t, b + "norm1"), b + "attn.qkv").reshape(2, 5, 3, H, D // H).permute(2, 0, 3, 1, 4)
//     t = t + lin(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, D), b + "attn.proj")
//     t = t + lin(F.gelu(lin(norm(t, b + "norm2"), b + "mlp.fc1")), b + "mlp.fc2")
// t = norm(t, "norm")
// t[:, 0], t[:, 1:].mean(1), t[1, 4]
const CLASS_TOKENS: [f32; 16] = [
    -0.851503, -1.0417254, -1.5648656, 0.8494202, -0.3064634, 1.3017086, -0.9375347, 0.6567719, //
    -0.8242379, -1.0518382, -1.599061, 0.8302208, -0.3435237, 1.3494635, -0.9584618, 0.371833,
];
const PATCH_MEANS: [f32; 16] = [
    -0.8629995, -1.0530355, -1.4426289, 0.8472017, -0.1649859, 1.2120554, -0.801517, 0.556031, //
    -0.7688103, -1.0620435, -1.6071098, 0.8179397, -0.3364193, 1.3242292, -0.8675467, 0.0901545,
];
const LAST_PATCH: [f32; 8] =
    [-0.7638607, -1.059968, -1.7618215, 0.7947493, -0.3673235, 1.3324453, -0.8456106, -0.173006];

fn weights() -> HashMap<String, Tensor> {
    let positions = ("pos_embed".to_string(), vec![1, SHAPE.tokens().count(), SHAPE.width]);
    let listed = EncoderLayout::new(&SHAPE);
    let shapes = std::iter::once(positions).chain(listed.parameters().map(|p| (p.name.clone(), p.shape.clone())));
    let tensor = |(j, (name, shape)): (usize, (String, Vec<usize>))| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (0.37 * (i * i) as f64 + j as f64).sin() as f32).collect();
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    };
    shapes.enumerate().map(tensor).collect()
}

fn images() -> ParityImages {
    let pixels = (0..2 * 3 * 8 * 8).map(|i| (0.01 * (i * i) as f64).cos() as f32).collect();
    ParityImages { count: 2, size: 8, pixels }
}

fn graph(pooling: Pooling, element: Element) -> ModelProto {
    onnx::build(&SHAPE, pooling, &weights(), element, &[("pooling", "x".to_string())]).unwrap()
}

fn in_onnx_runtime(graph: &ModelProto, images: &ParityImages) -> Outputs {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, graph.encode_to_vec()).unwrap();
    parity::onnx_runtime(&path, images, &[HIDDEN, POOLED]).unwrap()
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= tolerance, "expected {expected:?}, found {found:?}");
    }
}

fn assert_pytorch(outputs: &Outputs, pooled: &[f32], tolerance: f32) {
    let d = SHAPE.width;
    assert_eq!(outputs.hidden.len(), 2 * 5 * d);
    assert_close(&outputs.hidden[..d], &CLASS_TOKENS[..d], tolerance);
    assert_close(&outputs.hidden[9 * d..], &LAST_PATCH, tolerance);
    assert_close(&outputs.pooled, pooled, tolerance);
}

#[test]
fn both_evaluators_equal_pytorch() {
    for (pooling, pooled) in [(Pooling::Cls, CLASS_TOKENS), (Pooling::Mean, PATCH_MEANS)] {
        let graph = graph(pooling, Element::F32);
        assert_pytorch(&parity::candle_onnx(&graph, &images()).unwrap(), &pooled, 2e-5);
        assert_pytorch(&in_onnx_runtime(&graph, &images()), &pooled, 2e-5);
    }
}

#[test]
fn half_precision_stays_near() {
    for (pooling, pooled) in [(Pooling::Cls, CLASS_TOKENS), (Pooling::Mean, PATCH_MEANS)] {
        let graph = graph(pooling, Element::F16);
        let half = graph.graph.as_ref().unwrap();
        let bytes = |g: &ModelProto| g.encoded_len();
        assert!(bytes(&graph) < bytes(&self::graph(pooling, Element::F32)));
        assert!(half.initializer.iter().any(|t| t.data_type == Element::F16.onnx() as i32));
        assert_pytorch(&in_onnx_runtime(&graph, &images()), &pooled, 2e-2);
    }
}

#[test]
fn any_batch_size_runs_and_images_do_not_mix() {
    let graph = graph(Pooling::Mean, Element::F32);
    let one = ParityImages { count: 1, size: 8, pixels: images().pixels[3 * 64..].to_vec() };
    let expected = &PATCH_MEANS[SHAPE.width..];
    assert_close(&in_onnx_runtime(&graph, &one).pooled, expected, 2e-5);
    let five = ParityImages { count: 5, size: 8, pixels: one.pixels.repeat(5) };
    assert_close(&in_onnx_runtime(&graph, &five).pooled, &expected.repeat(5), 2e-5);
}

#[test]
fn norms_and_activations_are_single_operators() {
    let model = graph(Pooling::Mean, Element::F32);
    assert_eq!(model.opset_import[0].version, OPSET);
    let count =
        |model: &ModelProto, op: &str| model.graph.as_ref().unwrap().node.iter().filter(|n| n.op_type == op).count();
    assert_eq!(count(&model, "LayerNormalization"), 2 * SHAPE.depth + 1);
    assert_eq!(count(&model, "Gelu"), SHAPE.depth);
    let (expanded, replaced) = expand::layer_norms(&model);
    assert_eq!(replaced, 2 * SHAPE.depth + 1);
    assert_eq!(count(&expanded, "LayerNormalization"), 0);
    assert_eq!(model.metadata_props[0].key, "pooling");
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let build = |weights: &HashMap<String, Tensor>| {
        onnx::build(&SHAPE, Pooling::Mean, weights, Element::F32, &[]).unwrap_err().to_string()
    };
    let mut missing = weights();
    missing.remove("blocks.1.mlp.fc1.bias");
    assert_eq!(build(&missing), "the encoder has no tensor blocks.1.mlp.fc1.bias");
    let mut other = weights();
    other.insert("norm.weight".into(), Tensor::zeros(9, candle_core::DType::F32, &Device::Cpu).unwrap());
    assert_eq!(build(&other), "tensor norm.weight should have shape [8], found [9]");
}

#[test]
fn the_file_carries_the_runs_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let source = support::source(&support::write_run(dir.path(), Pooling::Cls, false));
    let model = write::graph(&source, Element::F32).unwrap();
    let value = |key: &str| model.metadata_props.iter().find(|p| p.key == key).unwrap().value.clone();
    assert_eq!(value("config"), source.config.to_toml());
    assert_eq!(value("pooling"), "cls");
    assert_eq!(value("steps"), support::STEPS.to_string());
}
