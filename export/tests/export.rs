//! Whole exports of a tiny run: what lies there afterwards, and what does not when something is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use candle_onnx::onnx::ModelProto;
use macrl_bundle::bundle::Bundle;
use macrl_bundle::config::Pooling;
use macrl_export::error::Failure;
use macrl_export::graph::Element;
use macrl_export::parity;
use macrl_export::write::{self, BundleOptions, Graphs};
use macrl_nn::vit::Encoder;
use sha2::{Digest, Sha256};

/// Moves the first value of a constant.
fn perturb(model: &mut ModelProto, name: &str) {
    let tensors = &mut model.graph.as_mut().unwrap().initializer;
    let bytes = &mut tensors.iter_mut().find(|t| t.name == name).unwrap().raw_data;
    let value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) + 0.05;
    bytes[..4].copy_from_slice(&value.to_le_bytes());
}

/// Exit code and the one line of a failure.
fn failure<T>(result: Result<T, Failure>) -> (u8, String) {
    let failure = result.err().unwrap();
    let line = failure.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    (failure.code(), line)
}

#[test]
fn a_bundle_holds_what_serving_needs() {
    let dir = tempfile::tempdir().unwrap();
    let source = support::source(&support::write_run(dir.path(), Pooling::Mean, true));
    let target = dir.path().join("out/bundle");
    let proof =
        write::bundle(&target, &source, &Graphs::build(&source, Element::F32).unwrap(), &BundleOptions::default())
            .unwrap();
    assert_eq!(
        support::files(&dir.path().join("out")),
        [
            ".macrl.json",
            "README.md",
            "config.0.json",
            "config.json",
            "evaluation.json",
            "model.safetensors",
            "onnx/model.onnx",
            "onnx/model_fp16.onnx",
            "onnx/model_quantized.onnx",
            "parity.json",
            "preprocessor_config.json",
            "probe.safetensors"
        ]
        .map(|name| format!("bundle/{name}"))
    );
    let bundle = Bundle::open(&target).unwrap();
    assert_eq!(bundle.config.encoder(), source.config.encoder);
    assert_eq!(bundle.config.labels(), ["boot", "bag", "shirt"]);
    assert_eq!((bundle.config.macrl.steps, bundle.config.macrl.name.as_str()), (support::STEPS, "tiny"));
    assert_eq!(bundle.probe.as_ref().unwrap(), source.probe.as_ref().unwrap());
    let read_back = bundle.parity.unwrap();
    assert_eq!((read_back.images, &read_back.extra), (proof.images, &proof.extra));
    assert!((read_back.onnxruntime.max_abs_difference - proof.onnxruntime.max_abs_difference).abs() < 1e-12);
    assert_eq!(proof.images, 11);
    assert_eq!(proof.onnxruntime.argmax_agreement, Some(1.0));
    assert!(proof.onnxruntime.max_abs_difference <= 1e-4 && proof.candle_onnx.unwrap().max_abs_difference <= 1e-4);
    let card = fs::read_to_string(target.join("README.md")).unwrap();
    assert!(card.contains("| **this model** | 70.0 | 60.0 | 80.0 |") && card.contains("| raw pixels | 60.0 |"));
}

