//! A model file's weights, loaded once and shared by all sessions of the model.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use half::f16;
use macrl_bundle::onnx::{FLOAT, FLOAT16, Graph, Model, Node, Tensor as Constant};
use ort::session::Session;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, Tensor};
use prost::Message;

use crate::error::RuntimeError;
use crate::library::load;

/// Values of the smallest tensor that is shared; copying smaller ones is cheaper.
const WORTH_SHARING: usize = 4096;

/// The weights of one model file, with ONNX Runtime's packed form of them for matrix products.
///
/// ONNX Runtime shares the packed form only of weights that are passed to every session.  Each session packs its own
/// copy of weights that it reads from the file or converts from float16.
pub struct SharedWeights {
    /// The model with float16 weights converted to float32; `None` if the file has no float16 weights.
    widened: Option<Vec<u8>>,
    initializers: Vec<(String, Arc<DynValue>)>,
    prepacked: PrepackedWeights,
}

impl SharedWeights {
    /// Reads the weights of a model file that computes in float32.
    ///
    /// # Errors
    /// Those of [`load`]; [`RuntimeError::Model`] if the file is not an ONNX model.
    pub fn read(model: &Path) -> Result<Self, RuntimeError> {
        load()?;
        let fault = |cause: String| RuntimeError::Model { path: model.display().to_string(), cause };
        let mut read = Model::read(model).map_err(fault)?;
        let widened = read.graph.as_mut().is_some_and(widen).then(|| read.encode_to_vec());
        let graph = read.graph.unwrap_or_default();
        let shared = graph.initializer.into_iter().filter_map(|t| Some((t.name.clone(), worth_sharing(&t)?, t.dims)));
        let initializers = shared.map(|(name, values, dims)| {
            let value = Tensor::from_array((dims, values)).map_err(|e| fault(e.to_string()))?;
            Ok((name, Arc::new(value.into_dyn())))
        });
        let initializers = initializers.collect::<Result<_, _>>()?;
        Ok(Self { widened, initializers, prepacked: PrepackedWeights::new() })
    }

    /// Opens a session that shares the weights; `model` is the file that they were read from.
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

/// The values of a float32 tensor that is large enough to share and stored in the model file itself.
fn worth_sharing(tensor: &Constant) -> Option<Vec<f32>> {
    floats(tensor).filter(|values| values.len() >= WORTH_SHARING)
}

fn floats(tensor: &Constant) -> Option<Vec<f32>> {
    let whole = tensor.data_type == FLOAT && tensor.raw_data.len() == tensor.count()?.checked_mul(4)?;
    let (values, _) = tensor.raw_data.as_chunks();
    whole.then(|| values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// A float16 constant's values as float32.
fn halves(tensor: &Constant) -> Option<Vec<f32>> {
    let whole = tensor.data_type == FLOAT16 && tensor.raw_data.len() == tensor.count()?.checked_mul(2)?;
    let (values, _) = tensor.raw_data.as_chunks();
    whole.then(|| values.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect())
}

/// Folds constants as ONNX Runtime would for every session: replaces each `Cast` of a float16 constant to float32, and
/// each product of such a constant with a scalar, by its result.  Returns whether any node was replaced.
fn widen(graph: &mut Graph) -> bool {
    let mut constants: HashMap<String, Constant> =
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

/// The result of a node whose arguments are constants; `None` if the node is not folded.
fn folded(node: &Node, constants: &HashMap<String, Constant>) -> Option<Constant> {
    let wide = || node.attribute.iter().any(|a| a.name == "to" && a.i == Some(i64::from(FLOAT)));
    let values: Vec<f32> = match (node.op_type.as_str(), node.input.as_slice()) {
        ("Cast", [half]) if wide() => halves(constants.get(half)?)?,
        ("Mul", [values, number]) => {
            let (values, number) = (floats(constants.get(values)?)?, floats(constants.get(number)?)?);
            let [factor] = number[..] else { return None };
            values.into_iter().map(|v| v * factor).collect()
        }
        _ => return None,
    };
    let dims = constants.get(&node.input[0])?.dims.clone();
    Some(Constant::of_floats(node.output.first()?.clone(), dims, &values))
}
