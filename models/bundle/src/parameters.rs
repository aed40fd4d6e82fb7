//! The network's parameters: names, shapes, order and initialisation.
//!
//! This is the only list of them.  Initialisation, checkpoints, the key branch's copy (`macrl_nn::params`), the bundle
//! check and the ONNX export all use it.  A fused operator finds its parameters by their order in a group.

use std::ops::Range;

use crate::config::EncoderConfig;

/// Standard deviation of the initial class and mask tokens, as in MAE.
pub const TOKEN_DEVIATION: f32 = 0.02;

/// Initial values of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All values are 0.
    Zeros,
    /// All values are 1.
    Ones,
    /// Uniform in +-sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010); fan out is the first dimension.
    Xavier,
    /// Normal with this standard deviation.
    Normal(f32),
}

/// One parameter of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Full name, for example `blocks.0.attn.qkv.weight`.
    pub name: String,
    /// Shape in checkpoints and bundles.
    pub shape: Vec<usize>,
    /// Position in the group's flat vector.
    pub range: Range<usize>,
    /// Whether weight decay applies: true for matrices, false for biases, norms and tokens.
    pub decay: bool,
    /// How a new network's values are drawn.
    pub init: Init,
}

/// A row-major matrix in a group's flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Position in the group's flat vector.
    pub range: Range<usize>,
    /// Number of outputs.
    pub rows: usize,
    /// Number of inputs.
    pub columns: usize,
}

impl Parameter {
    /// The matrices that Muon updates: the weights of transformer blocks.  The joint matrix of queries, keys and
    /// values counts as three.  Empty for every other parameter.
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

/// The parameters of one group in order; they share one flat vector.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layout {
    prefix: String,
    parameters: Vec<Parameter>,
    len: usize,
}

impl Layout {
    /// An empty list whose parameter names start with `prefix`.
    pub fn new(prefix: &str) -> Self {
        Layout { prefix: prefix.to_string(), ..Self::default() }
    }

    /// Appends a parameter to the group.
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

    /// Appends `NAME.weight` of shape `weight` (Glorot) and `NAME.bias` (zeros).
    pub fn with_linear(self, name: &str, weight: &[usize]) -> Self {
        let (matrix, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        self.with(&matrix, weight, Init::Xavier).with(&bias, &weight[..1], Init::Zeros)
    }

    /// Appends `NAME.weight` (ones) and `NAME.bias` (zeros).
    pub fn with_norm(self, name: &str, width: usize) -> Self {
        self.with(&format!("{name}.weight"), &[width], Init::Ones).with(&format!("{name}.bias"), &[width], Init::Zeros)
    }

    /// The parameters in the order of the flat vector.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Number of values in the flat vector.
    pub fn values(&self) -> usize {
        self.len
    }
}

/// The parameters of a transformer block under timm's names, with `prefix` in front.
pub fn block(prefix: &str, width: usize, hidden: usize) -> Layout {
    Layout::new(prefix)
        .with_norm("norm1", width)
        .with_linear("attn.qkv", &[3 * width, width])
        .with_linear("attn.proj", &[width, width])
        .with_norm("norm2", width)
        .with_linear("mlp.fc1", &[hidden, width])
        .with_linear("mlp.fc2", &[width, hidden])
}

/// The parameters of a stack of blocks, named `PREFIX.0.norm1.weight` and so on.
pub fn blocks(prefix: &str, depth: usize, width: usize, hidden: usize) -> Vec<Layout> {
    (0..depth).map(|i| block(&format!("{prefix}.{i}."), width, hidden)).collect()
}

/// The encoder's parameter groups, under timm's names.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderLayout {
    /// Class token and patch embedding.
    pub embed: Layout,
    /// One group per transformer block.
    pub blocks: Vec<Layout>,
    /// Weight and bias of the final norm.
    pub norm: Layout,
}

impl EncoderLayout {
    /// The groups of an encoder of this geometry.
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

    /// All parameters in order: embedding, blocks, norm.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.embed).chain(&self.blocks).chain([&self.norm]).flat_map(|group| &group.parameters)
    }
}