#[test]
fn weights_travel_under_timms_names() {
    let dir = tempfile::tempdir().unwrap();
    let source = support::source(&support::write_run(dir.path(), Pooling::Cls, false));
    let target = dir.path().join("bundle");
    write::bundle(&target, &source, &Graphs::build(&source, Element::F32).unwrap(), &BundleOptions::default()).unwrap();
    let file = target.join("model.safetensors");
    let weights = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    // 4 tensors before the blocks, 12 in each, 2 after them.
    assert_eq!(weights.len(), 4 + 12 * 3 + 2);
    assert_eq!(weights["pos_embed"].dims(), [1, 17, 24]);
    let encoder = Encoder::from_tensors(&source.config.encoder, &weights, "").unwrap();
    let run = |encoder: &Encoder| {
        let pixels: Tensor = source.images.batch(0, 2).unwrap();
        encoder.forward_pixels(&pixels).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(run(&encoder), run(&source.encoder));
    let bundle = Bundle::open(&target).unwrap();
    let sha: String = Sha256::digest(fs::read(&file).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(bundle.config.macrl.weights_sha256, sha);
    assert_eq!(bundle.unverified, [""; 0]);
    assert!(bundle.config.macrl.files_sha256.contains_key("onnx/model.onnx"));
    let card = fs::read_to_string(target.join("README.md")).unwrap();
    assert!(bundle.probe.is_none() && bundle.evaluation.is_none() && card.contains("was not evaluated"));
}

#[test]
fn weights_can_be_stored_as_halves_and_the_card_takes_notes() {
    let dir = tempfile::tempdir().unwrap();
    let source = support::source(&support::write_run(dir.path(), Pooling::Mean, true));
    let target = dir.path().join("bundle");
    let options = BundleOptions { weights: Element::F16, notes: Some("## Licence\n\nAsk.\n".into()) };
    let proof = write::bundle(&target, &source, &Graphs::build(&source, Element::F16).unwrap(), &options).unwrap();
    let weights = candle_core::safetensors::load(target.join("model.safetensors"), &Device::Cpu).unwrap();
    // Positions and the classifier stay exact: other programs read them from here.
    let exact = ["pos_embed", "head.weight", "head.bias"];
    assert!(weights.iter().all(|(name, t)| (t.dtype() == DType::F32) == exact.contains(&name.as_str())));
    let rounded = Encoder::from_tensors(&source.config.encoder, &weights, "").unwrap();
    let outputs = |encoder| parity::candle(encoder, &source.images, Pooling::Mean).unwrap();
    let (trained, stored) = (outputs(&source.encoder), outputs(&rounded));
    let measured = parity::compare(&trained, &stored, source.config.encoder.width, source.probe.as_ref()).unwrap();
    assert_eq!(proof.weights_fp16, Some(measured));
    // Halves have 11 significant bits: not the same numbers, but nearly the same direction.
    assert!(trained.pooled != stored.pooled && proof.weights_fp16.unwrap().min_cosine > 0.9999);
    assert!(Bundle::open(&target).unwrap().parity.unwrap().weights_fp16.is_some());
    let card = fs::read_to_string(target.join("README.md")).unwrap();
    assert!(
        card.contains("keep the two together")
            && card.contains("`model.safetensors` (halves)")
            && card.contains("\n\n## Licence\n\nAsk.\n\n## Provenance")
    );
}

#[test]
fn a_perturbed_weight_fails_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = support::source(&support::write_run(dir.path(), Pooling::Mean, true));
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let good = Graphs::build(&source, Element::F32).unwrap();
    for weight in ["blocks.1.attn.k.weight", "blocks.2.mlp.fc2.bias", "pos_embed"] {
        let mut bad = good.clone();
        perturb(&mut bad.full, weight);
        let (code, line) = failure(write::bundle(&out.join("bundle"), &source, &bad, &BundleOptions::default()));
        assert_eq!(code, 1);
        assert!(line.contains("parity failed: Candle against ONNX Runtime on 11 images: largest difference"), "{line}");
        let (code, line) = failure(write::encoder(&out.join("encoder.onnx"), &source, &bad.full));
        assert_eq!(code, 1);
        assert!(line.contains("parity failed"), "{line}");
        assert_eq!(support::files(&out), [""; 0]);
    }
}

#[test]
fn a_bad_half_precision_graph_fails_too_and_keeps_the_old_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let source = support::source(&support::write_run(dir.path(), Pooling::Mean, true));
    let target = dir.path().join("bundle");
    let good = Graphs::build(&source, Element::F32).unwrap();
    write::bundle(&target, &source, &good, &BundleOptions::default()).unwrap();
    let before = fs::read(target.join("onnx/model.onnx")).unwrap();
    let mut bad = good;
    let scale = |t: &&mut candle_onnx::onnx::TensorProto| t.name == "blocks.0.mlp.fc1.weight";
    let tensor = bad.half.graph.as_mut().unwrap().initializer.iter_mut().find(scale).unwrap();
    tensor.raw_data.reverse();
    let (code, line) = failure(write::bundle(&target, &source, &bad, &BundleOptions::default()));
    assert_eq!(code, 1);
    assert!(line.contains("half precision"), "{line}");
    assert_eq!(fs::read(target.join("onnx/model.onnx")).unwrap(), before);
    assert!(Bundle::open(&target).is_ok());
}

#[test]
fn a_folder_with_something_else_in_it_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let run = support::write_run(dir.path(), Pooling::Mean, false);
    let source = support::source(&run);
    let graphs = Graphs::build(&source, Element::F32).unwrap();
    let before = support::files(&run);
    let (code, line) = failure(write::bundle(&run, &source, &graphs, &BundleOptions::default()));
    assert_eq!(code, 2);
    assert!(line.contains("found a folder with something else in it"), "{line}");
    assert_eq!(support::files(&run), before);
    let (code, _) = failure(write::encoder(&dir.path().join("none/encoder.onnx"), &source, &graphs.full));
    assert_eq!(code, 2);
}

#[test]
fn a_graph_that_no_export_wrote_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let source = support::source(&support::write_run(dir.path(), Pooling::Mean, false));
    let graph = write::graph(&source, Element::F32).unwrap();
    let file = dir.path().join("encoder.onnx");
    for _ in 0..2 {
        write::encoder(&file, &source, &graph).unwrap();
    }
    let theirs = ModelProto { producer_name: "pytorch".into(), ..graph.clone() };
    for bytes in [prost::Message::encode_to_vec(&theirs), b"a file of somebody's".to_vec()] {
        fs::write(&file, &bytes).unwrap();
        let (code, line) = failure(write::encoder(&file, &source, &graph));
        assert!(code == 2 && line.contains("was not written by macrl-export: name another file"), "{line}");
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }
}

