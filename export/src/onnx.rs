//! The encoder as an ONNX graph.
//!
//! The form was chosen by measuring ONNX Runtime 1.31 on a CPU: three projections instead of one packed `qkv` (no split
//! and no five-dimensional transpose), weights stored as `MatMul` takes them, the attention's scale inside the query's
//! weights, `LayerNormalization` and `Gelu` as single operators.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use candle_onnx::onnx::ModelProto;
use macrl_bundle::bundle::{HIDDEN, INPUT, POOLED};
use macrl_bundle::config::{EncoderConfig, Pooling};
use macrl_bundle::parameters::EncoderLayout;

use crate::graph::{Element, Graph, Precision, batched, float, int, ints};

/// Added to the variance in every LayerNorm.
pub const LAYER_NORM_EPS: f32 = 1e-6;

/// Writes the encoder as a graph: `pixel_values` (B, 3, S, S) -> `last_hidden_state` (B, 1 + N, D) after the final
/// norm, and `pooler_output` (B, D).
///
/// `weights` holds timm's names without a prefix, `pos_embed` (1, 1 + N, D) among them.  With arithmetic in halves, inputs
/// and outputs stay 32-bit (a `Cast` at either end), and pooling is 32-bit.
///
/// # Errors
/// A tensor that is missing or has another shape than `shape` says.
pub fn build(
    shape: &EncoderConfig,
    pooling: Pooling,
    weights: &HashMap<String, Tensor>,
    precision: impl Into<Precision>,
    metadata: &[(&str, String)],
) -> Result<ModelProto> {
    let listed = EncoderLayout::new(shape);
    let shapes = listed.parameters().map(|p| (p.name.as_str(), p.shape.clone()));
    let positions = ("pos_embed", vec![1, shape.tokens().count(), shape.width]);
    let shapes = shapes.chain([positions]).collect();
    let mut vit = Vit { graph: Graph::new(precision), shape, shapes, weights };
    let mut x = vit.tokens()?;
    for index in 0..shape.depth {
        x = vit.block(&x, &format!("blocks.{index}"))?;
    }
    let hidden = vit.hidden(&x)?;
    vit.pool(&hidden, pooling);
    let (tokens, d, s) = (shape.tokens().count(), shape.width, shape.image_size);
    let outputs = vec![batched(HIDDEN, &[tokens, d]), batched(POOLED, &[d])];
    Ok(vit.graph.finish(vec![batched(INPUT, &[3, s, s])], outputs, metadata))
}

struct Vit<'a> {
    graph: Graph,
    shape: &'a EncoderConfig,
    /// The expected shape of each tensor.
    shapes: HashMap<&'a str, Vec<usize>>,
    weights: &'a HashMap<String, Tensor>,
}

