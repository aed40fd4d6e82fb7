//! Copies a network's parameters to the device for inference.

use candle_core::{Device, Result, Tensor};

use super::memory::halved;
use super::scalar::ScalarType;
use crate::ops::graph::with_values;
use crate::params::{Group, OnDevice};

impl Group {
    /// A copy of the group on the device, without gradient.
    ///
    /// # Errors
    /// There is not enough memory on the device, or a copy failed.
    pub fn to_gpu(&self, device: &Device, scalar: ScalarType) -> Result<Group> {
        let values = with_values(self.values(), |values| Tensor::from_slice(values, values.len(), device))?;
        let half = halved(scalar, &values)?;
        Ok(self.clone().placed(values, OnDevice { gradient: None, half, anchor: None }))
    }
}
