//! The 8-bit graph: every product with a constant matrix computed in integers.
//!
//! What comes out is, node for node, what onnxruntime's own tool writes (`quantize_dynamic` with `per_channel=True`,
//! `reduce_range=True` and signed weights), since that is the pattern which ONNX Runtime fuses into one operator.  An
//! activation's scale and zero point are those of the batch at hand (`DynamicQuantizeLinear`), a weight's scale is its
//! column's.  Norms, softmax, GELU, the patches' convolution and the products within the attention stay in 32 bits.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_onnx::onnx::tensor_proto::DataType;
use candle_onnx::onnx::{GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto};

use crate::graph::{Element, constant, int, node};
use crate::head;

/// Largest weight.  7 bits instead of 8: processors without VNNI add products of 8 x 8 bits in pairs in 16 bits, and
/// 2 * 255 * 127 would not fit.  So the same graph gives the same features everywhere, and what is proven here holds there.
const LARGEST: f32 = 64.0;

/// A constant matrix (K, N), row by row.
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

/// The same model with its matrix products in 8 bits, all but the classifier's and those of the names in `wide`.
///
/// # Errors
/// A model without such a product, or with weights in another file.
pub fn dynamic(model: &ModelProto, wide: &[&str]) -> Result<ModelProto> {
    let mut model = model.clone();
    let graph = model.graph.as_mut().context("the model has no graph")?;
    let mut work =
        Work { constants: Constants::of(graph), nodes: Vec::new(), added: Vec::new(), inputs: HashSet::new() };
    let mut products = 0;
    for old in std::mem::take(&mut graph.node) {
        let stays = old.name == head::PRODUCT || wide.contains(&old.name.as_str());
        match work.constants.matrix_of(&old).filter(|_| !stays) {
            Some(matrix) => {
                work.product(&old, &matrix);
                products += 1;
            }
            None => work.nodes.push(old),
        }
    }
    ensure!(products > 0, "the graph has no product with a constant matrix");
    graph.node = work.nodes;
    graph.initializer.extend(work.added);
    drop_unused(graph);
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into() };
    model.metadata_props.push(entry("quantization", "dynamic, weights int8 per channel in 7 bits"));
    Ok(model)
}

/// Constants by name, and nodes that make one of another.
struct Constants {
    tensors: HashMap<String, TensorProto>,
    makers: HashMap<String, NodeProto>,
}

impl Constants {
    fn of(graph: &GraphProto) -> Self {
        let tensors = graph.initializer.iter().map(|t| (t.name.clone(), t.clone())).collect();
        let makers = graph.node.iter().filter(|n| matches!(n.op_type.as_str(), "Cast" | "Mul"));
        Self { tensors, makers: makers.filter_map(|n| Some((n.output.first()?.clone(), n.clone()))).collect() }
    }

    /// The second factor of a product, where it is a constant matrix.
    fn matrix_of(&self, node: &NodeProto) -> Option<Matrix> {
        let [_, weight] = node.input.as_slice() else { return None };
        if node.op_type != "MatMul" {
            return None;
        }
        let (dims, values) = self.values(weight)?;
        let [rows, columns] = dims[..] else { return None };
        Some(Matrix { rows, columns, values })
    }

    /// A constant's shape and values: stored as such, or as halves with a `Cast`, and perhaps a factor, behind them.
    fn values(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        if let Some(tensor) = self.tensors.get(name) {
            return read(tensor);
        }
        let maker = self.makers.get(name)?;
        let (dims, values) = self.values(maker.input.first()?)?;
        match maker.op_type.as_str() {
            "Cast" => Some((dims, values)),
            _ => {
                let (_, factor) = self.values(maker.input.get(1)?)?;
                let [factor] = factor[..] else { return None };
                Some((dims, values.into_iter().map(|v| v * factor).collect()))
            }
        }
    }
}

/// Floats or halves in the file itself.
fn read(tensor: &TensorProto) -> Option<(Vec<usize>, Vec<f32>)> {
    let dims: Vec<usize> = tensor.dims.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<_>>()?;
    let element = match DataType::try_from(tensor.data_type).ok()? {
        DataType::Float => DType::F32,
        DataType::Float16 => DType::F16,
        _ => return None,
    };
    let count = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    if tensor.raw_data.len() != count.checked_mul(element.size_in_bytes())? {
        return None;
    }
    let stored = Tensor::from_raw_buffer(&tensor.raw_data, element, &[count], &Device::Cpu);
    Some((dims, stored.and_then(|t| t.to_dtype(DType::F32)?.to_vec1()).ok()?))
}

