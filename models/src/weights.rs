//! A model file's weights: held once for all sessions that run it, and where they lie in another file, that one checked.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use candle_onnx::onnx::tensor_proto::{DataLocation, DataType};
use candle_onnx::onnx::{GraphProto, ModelProto, NodeProto, TensorProto};
use ort::session::Session;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, Tensor};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::runtime::{self, RuntimeError};

/// Metadata of a model whose weights lie in another model's file: that file's SHA-256, hexadecimal.
pub const OWNER_SHA256: &str = "external_sha256";

/// Smaller tensors are cheaper to copy than to share.
const WORTH_SHARING: usize = 4096;

/// The weights of one model file, and what ONNX Runtime makes of them for its matrix products.
///
/// ONNX Runtime shares the repacked form of those weights alone that every session is handed from outside; those it reads
/// from the file, and those it makes of halves in the file, each session holds for itself.
pub struct SharedWeights {
    /// The model with wide weights in place of its halves; `None` where the file has no halves.
    widened: Option<Vec<u8>>,
    initializers: Vec<(String, Arc<DynValue>)>,
    prepacked: PrepackedWeights,
}

impl SharedWeights {
    /// Reads the weights of a model file that computes in 32 bits.
    ///
    /// # Errors
    /// Those of [`runtime::load`]; [`RuntimeError::Model`] where the file is no ONNX model.
    pub fn read(model: &Path) -> Result<Self, RuntimeError> {
        runtime::load()?;
        let fault =
            |e: &dyn std::fmt::Display| RuntimeError::Model { path: model.display().to_string(), cause: e.to_string() };
        let mut read = candle_onnx::read_file(model).map_err(|e| fault(&e))?;
        let widened = read.graph.as_mut().is_some_and(widen).then(|| read.encode_to_vec());
        let graph = read.graph.unwrap_or_default();
        let shared = graph.initializer.into_iter().filter_map(|t| Some((t.name.clone(), worth_sharing(&t)?, t.dims)));
        let initializers = shared.map(|(name, values, dims)| {
            let value = Tensor::from_array((dims, values)).map_err(|e| fault(&e))?;
            Ok((name, Arc::new(value.into_dyn())))
        });
        let initializers = initializers.collect::<Result<_, _>>()?;
        Ok(Self { widened, initializers, prepacked: PrepackedWeights::new() })
    }

    /// Opens a session that shares the weights; `model` is the file that was read.
    pub(crate) fn session(&self, builder: SessionBuilder, model: &Path) -> ort::Result<Session> {
        let mut builder = builder.with_prepacked_weights(&self.prepacked)?;
        for (name, value) in &self.initializers {
            builder = builder.with_initializer(name, value.clone())?;
        }
        match &self.widened {
            Some(bytes) => builder.commit_from_memory(bytes),
            None => builder.commit_from_file(model),
        }
    }
}

/// The values of a tensor that is worth sharing: 32-bit, and within the file.
fn worth_sharing(tensor: &TensorProto) -> Option<Vec<f32>> {
    floats(tensor).filter(|values| values.len() >= WORTH_SHARING)
}

fn floats(tensor: &TensorProto) -> Option<Vec<f32>> {
    let whole = tensor.data_type == DataType::Float as i32 && tensor.raw_data.len() == count(tensor)?.checked_mul(4)?;
    let (values, _) = tensor.raw_data.as_chunks();
    whole.then(|| values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn count(tensor: &TensorProto) -> Option<usize> {
    tensor.dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))
}

/// Replaces every `Cast` of a constant of halves to 32 bits, and every product of such a constant with a number, by its
/// result; says whether there were any.  ONNX Runtime would do it too, for every session anew.
fn widen(graph: &mut GraphProto) -> bool {
    let mut constants: HashMap<String, TensorProto> =
        graph.initializer.drain(..).map(|tensor| (tensor.name.clone(), tensor)).collect();
    let before = graph.node.len();
    graph.node.retain(|node| {
        let result = folded(node, &constants);
        let stays = result.is_none();
        constants.extend(result.map(|tensor| (tensor.name.clone(), tensor)));
        stays
    });
    let used: HashSet<&String> = graph.node.iter().flat_map(|node| &node.input).collect();
    graph.initializer = constants.into_values().filter(|tensor| used.contains(&tensor.name)).collect();
    graph.initializer.sort_by(|a, b| a.name.cmp(&b.name));
    graph.node.len() < before
}

/// What a node makes of constants.
fn folded(node: &NodeProto, constants: &HashMap<String, TensorProto>) -> Option<TensorProto> {
    let wide = || node.attribute.iter().any(|a| a.name == "to" && a.i == DataType::Float as i64);
    let values = match (node.op_type.as_str(), node.input.as_slice()) {
        ("Cast", [half]) if wide() => halves(constants.get(half)?)?,
        ("Mul", [values, number]) => {
            let (values, number) = (floats(constants.get(values)?)?, floats(constants.get(number)?)?);
            let [factor] = number[..] else { return None };
            values.into_iter().map(|v| v * factor).collect()
        }
        _ => return None,
    };
    Some(TensorProto {
        name: node.output.first()?.clone(),
        dims: constants.get(&node.input[0])?.dims.clone(),
        data_type: DataType::Float as i32,
        raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..Default::default()
    })
}

/// A constant of halves, widened.
fn halves(tensor: &TensorProto) -> Option<Vec<f32>> {
    let (count, bytes) = (count(tensor)?, &tensor.raw_data);
    if tensor.data_type != DataType::Float16 as i32 || bytes.len() != count.checked_mul(2)? {
        return None;
    }
    let read = candle_core::Tensor::from_raw_buffer(bytes, DType::F16, &[count], &Device::Cpu);
    read.and_then(|t| t.to_dtype(DType::F32)?.to_vec1()).ok()
}

/// Checks that weights which a model takes from a file beside it are the ones that it was written with.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn check_external(model: &Path) -> Result<(), String> {
    // What is no model at all, ONNX Runtime says when a session is opened.
    let Ok(read) = candle_onnx::read_file(model) else { return Ok(()) };
    let external = |t: &&TensorProto| t.data_location == DataLocation::External as i32;
    let graph = read.graph.as_ref();
    let Some(tensor) = graph.and_then(|g| g.initializer.iter().find(external)) else { return Ok(()) };
    let location = tensor.external_data.iter().find(|e| e.key == "location").map_or("", |e| e.value.as_str());
    let Some(expected) = metadata(&read, OWNER_SHA256) else { return Ok(()) };
    let owner = model.with_file_name(location);
    let bytes = std::fs::read(&owner).map_err(|e| format!("it takes its weights from {}: {e}", owner.display()))?;
    let found: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    if found == expected {
        return Ok(());
    }
    Err(format!("it takes its weights from {location} with SHA-256 {expected:.8}..., found one with {found:.8}..."))
}

fn metadata<'a>(model: &'a ModelProto, key: &str) -> Option<&'a str> {
    model.metadata_props.iter().find(|p| p.key == key).map(|p| p.value.as_str())
}
