//! The classifier as an output of the graph: `logits` (B, C).
//!
//! transformers.js and optimum read classes from an output of this name.  The probe is one matrix product on `pooler_output`
//! once its standardisation is folded in; it stays in 32 bits in every graph.

use candle_onnx::onnx::ModelProto;
use candle_onnx::onnx::tensor_proto::DataType;
use macrl_bundle::bundle::{LOGITS, POOLED};
use macrl_bundle::probe::LinearHead;

use crate::graph::{batched, constant, node};

/// Name of the node with the matrix product; the 8-bit graph computes it in 32 bits.
pub const PRODUCT: &str = "head.product";
const WEIGHT: &str = "head.weight";
const BIAS: &str = "head.bias";

/// Adds the output `logits`, or replaces it; a graph for no classifier is left without one.
pub fn set(model: &mut ModelProto, head: Option<&LinearHead>) {
    let Some(graph) = model.graph.as_mut() else { return };
    graph.node.retain(|n| n.name != PRODUCT && n.name != LOGITS);
    graph.initializer.retain(|t| t.name != WEIGHT && t.name != BIAS);
    graph.output.retain(|o| o.name != LOGITS);
    let Some(head) = head else { return };
    let classes = head.bias.len();
    let dim = head.weight.len() / classes.max(1);
    // MatMul takes (D, C).
    let transposed = (0..dim).flat_map(|d| (0..classes).map(move |c| head.weight[c * dim + d]));
    let bytes = |values: &mut dyn Iterator<Item = f32>| values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let (weight, bias) = (bytes(&mut transposed.into_iter()), bytes(&mut head.bias.iter().copied()));
    let float = DataType::Float as i32;
    graph.initializer.push(constant(WEIGHT, vec![dim as i64, classes as i64], float, weight));
    graph.initializer.push(constant(BIAS, vec![classes as i64], float, bias));
    graph.node.push(node(PRODUCT, "MatMul", &[POOLED, WEIGHT], vec![]));
    graph.node.push(node(LOGITS, "Add", &[PRODUCT, BIAS], vec![]));
    graph.output.push(batched(LOGITS, &[classes]));
}
