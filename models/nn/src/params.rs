//! Parameters in flat vectors: one vector per layer or block, with the names and shapes of
//! [`macrl_bundle::parameters`].
//!
//! A fused operator gets all of its parameters as one flat tensor; the optimiser and the moving average process whole
//! vectors.  Only checkpoints and exports use single parameters, under timm's names.

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

/// The GPU tensors of a group besides its values; each is a part of a vector that contains every group.
#[derive(Debug, Clone)]
pub struct OnDevice {
    /// The tensor that gradients are added to; `None` if the group is not trained.
    pub gradient: Option<Tensor>,
    /// The values in bfloat16, if matrix products use them.
    pub half: Option<Tensor>,
    /// A variable through which Candle's `backward` reaches the layer; see `cuda::node`.
    pub anchor: Option<Tensor>,
}

impl Group {
    fn new(layout: &Layout, values: Vec<f32>) -> Result<Self> {
        let values = Tensor::from_vec(values, layout.values(), &Device::Cpu)?;
        Ok(Group { parameters: layout.parameters().to_vec(), values, on_device: None })
    }

    /// Initial values; those of a parameter depend only on the seed and the parameter's name.
    ///
    /// # Errors
    /// There is not enough memory.
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

    /// Values from named tensors; `prefix` is put before the layout's names.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; the message names it.
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

    /// The same parameters, with values on a GPU.
    pub fn placed(self, values: Tensor, on_device: OnDevice) -> Self {
        Group { values, on_device: Some(on_device), ..self }
    }

    /// The same parameters, with other values on the CPU.
    pub fn placed_on_cpu(self, values: Tensor) -> Self {
        Group { values, on_device: None, ..self }
    }

    /// The group's GPU tensors; `None` on the CPU.
    pub fn on_device(&self) -> Option<&OnDevice> {
        self.on_device.as_ref()
    }

    /// The same parameters in the same memory, without gradients.
    pub fn frozen(&self) -> Group {
        let on_device = self.on_device.clone().map(|place| OnDevice { gradient: None, anchor: None, ..place });
        Group { values: self.values.detach(), on_device, ..self.clone() }
    }

    /// All values as one flat tensor.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Names, shapes and ranges of the parameters, in order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The same values as a variable: it receives gradients, and all clones see its in-place updates.
    ///
    /// # Errors
    /// A failed Candle allocation or copy.
    pub fn trainable(self) -> Result<Group> {
        Ok(Group { values: Var::from_tensor(&self.values)?.as_tensor().clone(), ..self })
    }

    /// A copy in memory of its own, without gradients.
    ///
    /// # Errors
    /// A failed Candle allocation or copy.
    pub fn detached_copy(&self) -> Result<Group> {
        Ok(Group { parameters: self.parameters.clone(), values: self.values.copy()?.detach(), on_device: None })
    }

    /// A copy of each parameter in its own shape, with its name.
    ///
    /// # Errors
    /// A failed copy from the GPU or a failed Candle allocation.
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
