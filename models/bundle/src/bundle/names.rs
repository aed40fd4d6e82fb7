//! Names of the files in a bundle, and of the inputs and outputs of its ONNX graph.

/// Version of the bundle format, `macrl.format` in `config.json`; docs/formats.md says when it changes.
pub const FORMAT: u32 = 1;
/// Encoder geometry, labels and provenance ([`ModelConfig`](super::ModelConfig)).
pub const CONFIG: &str = "config.json";
/// The file that transformers reads instead of [`CONFIG`]: the entry `configuration_files` of [`CONFIG`] names it.
pub const TRANSFORMERS: &str = "config.0.json";
/// The evaluation transform ([`PreprocessorConfig`](crate::preprocess::PreprocessorConfig)).
pub const PREPROCESSOR: &str = "preprocessor_config.json";
/// The encoder's weights under timm's names, and the classifier as `head.weight` and `head.bias` if there is one.
pub const WEIGHTS: &str = "model.safetensors";
/// The ONNX graph in float32.
pub const ONNX: &str = "onnx/model.onnx";
/// The ONNX graph with float16 weights.
pub const ONNX_FP16: &str = "onnx/model_fp16.onnx";
/// The ONNX graph with 8-bit weights; transformers.js expects this name.
pub const ONNX_INT8: &str = "onnx/model_quantized.onnx";
/// The linear probe ([`Probe`](crate::probe::Probe)).
pub const PROBE: &str = "probe.safetensors";
/// Measured accuracies ([`Evaluation`](crate::evaluation::Evaluation)).
pub const EVALUATION: &str = "evaluation.json";
/// Differences between the exported graphs and the network ([`Parity`](super::Parity)).
pub const PARITY: &str = "parity.json";
/// The model card.
pub const README: &str = "README.md";

/// Every file that an export can write.
pub const FILES: [&str; 11] =
    [CONFIG, TRANSFORMERS, PREPROCESSOR, WEIGHTS, ONNX, ONNX_FP16, ONNX_INT8, PROBE, EVALUATION, PARITY, README];
/// Files beside the weights whose SHA-256 an export records.
pub const HASHED: [&str; 4] = [ONNX, ONNX_FP16, ONNX_INT8, PROBE];
/// Folder in a bundle where an export collects its new files before it moves them to their names.
pub const COMMIT: &str = ".macrl-commit";

/// Name of the ONNX graph's input, (B, 3, S, S).
pub const INPUT: &str = "pixel_values";
/// Name of the ONNX graph's first output, (B, 1 + N, D).
pub const HIDDEN: &str = "last_hidden_state";
/// Name of the ONNX graph's second output, (B, D): the pooled feature, unnormalised.
pub const POOLED: &str = "pooler_output";
/// Name of the ONNX graph's output with the classes' scores, (B, C), if the bundle has a classifier.
pub const LOGITS: &str = "logits";
/// Names of the classifier's tensors in [`WEIGHTS`], as in timm: (C, D) and (C), for raw pooled features.
pub const HEAD: [&str; 2] = ["head.weight", "head.bias"];
