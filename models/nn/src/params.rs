//! Parameters in flat vectors: one vector per layer or block, with names and shapes for the outside.
//!
//! A fused operator takes all its parameters as one flat tensor; the optimiser, the moving average and a reduction
//! over machines run over whole vectors.  Only checkpoints and exports see single parameters, under timm's names.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{Device, Result, Tensor, Var, bail};
use macrl_kernels::rng::Rng;

use crate::ops::graph::with_values;

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

/// One parameter within a [`Group`].
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Full name, for example `blocks.0.attn.qkv.weight`.
    pub name: String,
    /// Shape under which it is stored.
    pub shape: Vec<usize>,
    /// Where it lies in the flat vector.
    pub range: Range<usize>,
    /// Whether weight decay applies: matrices yes; biases, norms and tokens no.
    pub decay: bool,
    init: Init,
}

/// A matrix within a [`Group`]'s flat vector, row by row.
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

/// Parameters that share one flat vector.
#[derive(Debug, Clone)]
pub struct Group {
    parameters: Vec<Parameter>,
    values: Tensor,
    on_device: Option<OnDevice>,
}

/// What a group on a GPU has besides its values; all are parts of vectors that hold every group.
#[derive(Debug, Clone)]
pub struct OnDevice {
    /// Where gradients are added up; `None`: it gets none.
    pub gradient: Option<Tensor>,
    /// The values in bfloat16, where products take them so.
    pub half: Option<Tensor>,
    /// A variable that makes Candle's `backward` reach the layer.
    pub anchor: Option<Tensor>,
}

/// Lists the parameters of a [`Group`] in their order.
#[derive(Debug, Default)]
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
        self.with(&format!("{name}.weight"), weight, Init::Xavier).with(
            &format!("{name}.bias"),
            &weight[..1],
            Init::Zeros,
        )
    }

    /// Appends `NAME.weight` (ones) and `NAME.bias` (zeros).
    pub fn with_norm(self, name: &str, width: usize) -> Self {
        self.with(&format!("{name}.weight"), &[width], Init::Ones).with(&format!("{name}.bias"), &[width], Init::Zeros)
    }

    /// Fresh values; each parameter's depend on the seed and its name only.
    ///
    /// # Errors
    /// Candle's.
    pub fn init(self, seed: u64) -> Result<Group> {
        let mut values = Vec::with_capacity(self.len);
        for parameter in &self.parameters {
            let name = parameter.name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| {
                (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3) // FNV-1a
            });
            let mut rng = Rng::new([seed, name, 0, 0]);
            let fan_out = parameter.shape[0];
            let fan_in = parameter.range.len() / fan_out;
            let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
            values.extend(parameter.range.clone().map(|_| match parameter.init {
                Init::Zeros => 0.0,
                Init::Ones => 1.0,
                Init::Xavier => ((2.0 * rng.uniform() - 1.0) * bound) as f32,
                Init::Normal(deviation) => rng.normal() as f32 * deviation,
            }));
        }
        Ok(Group::new(self.parameters, Tensor::from_vec(values, self.len, &Device::Cpu)?))
    }

    /// Values from named tensors, whose names carry `prefix` in front of this layout's.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape: both named.
    pub fn load(self, tensors: &HashMap<String, Tensor>, prefix: &str) -> Result<Group> {
        let mut values = Vec::with_capacity(self.len);
        for parameter in &self.parameters {
            let name = format!("{prefix}{}", parameter.name);
            let Some(tensor) = tensors.get(&name) else { bail!("tensor `{name}` is missing") };
            if tensor.dims() != parameter.shape {
                bail!("tensor `{name}` should have shape {:?}, found {:?}", parameter.shape, tensor.dims())
            }
            values.extend(tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(Group::new(self.parameters, Tensor::from_vec(values, self.len, &Device::Cpu)?))
    }
}

impl Group {
    fn new(parameters: Vec<Parameter>, values: Tensor) -> Self {
        Group { parameters, values, on_device: None }
    }

    /// The same parameters with their values on a GPU.
    pub fn placed(self, values: Tensor, on_device: OnDevice) -> Self {
        Group { values, on_device: Some(on_device), ..self }
    }

    /// The same parameters with other values on the CPU.
    pub fn placed_on_cpu(self, values: Tensor) -> Self {
        Group { values, on_device: None, ..self }
    }

    /// Where it lies, if on a GPU.
    pub fn on_device(&self) -> Option<&OnDevice> {
        self.on_device.as_ref()
    }

    /// The same memory, without gradients.
    pub fn frozen(&self) -> Group {
        let on_device = self.on_device.clone().map(|place| OnDevice { gradient: None, anchor: None, ..place });
        Group { values: self.values.detach(), on_device, ..self.clone() }
    }

    /// The flat vector.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// The parameters in order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The same values as a variable: gradients reach them, updates in place are seen by all clones.
    ///
    /// # Errors
    /// Candle's.
    pub fn trainable(self) -> Result<Group> {
        Ok(Group { values: Var::from_tensor(&self.values)?.as_tensor().clone(), ..self })
    }

    /// A copy that shares no memory and gets no gradient.
    ///
    /// # Errors
    /// Candle's.
    pub fn detached_copy(&self) -> Result<Group> {
        Ok(Group::new(self.parameters.clone(), self.values.copy()?.detach()))
    }

    /// Each parameter under its name in its own shape, copied.
    ///
    /// # Errors
    /// Candle's.
    pub fn named(&self) -> Result<Vec<(String, Tensor)>> {
        with_values(&self.values, |values| {
            let tensor = |p: &Parameter| {
                let values = values[p.range.clone()].to_vec();
                Ok((p.name.clone(), Tensor::from_vec(values, p.shape.as_slice(), &Device::Cpu)?))
            };
            self.parameters.iter().map(tensor).collect()
        })
    }
}
