//! Names of a bundle's files, and of the ONNX graph's input and outputs.

/// The bundle's format, in `config.json` as `macrl.format`; docs/formats.md says when it changes.
pub const FORMAT: u32 = 1;
/// `config.json`
pub const CONFIG: &str = "config.json";
/// `preprocessor_config.json`
pub const PREPROCESSOR: &str = "preprocessor_config.json";
/// `model.safetensors`
pub const WEIGHTS: &str = "model.safetensors";
/// `onnx/model.onnx`
pub const ONNX: &str = "onnx/model.onnx";
/// `onnx/model_fp16.onnx`
pub const ONNX_FP16: &str = "onnx/model_fp16.onnx";
/// `onnx/model_quantized.onnx`, the name that transformers.js looks for
pub const ONNX_INT8: &str = "onnx/model_quantized.onnx";
/// `probe.safetensors`
pub const PROBE: &str = "probe.safetensors";
/// `evaluation.json`
pub const EVALUATION: &str = "evaluation.json";
/// `parity.json`
pub const PARITY: &str = "parity.json";
/// `README.md`
pub const README: &str = "README.md";

/// Every file that an export may write.
pub const FILES: [&str; 10] =
    [CONFIG, PREPROCESSOR, WEIGHTS, ONNX, ONNX_FP16, ONNX_INT8, PROBE, EVALUATION, PARITY, README];
/// Folder in a bundle that holds the next one while its files are moved to their places.
pub const COMMIT: &str = ".macrl-commit";

/// Name of the ONNX graph's input, (B, 3, S, S).
pub const INPUT: &str = "pixel_values";
/// Name of the ONNX graph's first output, (B, 1 + N, D).
pub const HIDDEN: &str = "last_hidden_state";
/// Name of the ONNX graph's second output, (B, D): the pooled feature, unnormalised.
pub const POOLED: &str = "pooler_output";
