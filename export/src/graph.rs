//! Builds an ONNX graph with candle-onnx's protobuf types.
//!
//! A node has one output, which has the node's name.  Names follow the module path of timm's ViT
//! (`blocks.0.attn.proj`), so that a profile of the graph reads like the network.

use candle_core::{DType, Result, Tensor};
use candle_onnx::onnx::attribute_proto::AttributeType;
use candle_onnx::onnx::tensor_proto::DataType;
use candle_onnx::onnx::tensor_shape_proto::{Dimension, dimension};
use candle_onnx::onnx::type_proto::{Tensor as TensorType, Value as TypeValue};
use candle_onnx::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
};

/// The `producer_name` of our graphs, by which they are recognised.
pub const PRODUCER: &str = "macrl-export";
/// Operator set of every graph: the first with `Gelu`.
pub const OPSET: i64 = 20;
/// Version of the file format that belongs to [`OPSET`].
const IR_VERSION: i64 = 9;

/// Smallest number of values for which storing a matrix as halves, with a `Cast`, saves space.
const WORTH_HALVING: usize = 1024;

/// Precision of stored weights, or of the arithmetic inside a graph; inputs and outputs are always 32-bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point (IEEE half).
    F16,
}

/// Precision of a graph's arithmetic and of the weights in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Precision of activations and products.
    pub arithmetic: Element,
    /// Precision of weights in the file.  Where it is narrower than the arithmetic, a weight that is exact in halves is stored as
    /// halves with a `Cast`: the graph then computes the same bits as with the wide weight.
    pub weights: Element,
}

impl From<Element> for Precision {
    fn from(element: Element) -> Self {
        Self { arithmetic: element, weights: element }
    }
}

impl Element {
    /// ONNX's number of the type.
    pub fn onnx(self) -> i64 {
        match self {
            Element::F32 => DataType::Float as i64,
            Element::F16 => DataType::Float16 as i64,
        }
    }

    /// The same type in Candle.
    pub fn dtype(self) -> DType {
        match self {
            Element::F32 => DType::F32,
            Element::F16 => DType::F16,
        }
    }
}

/// The nodes and constants of a graph that is being built.
#[derive(Debug)]
pub struct Graph {
    precision: Precision,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

impl Graph {
    /// Starts an empty graph.
    pub fn new(precision: impl Into<Precision>) -> Self {
        Self { precision: precision.into(), nodes: Vec::new(), initializers: Vec::new() }
    }

    /// Precision of the graph's arithmetic.
    pub fn element(&self) -> Element {
        self.precision.arithmetic
    }

    /// Adds an operator and returns its output's name, which is `name`.
    pub fn node(&mut self, name: &str, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.nodes.push(node(name, op, inputs, attributes));
        name.to_string()
    }

    /// Adds a constant in the graph's arithmetic, `factor` times `tensor`, and returns its name.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn weight(&mut self, name: &str, tensor: &Tensor, factor: f64) -> Result<String> {
        if self.halves_hold(tensor)? {
            return self.halves(name, tensor, factor);
        }
        let element = self.element();
        let tensor = if factor == 1.0 { tensor.clone() } else { (tensor * factor)? };
        self.initializers.push(stored(name, &tensor, element)?);
        Ok(name.to_string())
    }

    /// Whether a weight of a 32-bit graph is stored as halves: halves were asked for, save space, and are exact.
    fn halves_hold(&self, tensor: &Tensor) -> Result<bool> {
        let Precision { arithmetic: Element::F32, weights: Element::F16 } = self.precision else { return Ok(false) };
        if tensor.rank() < 2 || tensor.elem_count() < WORTH_HALVING {
            return Ok(false);
        }
        let wide = tensor.flatten_all()?.to_dtype(DType::F32)?;
        let through = wide.to_dtype(DType::F16)?.to_dtype(DType::F32)?;
        Ok(wide.to_vec1::<f32>()? == through.to_vec1::<f32>()?)
    }

