//! `parity.json`: how far the exported graphs are from the network.

use serde::{Deserialize, Serialize};

use crate::quantized::Quantized;

/// How far two implementations of one network are apart, on the same images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Largest absolute difference of any output value.
    pub max_abs_difference: f64,
    /// Smallest cosine between two pooled features of the same image.
    pub min_cosine: f64,
    /// Share of images on which the probe names the same class; `None` without a probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argmax_agreement: Option<f64>,
}

/// `parity.json`: the exported graph against the network it was exported from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parity {
    /// Number of images.
    pub images: usize,
    /// What they were.
    pub source: String,
    /// Candle against ONNX Runtime.
    pub onnxruntime: Comparison,
    /// Candle against candle-onnx's own evaluator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candle_onnx: Option<Comparison>,
    /// Candle (f32) against the half-precision graph in ONNX Runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fp16: Option<Comparison>,
    /// The trained network against itself with the weights of `model.safetensors`, where that holds halves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_fp16: Option<Comparison>,
    /// Candle (f32) against the 8-bit graph in ONNX Runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int8: Option<Quantized>,
    /// More, free.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}
