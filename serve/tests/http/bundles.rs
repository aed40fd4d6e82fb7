//! An incomplete or damaged bundle is refused with a message that names the file and the fault.

use std::path::Path;

use macrl_bundle::bundle::{self, Bundle};
use macrl_serve::state::App;
use serde_json::{Value, json};

use crate::support::*;

fn refused(change: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    write_bundle(dir.path(), "tiny", true);
    assert!(Bundle::open(dir.path()).is_ok());
    change(dir.path());
    let message = Bundle::open(dir.path()).unwrap_err().to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    message.replace(dir.path().to_str().unwrap(), "B")
}

/// Changes one entry of a JSON file.
fn edit(dir: &Path, file: &str, key: &str, value: Value) {
    let mut json: Value = bundle::read_json(&dir.join(file)).unwrap();
    json[key] = value;
    bundle::write_json(&dir.join(file), &json).unwrap();
}

#[test]
fn missing_files_are_named() {
    for file in [bundle::CONFIG, bundle::PREPROCESSOR, bundle::WEIGHTS, bundle::ONNX] {
        let message = refused(|dir| std::fs::remove_file(dir.join(file)).unwrap());
        assert!(message.starts_with(&format!("B/{file} is missing")), "{message}");
    }
    assert!(Bundle::open(Path::new("/nowhere")).unwrap_err().to_string().contains("no bundle at /nowhere"));
}

#[test]
fn truncated_files_are_named() {
    for file in [bundle::CONFIG, bundle::PREPROCESSOR, bundle::WEIGHTS, bundle::PROBE] {
        let message = refused(|dir| {
            let bytes = std::fs::read(dir.join(file)).unwrap();
            std::fs::write(dir.join(file), &bytes[..bytes.len() / 2]).unwrap();
        });
        assert!(message.contains(file), "{message}");
    }
    let message = refused(|dir| std::fs::write(dir.join(bundle::ONNX), "").unwrap());
    assert_eq!(message, "B/onnx/model.onnx is not an ONNX model: the file is empty");
}

#[test]
fn contradictions_are_named() {
    let config = |key: &'static str, value: Value| refused(|dir| edit(dir, bundle::CONFIG, key, value));
    assert_eq!(config("model_type", json!("bert")), "B/config.json: model_type must be vit, found bert");
    assert_eq!(
        config("num_attention_heads", json!(3)),
        "B/config.json: num_attention_heads must divide hidden_size (8), found 3"
    );
    assert!(config("hidden_size", json!("wide")).starts_with("B/config.json is not valid: "));
    assert!(
        config("num_hidden_layers", json!(2))
            .contains("tensor blocks.1.norm1.weight should have shape [8], found none")
    );
    assert!(config("patch_size", json!(2)).contains("tensor patch_embed.proj.weight should have shape [8, 3, 2, 2]"));
    assert!(config("id2label", json!({ "0": "a" })).contains("id2label names 1 classes, the probe has 3"));
    let size = refused(|dir| edit(dir, bundle::PREPROCESSOR, "resample", json!(2)));
    assert_eq!(size, "B/preprocessor_config.json: resample must be 3 (bicubic), found 2");
}

#[test]
fn a_graph_of_another_shape_is_refused_when_it_is_opened() {
    let started = |graph: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        write_bundle(dir.path(), "tiny", false);
        std::fs::write(dir.path().join(bundle::ONNX), graph).unwrap();
        let bundle = Bundle::open(dir.path()).unwrap();
        let error = App::new(&bundle, settings()).unwrap().start(bundle).unwrap_err();
        format!("{error:#}")
    };
    let cut = started(&TINY[..3000]);
    assert!(cut.contains("onnx/model.onnx is not a model that ONNX Runtime loads"), "{cut}");
    // The output's name, changed in place wherever it stands.
    let mut renamed = TINY.to_vec();
    while let Some(at) = renamed.windows(13).position(|w| w == b"pooler_output") {
        renamed[at] = b'P';
    }
    assert!(started(&renamed).contains("expected an output pooler_output"));
}