    /// Adds halves, their `Cast`, and a multiplication by `factor`, since the product may not be exact in halves.
    fn halves(&mut self, name: &str, tensor: &Tensor, factor: f64) -> Result<String> {
        let half = format!("{name}.half");
        self.initializers.push(stored(&half, tensor, Element::F16)?);
        let to = vec![int("to", Element::F32.onnx())];
        if factor == 1.0 {
            return Ok(self.node(name, "Cast", &[&half], to));
        }
        let (wide, scale) = (format!("{name}.unscaled"), format!("{name}.scale"));
        self.node(&wide, "Cast", &[&half], to);
        self.number(&scale, factor as f32);
        Ok(self.node(name, "Mul", &[&wide, &scale], vec![]))
    }

    /// Adds a list of integers (a shape, axes) and returns its name; a list that exists already is used again.
    pub fn ints(&mut self, name: &str, values: &[i64]) -> String {
        if !self.initializers.iter().any(|t| t.name == name) {
            self.initializers.push(ints_constant(name, values));
        }
        name.to_string()
    }

    /// Adds a single integer (an index) and returns its name.
    pub fn index(&mut self, name: &str, value: i64) -> String {
        let bytes = value.to_le_bytes().to_vec();
        self.initializers.push(constant(name, vec![], DataType::Int64 as i32, bytes));
        name.to_string()
    }

    /// Adds a single 32-bit number, whatever the graph's arithmetic, and returns its name.
    pub fn number(&mut self, name: &str, value: f32) -> String {
        self.initializers.push(number_constant(name, value));
        name.to_string()
    }

    /// Makes the model from the graph.
    pub fn finish(
        self,
        inputs: Vec<ValueInfoProto>,
        outputs: Vec<ValueInfoProto>,
        metadata: &[(&str, String)],
    ) -> ModelProto {
        let graph = GraphProto {
            name: "vit".into(),
            node: self.nodes,
            initializer: self.initializers,
            input: inputs,
            output: outputs,
            ..Default::default()
        };
        let entry = |(key, value): &(&str, String)| StringStringEntryProto { key: (*key).into(), value: value.clone() };
        ModelProto {
            ir_version: IR_VERSION,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            producer_name: PRODUCER.into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(graph),
            metadata_props: metadata.iter().map(entry).collect(),
            ..Default::default()
        }
    }
}

/// An operator with one output, which has the operator's name.
pub fn node(name: &str, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        name: name.into(),
        op_type: op.into(),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![name.into()],
        attribute,
        ..Default::default()
    }
}

/// A constant from its little-endian bytes.
pub fn constant(name: &str, dims: Vec<i64>, data_type: i32, raw_data: Vec<u8>) -> TensorProto {
    TensorProto { name: name.into(), dims, data_type, raw_data, ..Default::default() }
}

fn stored(name: &str, tensor: &Tensor, element: Element) -> Result<TensorProto> {
    let tensor = tensor.to_dtype(element.dtype())?.contiguous()?;
    let mut raw_data = Vec::with_capacity(tensor.elem_count() * tensor.dtype().size_in_bytes());
    tensor.write_bytes(&mut raw_data)?;
    let dims = tensor.dims().iter().map(|&d| d as i64).collect();
    Ok(constant(name, dims, element.onnx() as i32, raw_data))
}

/// A constant list of integers.
pub fn ints_constant(name: &str, values: &[i64]) -> TensorProto {
    let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    constant(name, vec![values.len() as i64], DataType::Int64 as i32, raw_data)
}

/// A constant 32-bit number.
pub fn number_constant(name: &str, value: f32) -> TensorProto {
    constant(name, vec![], DataType::Float as i32, value.to_le_bytes().to_vec())
}

/// An attribute with one integer.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i: value, ..Default::default() }
}

/// An attribute with a list of integers.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Ints as i32, ints: values.into(), ..Default::default() }
}

/// An attribute with one floating-point number.
pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Float as i32, f: value, ..Default::default() }
}

/// A 32-bit input or output of shape (batch, `rest`...); the batch is dynamic.
pub fn batched(name: &str, rest: &[usize]) -> ValueInfoProto {
    let dimension = |value| Dimension { value: Some(value), ..Default::default() };
    let batch = dimension(dimension::Value::DimParam("batch".into()));
    let fixed = rest.iter().map(|&d| dimension(dimension::Value::DimValue(d as i64)));
    let shape = TensorShapeProto { dim: std::iter::once(batch).chain(fixed).collect() };
    let tensor = TensorType { elem_type: DataType::Float as i32, shape: Some(shape) };
    let r#type = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..Default::default() }
}