impl Vit<'_> {
    /// pixels (B, 3, S, S) -> class token, patches and positions (B, 1 + N, D).
    fn tokens(&mut self) -> Result<String> {
        let patches = self.patches()?;
        let class = self.class_token()?;
        let tokens = self.graph.node("tokens", "Concat", &[&class, &patches], vec![int("axis", 1)]);
        let positions = self.constant("pos_embed")?;
        Ok(self.graph.node("tokens.positioned", "Add", &[&tokens, &positions], vec![]))
    }

    /// pixels (B, 3, S, S) -> one token per patch (B, N, D), row by row.
    fn patches(&mut self) -> Result<String> {
        let (d, p, n) = (self.shape.width, self.shape.patch_size, self.shape.patches());
        let pixels = self.cast_in();
        let weight = self.constant("patch_embed.proj.weight")?;
        let bias = self.constant("patch_embed.proj.bias")?;
        let edges = [p as i64, p as i64];
        let attributes = vec![ints("kernel_shape", &edges), ints("strides", &edges)];
        let x = self.graph.node("patch_embed.proj", "Conv", &[&pixels, &weight, &bias], attributes);
        let flat = self.graph.ints("patch_embed.shape", &[0, d as i64, n as i64]);
        let x = self.graph.node("patch_embed.flat", "Reshape", &[&x, &flat], vec![]);
        Ok(self.graph.node("patch_embed", "Transpose", &[&x], vec![ints("perm", &[0, 2, 1])]))
    }

    fn cast_in(&mut self) -> String {
        match self.graph.element() {
            Element::F32 => INPUT.to_string(),
            half @ Element::F16 => self.graph.node("pixels", "Cast", &[INPUT], vec![int("to", half.onnx())]),
        }
    }

    /// The class token once per image (B, 1, D).
    fn class_token(&mut self) -> Result<String> {
        let token = self.constant("cls_token")?;
        let g = &mut self.graph;
        let (zero, one) = (g.ints("zero", &[0]), g.ints("one", &[1]));
        let dims = g.node("batch.shape", "Shape", &[INPUT], vec![]);
        let batch = g.node("batch", "Slice", &[&dims, &zero, &one], vec![]);
        let rest = g.ints("cls_token.shape", &[1, self.shape.width as i64]);
        let shape = g.node("cls_token.batched_shape", "Concat", &[&batch, &rest], vec![int("axis", 0)]);
        Ok(g.node("cls_token.batched", "Expand", &[&token, &shape], vec![]))
    }

    /// One pre-norm block, (B, T, D) -> (B, T, D).
    fn block(&mut self, x: &str, name: &str) -> Result<String> {
        let y = self.layer_norm(x, &format!("{name}.norm1"), None)?;
        let y = self.attention(&y, &format!("{name}.attn"))?;
        let x = self.graph.node(&format!("{name}.attn.residual"), "Add", &[x, &y], vec![]);
        let y = self.layer_norm(&x, &format!("{name}.norm2"), None)?;
        let y = self.mlp(&y, &format!("{name}.mlp"))?;
        Ok(self.graph.node(name, "Add", &[&x, &y], vec![]))
    }

    /// softmax(q k^T / sqrt(D / H)) v per head, then the projection, (B, T, D) -> (B, T, D).
    fn attention(&mut self, x: &str, name: &str) -> Result<String> {
        // (B, H, T, D/H) for the query and the value, (B, H, D/H, T) for the key, ready to be multiplied.
        let query = self.head_projection(x, name, 0, &[0, 2, 1, 3])?;
        let key = self.head_projection(x, name, 1, &[0, 2, 3, 1])?;
        let value = self.head_projection(x, name, 2, &[0, 2, 1, 3])?;
        let (g, d) = (&mut self.graph, self.shape.width as i64);
        let scores = g.node(&format!("{name}.scores"), "MatMul", &[&query, &key], vec![]);
        let shares = g.node(&format!("{name}.softmax"), "Softmax", &[&scores], vec![int("axis", -1)]);
        let heads = g.node(&format!("{name}.heads"), "MatMul", &[&shares, &value], vec![]);
        let tokens = g.node(&format!("{name}.heads.tokens"), "Transpose", &[&heads], vec![ints("perm", &[0, 2, 1, 3])]);
        let merged = g.ints("heads.merged", &[0, 0, d]);
        let y = g.node(&format!("{name}.merged"), "Reshape", &[&tokens, &merged], vec![]);
        self.linear(&y, &format!("{name}.proj"))
    }

    /// Part 0, 1 or 2 (query, key, value) of the packed projection `qkv`, its heads brought into the order `perm` of
    /// (B, T, H, D/H).  The query's weights carry the scale.
    fn head_projection(&mut self, x: &str, name: &str, part: usize, perm: &[i64]) -> Result<String> {
        let (d, h) = (self.shape.width, self.shape.heads);
        let head = d / h;
        let scale = if part == 0 { (head as f64).powf(-0.5) } else { 1.0 };
        let weight = self.tensor(&format!("{name}.qkv.weight"))?.narrow(0, part * d, d)?;
        let bias = self.tensor(&format!("{name}.qkv.bias"))?.narrow(0, part * d, d)?;
        let name = format!("{name}.{}", ["q", "k", "v"][part]);
        let y = self.project(x, &name, &weight, &bias, scale)?;
        let split = self.graph.ints("heads.split", &[0, 0, h as i64, head as i64]);
        let y = self.graph.node(&format!("{name}.split"), "Reshape", &[&y, &split], vec![]);
        Ok(self.graph.node(&format!("{name}.heads"), "Transpose", &[&y], vec![ints("perm", perm)]))
    }

    /// fc2(gelu(fc1 x)), (B, T, D) -> (B, T, D); the exact (erf) GELU.
    fn mlp(&mut self, x: &str, name: &str) -> Result<String> {
        let y = self.linear(x, &format!("{name}.fc1"))?;
        let y = self.graph.node(&format!("{name}.act"), "Gelu", &[&y], vec![]);
        self.linear(&y, &format!("{name}.fc2"))
    }

    /// The final norm, 32-bit: `last_hidden_state`.
    fn hidden(&mut self, x: &str) -> Result<String> {
        if self.graph.element() == Element::F32 {
            return self.layer_norm(x, "norm", Some(HIDDEN));
        }
        let y = self.layer_norm(x, "norm", None)?;
        Ok(self.graph.node(HIDDEN, "Cast", &[&y], vec![int("to", Element::F32.onnx())]))
    }

    /// (B, 1 + N, D) -> `pooler_output` (B, D): the class token, or the mean of the patches.
    fn pool(&mut self, hidden: &str, pooling: Pooling) {
        let (g, tokens) = (&mut self.graph, self.shape.tokens());
        match pooling {
            Pooling::Cls => {
                let first = g.index("pool.first", 0);
                g.node(POOLED, "Gather", &[hidden, &first], vec![int("axis", 1)]);
            }
            Pooling::Mean => {
                // A sum and a quotient: candle-onnx's `ReduceMean` does not read the axes of this operator set.
                let (one, end) = (g.ints("one", &[1]), g.ints("pool.end", &[tokens.count() as i64]));
                let patches = g.node("pool.patches", "Slice", &[hidden, &one, &end, &one], vec![]);
                let sum = g.node("pool.sum", "ReduceSum", &[&patches, &one], vec![int("keepdims", 0)]);
                let count = g.number("pool.count", tokens.patches as f32);
                g.node(POOLED, "Div", &[&sum, &count], vec![]);
            }
        }
    }

    /// x W^T + b with timm's weight (out, in).
    fn linear(&mut self, x: &str, name: &str) -> Result<String> {
        let weight = self.tensor(&format!("{name}.weight"))?;
        let bias = self.tensor(&format!("{name}.bias"))?;
        self.project(x, name, &weight, &bias, 1.0)
    }

    /// `factor` (x W^T + b)
    fn project(&mut self, x: &str, name: &str, weight: &Tensor, bias: &Tensor, factor: f64) -> Result<String> {
        let g = &mut self.graph;
        let weight = g.weight(&format!("{name}.weight"), &weight.t()?, factor)?;
        let bias = g.weight(&format!("{name}.bias"), bias, factor)?;
        let y = g.node(&format!("{name}.product"), "MatMul", &[x, &weight], vec![]);
        Ok(g.node(name, "Add", &[&y, &bias], vec![]))
    }

    fn layer_norm(&mut self, x: &str, name: &str, output: Option<&str>) -> Result<String> {
        let weight = self.constant(&format!("{name}.weight"))?;
        let bias = self.constant(&format!("{name}.bias"))?;
        let attributes = vec![int("axis", -1), float("epsilon", LAYER_NORM_EPS)];
        Ok(self.graph.node(output.unwrap_or(name), "LayerNormalization", &[x, &weight, &bias], attributes))
    }

    /// Adds a weight unchanged.
    fn constant(&mut self, name: &str) -> Result<String> {
        let tensor = self.tensor(name)?;
        Ok(self.graph.weight(name, &tensor, 1.0)?)
    }

    /// A weight, of the shape that the list of parameters says.
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let shape = self.shapes.get(name).with_context(|| format!("an encoder has no parameter {name}"))?;
        let tensor = self.weights.get(name).with_context(|| format!("the encoder has no tensor {name}"))?;
        let found = tensor.dims();
        ensure!(found == shape.as_slice(), "tensor {name} should have shape {shape:?}, found {found:?}");
        Ok(tensor.clone())
    }
}
