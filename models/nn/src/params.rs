//! Parameters in flat vectors: one vector per layer or block, with names and shapes for the outside
//! ([`macrl_bundle::parameters`] lists them).
//!
//! A fused operator takes all its parameters as one flat tensor; the optimiser, the moving average and a reduction
//! over machines run over whole vectors.  Only checkpoints and exports see single parameters, under timm's names.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, Var, bail};
pub use macrl_bundle::parameters::{Init, Layout, Matrix, Parameter};
use macrl_kernels::rng::Rng;

use crate::ops::graph::with_values;

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

impl Group {
    fn new(layout: &Layout, values: Vec<f32>) -> Result<Self> {
        let values = Tensor::from_vec(values, layout.values(), &Device::Cpu)?;
        Ok(Group { parameters: layout.parameters().to_vec(), values, on_device: None })
    }

    /// Fresh values; each parameter's depend on the seed and its name only.
    ///
    /// # Errors
    /// Out of memory.
    pub fn init(layout: &Layout, seed: u64) -> Result<Self> {
        let mut values = Vec::with_capacity(layout.values());
        for parameter in layout.parameters() {
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
        Group::new(layout, values)
    }

    /// Values from named tensors, whose names carry `prefix` in front of the layout's.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape: both named.
    pub fn load(layout: &Layout, tensors: &HashMap<String, Tensor>, prefix: &str) -> Result<Self> {
        let mut values = Vec::with_capacity(layout.values());
        for parameter in layout.parameters() {
            let name = format!("{prefix}{}", parameter.name);
            let Some(tensor) = tensors.get(&name) else { bail!("tensor `{name}` is missing") };
            if tensor.dims() != parameter.shape {
                bail!("tensor `{name}` should have shape {:?}, found {:?}", parameter.shape, tensor.dims())
            }
            values.extend(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Group::new(layout, values)
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
        Ok(Group { parameters: self.parameters.clone(), values: self.values.copy()?.detach(), on_device: None })
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
