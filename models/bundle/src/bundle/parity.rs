//! `parity.json`: the differences between the exported graphs and the network.

use serde::{Deserialize, Serialize};

use crate::comparison::Comparison;
use crate::quantized::Quantized;

/// The content of `parity.json`: the exported graphs compared with the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parity {
    /// Number of compared images.
    pub images: usize,
    /// Source of the images, as text.
    pub source: String,
    /// Candle against the float32 graph in ONNX Runtime.
    pub onnxruntime: Comparison,
    /// Candle against the float32 graph in candle-onnx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candle_onnx: Option<Comparison>,
    /// Candle (float32) against the float16 graph in ONNX Runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fp16: Option<Comparison>,
    /// The network with its trained weights against the network with the float16 weights of `model.safetensors`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_fp16: Option<Comparison>,
    /// Candle (float32) against the 8-bit graph in ONNX Runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int8: Option<Quantized>,
    /// Unknown entries, kept when the file is written again.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}
