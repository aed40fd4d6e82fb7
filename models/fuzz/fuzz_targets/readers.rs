//! Bytes -> checkpoint, probe, evaluation, graph, configuration, bundle.  For any bytes there must be no crash, no hang and bounded
//! memory.  The first byte chooses the reader.
#![no_main]

use libfuzzer_sys::fuzz_target;
use macrl_bundle::bundle::{Bundle, CONFIG, ONNX, PREPROCESSOR, PROBE, WEIGHTS};
use macrl_bundle::checkpoint::CheckpointFile;
use macrl_bundle::{Config, Evaluation, Probe, onnx};

/// The shipped bundle's files, of which one is replaced.
const BUNDLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pretrained/cifar10");

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, content)) = bytes.split_first() else { return };
    let dir = std::env::temp_dir().join(format!("macrl-fuzz-{}", std::process::id()));
    let _ = std::fs::create_dir_all(dir.join("onnx"));
    let file = dir.join("file");
    match choice % 6 {
        0 => {
            let _ = Probe::from_bytes(content, "probe");
        }
        1 => {
            let _ = Evaluation::from_json(content, "evaluation");
        }
        2 => {
            let _ = std::str::from_utf8(content).map(|text| Config::parse(text, "configuration", &[]));
        }
        3 => {
            let _ = std::fs::write(&file, content);
            let _ = onnx::check_external(&file);
        }
        4 => {
            let _ = std::fs::write(&file, content);
            let _ = CheckpointFile::read(&file).map(|checkpoint| checkpoint.tensors().map(|tensors| tensors.len()));
        }
        _ => {
            let names = [CONFIG, PREPROCESSOR, WEIGHTS, ONNX, PROBE];
            let replaced = names[usize::from(choice) % names.len()];
            for name in names {
                let place = dir.join(name);
                let _ = std::fs::remove_file(&place);
                let _ = std::os::unix::fs::symlink(format!("{BUNDLE}/{name}"), &place);
            }
            let _ = std::fs::remove_file(dir.join(replaced));
            let _ = std::fs::write(dir.join(replaced), content);
            let _ = Bundle::open(&dir);
        }
    }
});