struct Work {
    constants: Constants,
    nodes: Vec<NodeProto>,
    added: Vec<TensorProto>,
    /// Activations that are in 8 bits already.
    inputs: HashSet<String>,
}

impl Work {
    /// x W = (scale of x) (scales of W) (x' W') with x' = x / scale + zero point in 8 bits, rounded.
    fn product(&mut self, old: &NodeProto, matrix: &Matrix) {
        let [x, weight] = [0, 1].map(|i| old.input[i].as_str());
        let [small, scale, zero] = ["int8", "scale", "zero"].map(|part| format!("{x}.{part}"));
        if self.inputs.insert(x.to_string()) {
            let outputs = vec![small.clone(), scale.clone(), zero.clone()];
            let linear = NodeProto { output: outputs, ..node(&small, "DynamicQuantizeLinear", &[x], vec![]) };
            self.nodes.push(linear);
        }
        let parts = ["int8", "scale", "zero"].map(|part| format!("{weight}.{part}"));
        self.weight(&parts, matrix);
        let [w, w_scale, w_zero] = parts;
        let of = |part: &str| format!("{}.{part}", old.name);
        let (scales, sum, wide) = (of("scales"), of("int32"), of("unscaled"));
        self.nodes.push(node(&scales, "Mul", &[&scale, &w_scale], vec![]));
        self.nodes.push(node(&sum, "MatMulInteger", &[&small, &w, &zero, &w_zero], vec![]));
        self.nodes.push(node(&wide, "Cast", &[&sum], vec![int("to", Element::F32.onnx())]));
        let product = node(&old.name, "Mul", &[&wide, &scales], vec![]);
        self.nodes.push(NodeProto { output: old.output.clone(), ..product });
    }

    /// Adds the matrix in 8 bits with a scale and a zero point of 0 for each column.
    fn weight(&mut self, [small, scale, zero]: &[String; 3], matrix: &Matrix) {
        if self.added.iter().any(|t| t.name == *small) {
            return;
        }
        let (scales, values) = quantized(matrix);
        let columns = matrix.columns as i64;
        let bytes = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let values = values.into_iter().map(|v| v as u8).collect();
        self.added.push(constant(small, vec![matrix.rows as i64, columns], DataType::Int8 as i32, values));
        self.added.push(constant(scale, vec![columns], DataType::Float as i32, bytes));
        self.added.push(constant(zero, vec![columns], DataType::Int8 as i32, vec![0; matrix.columns]));
    }
}

/// Scales (N) and values (K, N).
fn quantized(matrix: &Matrix) -> (Vec<f32>, Vec<i8>) {
    let mut largest = vec![0f32; matrix.columns];
    let rows = || matrix.values.chunks_exact(matrix.columns.max(1));
    for row in rows() {
        largest.iter_mut().zip(row).for_each(|(most, v)| *most = most.max(v.abs()));
    }
    // A column of zeros has no scale of its own.
    let scale = |most: &f32| if *most > f32::MIN_POSITIVE * LARGEST { most / LARGEST } else { 1.0 };
    let scales: Vec<f32> = largest.iter().map(scale).collect();
    let values = rows().flat_map(|row| row.iter().zip(&scales).map(|(v, s)| (v / s).round_ties_even() as i8)).collect();
    (scales, values)
}

/// Takes out constants, and what is made of constants alone, that nothing reads any more.
fn drop_unused(graph: &mut GraphProto) {
    loop {
        let outputs = graph.output.iter().map(|o| o.name.clone());
        let used: HashSet<String> = graph.node.iter().flat_map(|n| n.input.clone()).chain(outputs).collect();
        let before = graph.node.len();
        graph.node.retain(|n| n.output.iter().any(|o| used.contains(o)));
        graph.initializer.retain(|t| used.contains(&t.name));
        if graph.node.len() == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // import numpy as np
    // w = np.array([[0.5, -2.0, 0.0], [0.25, 1.0, 0.0], [-0.111, 0.02, 0.0]], np.float32)
    // s = np.abs(w).max(0) / 64; s[s == 0] = 1; (w / s).round().astype(np.int8)
    #[test]
    fn a_column_has_a_scale_of_its_own() {
        let matrix = Matrix { rows: 3, columns: 3, values: vec![0.5, -2.0, 0.0, 0.25, 1.0, 0.0, -0.111, 0.02, 0.0] };
        let (scales, values) = quantized(&matrix);
        assert_eq!(scales, [0.0078125, 0.03125, 1.0]);
        assert_eq!(values, [64, -64, 0, 32, 32, 0, -14, 1, 0]);
    }
}
