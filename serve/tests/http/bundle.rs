//! A tiny bundle.

use std::path::Path;

use macrl_bundle::bundle::{self, ModelConfig, Provenance};
use macrl_bundle::config::Config;
use macrl_bundle::parameters::EncoderLayout;
use macrl_bundle::preprocess::Preprocess;
use macrl_bundle::probe::Probe;

/// D of the tiny model.
pub(crate) const DIM: usize = 8;

/// data/tiny.onnx: input (batch, 3, 8, 8); pooler_output = tanh(flat input . w), w[i, j] = 0.1 sin(0.37 (8 i + j)).
///
///   w = (np.sin(np.arange(192 * 8) * 0.37).reshape(192, 8) * 0.1).astype(np.float32)
///   nodes = [make_node("Flatten", ["pixel_values"], ["flat"], axis=1), make_node("MatMul", ["flat", "w"], ["m"]),
///            make_node("Tanh", ["m"], ["pooler_output"]), make_node("Unsqueeze", ["pooler_output", "one"], ["u"]),
///            make_node("Tile", ["u", "reps"], ["last_hidden_state"])]         # one = [1], reps = [1, 5, 1]
pub(crate) const TINY: &[u8] = include_bytes!("../data/tiny.onnx");

/// Writes the tiny model's bundle into `dir`; `name` is the model's.
pub(crate) fn write_bundle(dir: &Path, name: &str, probe: bool) {
    let set = ["image_size=8", "patch_size=4", "width=8", "depth=1", "heads=2"].map(|s| format!("encoder.{s}"));
    let mut config = Config::parse("", "test", &set).unwrap();
    (config.data.mean, config.data.std) = ([0.5; 3], [0.25; 3]);
    let labels = ["red", "green", "blue"].map(String::from).to_vec();
    let provenance = Provenance { name: name.into(), weights_sha256: name.into(), ..Provenance::default() };
    std::fs::create_dir_all(dir.join("onnx")).unwrap();
    bundle::write_json(&dir.join(bundle::CONFIG), &ModelConfig::new(&config, &labels, provenance)).unwrap();
    let preprocess = Preprocess::from_config(&config);
    bundle::write_json(&dir.join(bundle::PREPROCESSOR), &preprocess.to_hugging_face()).unwrap();
    std::fs::write(dir.join(bundle::ONNX), TINY).unwrap();
    std::fs::write(dir.join(bundle::WEIGHTS), zero_weights(&config)).unwrap();
    if probe {
        let weight = (0..3 * DIM).map(|i| (i as f32 * 0.7).cos()).collect();
        let probe = Probe { weight, bias: vec![0.0, 0.1, -0.1], mean: vec![0.0; DIM], std: vec![1.0; DIM], labels };
        std::fs::write(dir.join(bundle::PROBE), probe.to_bytes().unwrap()).unwrap();
    }
}

fn zero_weights(config: &Config) -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView};
    let layout = EncoderLayout::new(&config.encoder);
    let largest = layout.parameters().map(|p| p.range.len()).max().unwrap();
    let zeros = vec![0u8; 4 * largest];
    let views = layout.parameters().map(|p| {
        let view = TensorView::new(Dtype::F32, p.shape.clone(), &zeros[..4 * p.range.len()]);
        (p.name.clone(), view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}
