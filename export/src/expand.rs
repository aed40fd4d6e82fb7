//! Replaces `LayerNormalization` by basic operators, for evaluators that lack it.
//!
//! candle-onnx 0.11.1 has every operator of our graphs except this one.  The replacement works on the exported file as it was
//! read back, so that the shipped weights are checked.

use candle_onnx::onnx::{GraphProto, ModelProto, NodeProto, TensorProto};

use crate::graph::{ints_constant, node, number_constant};

/// Axis of D in (B, T, D).
const AXIS: i64 = 2;

/// The same model with each `LayerNormalization` over the last axis of (B, T, D) replaced by its definition,
/// `(x - mean) / sqrt(var + eps) * scale + bias` with the biased variance; and how many were replaced.
pub fn layer_norms(model: &ModelProto) -> (ModelProto, usize) {
    let mut model = model.clone();
    let Some(graph) = model.graph.as_mut() else { return (model, 0) };
    let mut nodes = Vec::with_capacity(graph.node.len());
    let mut constants = vec![ints_constant("expanded.axis", &[AXIS])];
    let mut replaced = 0;
    for old in std::mem::take(&mut graph.node) {
        if old.op_type == "LayerNormalization" && old.input.len() == 3 {
            expand(graph, &old, &mut nodes, &mut constants);
            replaced += 1;
        } else {
            nodes.push(old);
        }
    }
    graph.node = nodes;
    graph.initializer.extend(constants);
    (model, replaced)
}

fn expand(graph: &GraphProto, norm: &NodeProto, nodes: &mut Vec<NodeProto>, constants: &mut Vec<TensorProto>) {
    let [x, scale, bias] = [0, 1, 2].map(|i| norm.input[i].as_str());
    let name = |part: &str| format!("{}.{part}", norm.name);
    constants.push(number_constant(&name("width"), width(graph, scale)));
    constants.push(number_constant(&name("epsilon"), epsilon(norm)));
    let mut add = |out: &str, op: &str, inputs: &[&str]| nodes.push(node(out, op, inputs, vec![]));
    let [sum, mean, centred, square, squares, variance, shifted, deviation, normed, scaled] =
        ["sum", "mean", "centred", "square", "squares", "variance", "shifted", "deviation", "normed", "scaled"]
            .map(name);
    let (width, epsilon) = (format!("{}.width", norm.name), format!("{}.epsilon", norm.name));
    add(&sum, "ReduceSum", &[x, "expanded.axis"]);
    add(&mean, "Div", &[&sum, &width]);
    add(&centred, "Sub", &[x, &mean]);
    add(&square, "Mul", &[&centred, &centred]);
    add(&squares, "ReduceSum", &[&square, "expanded.axis"]);
    add(&variance, "Div", &[&squares, &width]);
    add(&shifted, "Add", &[&variance, &epsilon]);
    add(&deviation, "Sqrt", &[&shifted]);
    add(&normed, "Div", &[&centred, &deviation]);
    add(&scaled, "Mul", &[&normed, scale]);
    add(&norm.output[0], "Add", &[&scaled, bias]);
}

/// D, the length of the scale.
fn width(graph: &GraphProto, scale: &str) -> f32 {
    let tensor = graph.initializer.iter().find(|t| t.name == scale);
    tensor.and_then(|t| t.dims.first()).map_or(1.0, |&d| d as f32)
}

fn epsilon(norm: &NodeProto) -> f32 {
    // 1e-5 is the operator's default.
    norm.attribute.iter().find(|a| a.name == "epsilon").map_or(1e-5, |a| a.f)
}
