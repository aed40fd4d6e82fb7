//! The network's parameters as data: names, shapes, order, and how each starts.
//!
//! This is the only list of them.  Initialisation, checkpoints and the key branch's copies (`macrl_nn::params`), the check of a
//! bundle, and the ONNX export all go by it; a fused operator finds its parameters by their order in a group.

use std::ops::Range;

use crate::config::EncoderConfig;

/// Standard deviation of fresh class and mask tokens, as MAE starts them.
pub const TOKEN_DEVIATION: f32 = 0.02;

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Uniform in +-sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010); the first dimension is fan out.
    Xavier,
    /// Normal with this standard deviation.
    Normal(f32),
}

/// One parameter within a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Full name, for example `blocks.0.attn.qkv.weight`.
    pub name: String,
    /// Shape under which it is stored.
    pub shape: Vec<usize>,
    /// Where it lies in the group's flat vector.
    pub range: Range<usize>,
    /// Whether weight decay applies: matrices yes; biases, norms and tokens no.
    pub decay: bool,
    /// How it starts.
    pub init: Init,
}

/// A matrix within a group's flat vector, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Where it lies.
    pub range: Range<usize>,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
}

impl Parameter {
    /// The matrices that Muon updates: weights of transformer blocks, the joint one of queries, keys and values as three.
    /// None for every other parameter.
    pub fn block_matrices(&self) -> Vec<Matrix> {
        let (true, [rows, columns]) = (self.name.contains("blocks."), self.shape.as_slice()) else { return Vec::new() };
        let parts = if self.name.ends_with("attn.qkv.weight") { 3 } else { 1 };
        let (rows, columns) = (rows / parts, *columns);
        let part = |i: usize| {
            let start = self.range.start + i * rows * columns;
            Matrix { range: start..start + rows * columns, rows, columns }
        };
        (0..parts).map(part).collect()
    }
}

/// The parameters of one group, which share a flat vector, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layout {
    prefix: String,
    parameters: Vec<Parameter>,
    len: usize,
}

impl Layout {
    /// An empty list; names get `prefix` in front.
    pub fn new(prefix: &str) -> Self {
        Layout { prefix: prefix.to_string(), ..Self::default() }
    }

    /// Appends a parameter.
    pub fn with(mut self, name: &str, shape: &[usize], init: Init) -> Self {
        let end = self.len + shape.iter().product::<usize>();
        self.parameters.push(Parameter {
            name: format!("{}{name}", self.prefix),
            shape: shape.to_vec(),
            range: self.len..end,
            decay: init == Init::Xavier,
            init,
        });
        self.len = end;
        self
    }

    /// Appends `NAME.weight` (shape as given, Glorot) and `NAME.bias` (zeros).
    pub fn with_linear(self, name: &str, weight: &[usize]) -> Self {
        let (matrix, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        self.with(&matrix, weight, Init::Xavier).with(&bias, &weight[..1], Init::Zeros)
    }

    /// Appends `NAME.weight` (ones) and `NAME.bias` (zeros).
    pub fn with_norm(self, name: &str, width: usize) -> Self {
        self.with(&format!("{name}.weight"), &[width], Init::Ones).with(&format!("{name}.bias"), &[width], Init::Zeros)
    }

    /// The parameters in their order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Values in the flat vector.
    pub fn values(&self) -> usize {
        self.len
    }
}

/// A transformer block's parameters under timm's names, with `prefix` in front.
pub fn block(prefix: &str, width: usize, hidden: usize) -> Layout {
    Layout::new(prefix)
        .with_norm("norm1", width)
        .with_linear("attn.qkv", &[3 * width, width])
        .with_linear("attn.proj", &[width, width])
        .with_norm("norm2", width)
        .with_linear("mlp.fc1", &[hidden, width])
        .with_linear("mlp.fc2", &[width, hidden])
}

/// A stack of blocks: names are `PREFIX.0.norm1.weight` and so on.
pub fn blocks(prefix: &str, depth: usize, width: usize, hidden: usize) -> Vec<Layout> {
    (0..depth).map(|i| block(&format!("{prefix}.{i}."), width, hidden)).collect()
}

/// The encoder's groups, under timm's names.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderLayout {
    /// Class token and patch embedding.
    pub embed: Layout,
    /// The transformer blocks.
    pub blocks: Vec<Layout>,
    /// The final norm.
    pub norm: Layout,
}

impl EncoderLayout {
    /// Of a geometry.
    pub fn new(config: &EncoderConfig) -> Self {
        let (d, p) = (config.width, config.patch_size);
        EncoderLayout {
            embed: Layout::new("")
                .with("cls_token", &[1, config.tokens().prefix, d], Init::Normal(TOKEN_DEVIATION))
                .with_linear("patch_embed.proj", &[d, 3, p, p]),
            blocks: blocks("blocks", config.depth, d, d * config.mlp_ratio),
            norm: Layout::new("").with_norm("norm", d),
        }
    }

    /// All parameters in their order.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.embed).chain(&self.blocks).chain([&self.norm]).flat_map(|group| &group.parameters)
    }
}
