//! The parts of ONNX model files that macrl uses: nodes, initializers, metadata, and references to external weights.
//!
//! The messages are written by hand after onnx.proto3 (ONNX 1.17: field numbers and types), so that no build needs a
//! protobuf compiler.  Other fields are kept as bytes and written back unchanged.

use std::path::Path;

use prost::Message;
use sha2::{Digest, Sha256};

use crate::regular;

/// Metadata key of a model with external weights: the SHA-256 of the model file that contains them, hexadecimal.
pub const OWNER_SHA256: &str = "external_sha256";

/// `TensorProto.DataType.FLOAT`: float32.
pub const FLOAT: i32 = 1;
/// `TensorProto.DataType.FLOAT16`: float16.
pub const FLOAT16: i32 = 10;
/// `TensorProto.DataLocation.EXTERNAL`: the values are in another file.
pub const EXTERNAL: i32 = 1;

/// `ModelProto`: a whole model file.
#[derive(Clone, PartialEq, Message)]
pub struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(bytes = "vec", repeated, tag = "2")]
    producer_name: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    producer_version: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "4")]
    domain: Vec<Vec<u8>>,
    #[prost(int64, optional, tag = "5")]
    model_version: Option<i64>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    doc_string: Vec<Vec<u8>>,
    /// The graph; required by ONNX.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    opset_import: Vec<Vec<u8>>,
    /// Metadata: pairs of text.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<Entry>,
    #[prost(bytes = "vec", repeated, tag = "20")]
    training_info: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "25")]
    functions: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "26")]
    configuration: Vec<Vec<u8>>,
}

/// `StringStringEntryProto`: a pair of texts.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// Key, unique within its list.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value, always text.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `GraphProto`: the computation.
#[derive(Clone, PartialEq, Message)]
pub struct Graph {
    /// Nodes in topological order.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    name: Vec<Vec<u8>>,
    /// Constants, the weights among them.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Tensor>,
    #[prost(bytes = "vec", repeated, tag = "10")]
    doc_string: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "11")]
    input: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "12")]
    output: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "13")]
    value_info: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "14")]
    quantization_annotation: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "15")]
    sparse_initializer: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "16")]
    metadata_props: Vec<Vec<u8>>,
}

/// `NodeProto`: one operation.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// Names of the inputs; an empty name stands for an omitted input.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of the outputs.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    name: Vec<Vec<u8>>,
    /// Operator name, for example `MatMul`.
    #[prost(string, tag = "4")]
    pub op_type: String,
    /// Settings of the operator, by name.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    doc_string: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    domain: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    overload: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    metadata_props: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "10")]
    device_configurations: Vec<Vec<u8>>,
}

/// `AttributeProto`: one setting of an operator.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    /// Attribute name as the operator defines it, for example `axis`.
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, optional, tag = "2")]
    f: Option<f32>,
    /// The value, if it is an integer.
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(bytes = "vec", repeated, tag = "4")]
    s: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "5")]
    t: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    g: Vec<Vec<u8>>,
    #[prost(float, repeated, tag = "7")]
    floats: Vec<f32>,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    strings: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "10")]
    tensors: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "11")]
    graphs: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "13")]
    doc_string: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "14")]
    tp: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "15")]
    type_protos: Vec<Vec<u8>>,
    #[prost(int32, optional, tag = "20")]
    kind: Option<i32>,
    #[prost(bytes = "vec", repeated, tag = "21")]
    ref_attr_name: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "22")]
    sparse_tensor: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "23")]
    sparse_tensors: Vec<Vec<u8>>,
}

/// `TensorProto`: a constant.
#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    /// Shape, outermost dimension first.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// [`FLOAT`], [`FLOAT16`] or another `TensorProto.DataType`.
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(bytes = "vec", repeated, tag = "3")]
    segment: Vec<Vec<u8>>,
    #[prost(float, repeated, tag = "4")]
    float_data: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    int32_data: Vec<i32>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    string_data: Vec<Vec<u8>>,
    #[prost(int64, repeated, tag = "7")]
    int64_data: Vec<i64>,
    /// Name by which nodes refer to it.
    #[prost(string, tag = "8")]
    pub name: String,
    /// Values, little-endian; empty if they are external.
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
    #[prost(double, repeated, tag = "10")]
    double_data: Vec<f64>,
    #[prost(uint64, repeated, tag = "11")]
    uint64_data: Vec<u64>,
    #[prost(bytes = "vec", repeated, tag = "12")]
    doc_string: Vec<Vec<u8>>,
    /// Where external values are: file, offset and length.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<Entry>,
    /// [`EXTERNAL`] if the values are in another file.
    #[prost(int32, tag = "14")]
    pub data_location: i32,
    #[prost(bytes = "vec", repeated, tag = "16")]
    metadata_props: Vec<Vec<u8>>,
}

