//! A model file's weights, held once for all sessions that run it.

use std::path::Path;
use std::sync::Arc;

use candle_onnx::onnx::TensorProto;
use candle_onnx::onnx::tensor_proto::DataType;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, Tensor};

use crate::runtime::{self, RuntimeError};

/// Smaller tensors are cheaper to copy than to share.
const WORTH_SHARING: usize = 4096;

/// The weights of one model file, and what ONNX Runtime makes of them for its matrix products.
///
/// ONNX Runtime shares the repacked form of those weights alone that every session is handed from outside; those it reads
/// from the file, each session repacks for itself.
pub struct SharedWeights {
    initializers: Vec<(String, Arc<DynValue>)>,
    prepacked: PrepackedWeights,
}

impl SharedWeights {
    /// Reads the 32-bit weights of a model file.
    ///
    /// # Errors
    /// Those of [`runtime::load`]; [`RuntimeError::Model`] where the file is no ONNX model.
    pub fn read(model: &Path) -> Result<Self, RuntimeError> {
        runtime::load()?;
        let fault =
            |e: &dyn std::fmt::Display| RuntimeError::Model { path: model.display().to_string(), cause: e.to_string() };
        let graph = candle_onnx::read_file(model).map_err(|e| fault(&e))?.graph.unwrap_or_default();
        let shared = graph.initializer.into_iter().filter_map(|t| Some((t.name.clone(), floats(&t)?, t.dims)));
        let initializers = shared.map(|(name, values, dims)| {
            let value = Tensor::from_array((dims, values)).map_err(|e| fault(&e))?;
            Ok((name, Arc::new(value.into_dyn())))
        });
        Ok(Self { initializers: initializers.collect::<Result<_, _>>()?, prepacked: PrepackedWeights::new() })
    }

    /// Hands the weights to a session that is being built.
    pub(crate) fn hand_to(&self, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        let mut builder = builder.with_prepacked_weights(&self.prepacked)?;
        for (name, value) in &self.initializers {
            builder = builder.with_initializer(name, value.clone())?;
        }
        Ok(builder)
    }
}

/// The values of a tensor that is worth sharing: 32-bit, and within the file.
fn floats(tensor: &TensorProto) -> Option<Vec<f32>> {
    let count = tensor.dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))?;
    let whole = tensor.data_type == DataType::Float as i32 && tensor.raw_data.len() == count.checked_mul(4)?;
    let (values, _) = tensor.raw_data.as_chunks();
    (whole && count >= WORTH_SHARING).then(|| values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
