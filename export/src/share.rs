//! Two graphs, one copy of their weights: `model_fp16.onnx` takes the halves that lie in `model.onnx` already from there.
//!
//! ONNX calls it external data: a file beside the graph's own, an offset and a length.

use anyhow::{Context, Result};
use candle_onnx::onnx::tensor_proto::{DataLocation, DataType};
use candle_onnx::onnx::{ModelProto, StringStringEntryProto, TensorProto};
use macrl_bundle::onnx::OWNER_SHA256;
use sha2::{Digest, Sha256};

/// Bytes below which a tensor stays in its own file.
const WORTH_SHARING: usize = 2048;

/// `model` with every tensor of halves whose bytes lie in the file `owner` (its name and content) taken from there.  The
/// model's metadata then hold the owner's SHA-256: with another file of that name it would compute nonsense.
pub fn halves(model: &ModelProto, name: &str, owner: &[u8]) -> ModelProto {
    let mut model = model.clone();
    let Some(graph) = model.graph.as_mut() else { return model };
    let (mut from, mut shared) = (0, false);
    for tensor in graph.initializer.iter_mut().filter(|t| worth_sharing(t)) {
        // Both files hold the tensors in the same order: the next one is just ahead.
        let Some(at) = find(&owner[from..], &tensor.raw_data).map(|at| from + at) else { continue };
        from = at + tensor.raw_data.len();
        tensor.external_data = vec![
            entry("location", name.to_string()),
            entry("offset", at.to_string()),
            entry("length", tensor.raw_data.len().to_string()),
        ];
        tensor.data_location = DataLocation::External as i32;
        tensor.raw_data = Vec::new();
        shared = true;
    }
    if shared {
        let sha: String = Sha256::digest(owner).iter().map(|b| format!("{b:02x}")).collect();
        model.metadata_props.push(entry(OWNER_SHA256, sha));
    }
    model
}

/// The opposite of [`halves`]: `model` with all of its weights in its own file.
///
/// # Errors
/// A tensor that does not lie in `owner`.
pub fn whole(model: &ModelProto, owner: &[u8]) -> Result<ModelProto> {
    let mut model = model.clone();
    model.metadata_props.retain(|entry| entry.key != OWNER_SHA256);
    let graph = model.graph.as_mut().context("the model has no graph")?;
    for tensor in graph.initializer.iter_mut().filter(|t| t.data_location == DataLocation::External as i32) {
        let number = |key: &str| -> Option<usize> {
            tensor.external_data.iter().find(|entry| entry.key == key)?.value.parse().ok()
        };
        let bytes =
            number("offset").zip(number("length")).and_then(|(at, length)| owner.get(at..at.checked_add(length)?));
        tensor.raw_data =
            bytes.with_context(|| format!("the weights of {} are not where it says", tensor.name))?.to_vec();
        tensor.external_data.clear();
        tensor.data_location = DataLocation::Default as i32;
    }
    Ok(model)
}

fn worth_sharing(tensor: &TensorProto) -> bool {
    tensor.data_type == DataType::Float16 as i32 && tensor.raw_data.len() >= WORTH_SHARING
}

fn find(whole: &[u8], part: &[u8]) -> Option<usize> {
    whole.windows(part.len()).position(|window| window == part)
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: key.into(), value }
}