impl Model {
    /// Reads and parses a model file.
    ///
    /// # Errors
    /// A message, if the file cannot be read or is not an ONNX model.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = regular::read(path).map_err(|e| e.to_string())?;
        Self::decode(bytes.as_slice()).map_err(|e| e.to_string())
    }

    /// The value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata_props.iter().find(|p| p.key == key).map(|p| p.value.as_str())
    }
}

impl Tensor {
    /// A float32 constant of shape `dims`.
    pub fn of_floats(name: String, dims: Vec<i64>, values: &[f32]) -> Self {
        let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor { name, dims, data_type: FLOAT, raw_data, ..Tensor::default() }
    }

    /// Number of values by the shape; `None` if a dimension is negative or the product overflows.
    pub fn count(&self) -> Option<usize> {
        self.dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))
    }
}

/// Checks that a model's external weights are those that it was exported with.
///
/// # Errors
/// A message with the expected and the found SHA-256, or why the weights cannot be read.
pub fn check_external(path: &Path) -> Result<(), String> {
    // ONNX Runtime reports a file that is not a model, when a session is opened.
    let Ok(model) = Model::read(path) else { return Ok(()) };
    let external = |t: &&Tensor| t.data_location == EXTERNAL;
    let graph = model.graph.as_ref();
    let Some(tensor) = graph.and_then(|g| g.initializer.iter().find(external)) else { return Ok(()) };
    let location = tensor.external_data.iter().find(|e| e.key == "location").map_or("", |e| e.value.as_str());
    let Some(expected) = model.metadata(OWNER_SHA256) else { return Ok(()) };
    // Elsewhere would be outside the bundle.
    if Path::new(location).file_name().is_none_or(|name| name != location) {
        return Err(format!("its weights are in {location:?}: expected a file beside it"));
    }
    let owner = path.with_file_name(location);
    let bytes = regular::read(&owner).map_err(|e| format!("its weights are in {}: {e}", owner.display()))?;
    let found: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    if found == expected {
        return Ok(());
    }
    Err(format!("its weights are in {location}: expected SHA-256 {expected:.8}..., found {found:.8}..."))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with one field (wire type 2) of each number in `fields`, by the rules of the protobuf encoding.
    fn message(fields: &[u32], inner: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for number in fields {
            prost::encoding::encode_key(*number, prost::encoding::WireType::LengthDelimited, &mut out);
            prost::encoding::encode_varint(inner.len() as u64, &mut out);
            out.extend_from_slice(inner);
        }
        out
    }

    #[test]
    fn unused_fields_are_written_back_unchanged() {
        let attribute =
            [&[0x15, 0, 0, 0, 0, 0x18, 0][..], &message(&[4, 5, 6, 9, 10, 11, 13, 14, 15, 21, 22, 23], b"x")].concat();
        let tensor = message(&[3, 6, 8, 9, 12, 16], b"w");
        let node = [message(&[1, 2, 3, 4], b"n"), message(&[5], &attribute), message(&[6, 7, 8, 9, 10], b"n")].concat();
        let graph = [
            message(&[1], &node),
            message(&[2], b"g"),
            message(&[5], &tensor),
            message(&[10, 11, 12, 13, 14, 15, 16], b"g"),
        ];
        let model = [
            vec![0x08, 8],
            message(&[2, 3, 4], b"m"),
            vec![0x28, 0],
            message(&[6], b"m"),
            message(&[7], &graph.concat()),
            message(&[8, 20, 25, 26], b"m"),
        ];
        let bytes = model.concat();
        assert_eq!(Model::decode(bytes.as_slice()).unwrap().encode_to_vec(), bytes);
    }
}