/// The real binary, killed at any moment and while files are moved: the bundle is the old one, the new one, or says that
/// the same command finishes it, which it does.
#[test]
fn a_killed_export_never_costs_a_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let run = support::write_run(dir.path(), Pooling::Mean, true);
    let target = dir.path().join("bundle");
    let export = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_macrl-export"));
        command.arg("bundle").arg(&target).arg("--run").arg(&run);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    };
    let start = std::time::Instant::now();
    assert!(export().status().unwrap().success());
    let took = start.elapsed();
    fs::write(target.join("notes.md"), "mine").unwrap();
    let commit = target.join(macrl_bundle::bundle::COMMIT);
    for kill in 0..12 {
        let mut child = export().spawn().unwrap();
        let start = std::time::Instant::now();
        // Half of them anywhere, half of them when the files are being moved.
        let delay = took.mul_f64(f64::from(kill * 7919 % 97) / 97.0);
        let reached = |elapsed| if kill % 2 == 0 { elapsed >= delay } else { commit.exists() };
        while !reached(start.elapsed()) && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        match Bundle::open(&target) {
            Ok(bundle) => assert_eq!(bundle.config.macrl.steps, support::STEPS),
            Err(why) => assert!(why.to_string().contains("is half replaced"), "{why}"),
        }
        assert_eq!(fs::read_to_string(target.join("notes.md")).unwrap(), "mine");
    }
    assert!(export().status().unwrap().success());
    Bundle::open(&target).unwrap();
    let hidden = support::files(&target).into_iter().filter(|name| name.starts_with('.')).collect::<Vec<_>>();
    assert_eq!(hidden, [".macrl.json"], "what killed exports left is cleared away");
}

#[test]
fn a_run_that_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = support::write_run(dir.path(), Pooling::Mean, true);
    let read = |checkpoint: Option<&str>| failure(support::read(&run, checkpoint));
    assert_eq!(failure(support::read(Path::new("/nowhere"), None)).0, 2);
    assert_eq!(read(Some("/nowhere.safetensors")).0, 2);

    support::write_numbers(&run, &support::config(Pooling::Mean), 7);
    let (code, line) = read(None);
    assert!(code == 1 && line.contains("measured after 7 steps") && line.contains("has 120"), "{line}");
    support::write_numbers(&run, &support::config(Pooling::Cls), support::STEPS);
    let (code, line) = read(None);
    assert!(code == 1 && line.contains("pooling"), "{line}");
    support::write_numbers(&run, &support::config(Pooling::Mean), support::STEPS);
    assert!(support::read(&run, None).is_ok());

    let best = run.join("checkpoints/best.safetensors");
    let whole = fs::read(&best).unwrap();
    fs::write(&best, &whole[..whole.len() - 9]).unwrap();
    let (code, line) = read(Some("best"));
    assert!(code == 1 && line.contains("best.safetensors is damaged"), "{line}");
    assert_eq!(support::read(&run, Some("last")).unwrap().checkpoint, "last.safetensors");
    fs::write(&best, &whole).unwrap();

    fs::remove_file(run.join("samples.safetensors")).unwrap();
    let (code, line) = read(None);
    assert!(code == 1 && line.contains("samples.safetensors"), "{line}");
}

#[test]
fn the_binary_exports_and_its_exit_codes_say_who_is_to_blame() {
    let dir = tempfile::tempdir().unwrap();
    let run = support::write_run(dir.path(), Pooling::Mean, true);
    let call = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_macrl-export")).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let run = run.to_str().unwrap();
    let (file, folder) = (dir.path().join("encoder.onnx"), dir.path().join("bundle"));
    let (code, stdout, stderr) = call(&[file.to_str().unwrap(), "--run", run]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("parity with ONNX Runtime on 11 images"), "{stdout}");
    let source = support::source(Path::new(run));
    let graph = prost::Message::encode_to_vec(&write::graph(&source, Element::F32).unwrap());
    assert_eq!(fs::read(&file).unwrap(), graph);
    let (code, stdout, stderr) = call(&["bundle", folder.to_str().unwrap(), "--run", run, "--checkpoint", "last"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("last.safetensors of tiny, 120 steps") && stdout.contains("half precision"), "{stdout}");

    for wrong in [
        &["encoder.txt", "--run", run][..],
        &["encoder.onnx"],
        &["bundle", "x"],
        &["bundle", "x", "--run", "/no"],
        &["bundle", "x", "--run", run, "--weights", "f8"],
        &["bundle", "x", "--run", run, "--notes", "/no.md"],
    ] {
        let (code, _, stderr) = call(wrong);
        assert_eq!((code, stderr.lines().count()), (2, 1), "{stderr}");
    }
    let (code, stdout, _) = call(&["--help"]);
    assert!(code == 0 && stdout.contains("macrl-export bundle <DIR> --run <DIR>"), "{stdout}");
}
