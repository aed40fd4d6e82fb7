//! The whole path on a small data set: train -> kill -> resume -> evaluate -> export -> serve.  The server's answers
//! are compared with Candle's embeddings, and the messages for a user's mistakes are checked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use macrl::{Server, binary, candle_embedding, fail, post, root, run, succeed, write_config, write_idx};
use macrl_bundle::bundle::{INPUT, POOLED};
use macrl_bundle::config::Config;
use macrl_bundle::preprocess::Preprocess;
use macrl_nn::checkpoint;
use macrl_nn::vit::Encoder;
use macrl_runtime::SessionOptions;
use ort::value::TensorRef;
use serde_json::Value;

struct Workspace {
    dir: tempfile::TempDir,
}

impl Workspace {
    fn new() -> Self {
        let workspace = Workspace { dir: tempfile::tempdir().unwrap() };
        write_idx(&workspace.path("data"), 320, 80);
        write_config(&workspace.path("run.toml"));
        workspace
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn pretrain(&self, out: &str) -> Command {
        let mut command = Command::new(binary("macrl-train"));
        command.args(["pretrain", "--config", &self.text("run.toml"), "--data", &self.text("data")]);
        command.args(["--out", &self.text(out), "--resume"]).stderr(Stdio::null());
        command
    }
}

fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let checkpoint = checkpoint::load(path).unwrap();
    let mut tensors: Vec<_> = checkpoint.tensors.into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let bytes = |tensor: &Tensor| match tensor.dtype() {
        candle_core::DType::U32 => tensor.flatten_all().unwrap().to_vec1::<u32>().unwrap(),
        _ => tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect(),
    };
    tensors.iter().map(|(n, t)| (n.clone(), bytes(t).iter().flat_map(|v| v.to_le_bytes()).collect())).collect()
}

const KILLS: u32 = 20;

/// Number of checkpoint files that are being written, or were when their writer was killed.
fn half_written(checkpoints: &Path) -> usize {
    let entries = fs::read_dir(checkpoints).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().contains(".tmp-")).count()
}

/// Waits until a resuming run is `delay` old and, with `in_write`, until it then writes a checkpoint.  Returns false if
/// the run ends before.
fn reaches(child: &mut Child, checkpoints: &Path, delay: Duration, in_write: bool) -> bool {
    let start = Instant::now();
    loop {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if start.elapsed() >= delay && (!in_write || half_written(checkpoints) > 0) {
            return true;
        }
        sleep(Duration::from_micros(100));
    }
}

/// Kills a run 20 times, alternately at any moment and while it writes a checkpoint.  The run still ends with the same
/// bits, and no kill leaves a checkpoint that cannot be read.
#[test]
fn a_killed_run_resumes_to_the_same_weights() {
    let workspace = Workspace::new();
    let pretrain = |out: &str| {
        let mut command = workspace.pretrain(out);
        command.args(["--set", "train.checkpoint_every=1"]);
        command
    };
    let start = Instant::now();
    assert!(pretrain("whole").status().unwrap().success());
    let took = start.elapsed();
    let expected = tensors(&workspace.path("whole/checkpoints/last.safetensors"));
    let checkpoints = workspace.path("killed/checkpoints");
    let (mut kills, mut torn) = (0, 0);
    while kills < KILLS {
        let mut child = pretrain("killed").spawn().unwrap();
        // Up to a tenth of the whole run's time, in a fixed pseudo-random order.
        let delay = took.mul_f64(f64::from(kills * 7919 % 97) / 970.0);
        if !reaches(&mut child, &checkpoints, delay, kills % 2 == 1) {
            assert!(child.wait().unwrap().success());
            fs::remove_dir_all(workspace.path("killed")).unwrap(); // the run ended before its 20 kills: start again
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        torn += usize::from(half_written(&checkpoints) > 0);
        let last = checkpoints.join("last.safetensors");
        assert!(!last.exists() || checkpoint::load(&last).is_ok(), "a kill left a checkpoint that cannot be read");
    }
    assert!(pretrain("killed").status().unwrap().success());
    println!("{KILLS} kills, {torn} of them while a checkpoint was written, {:?}", start.elapsed());
    assert!(torn >= 3, "only {torn} kills happened while a checkpoint was written");
    assert_eq!(half_written(&checkpoints), 0, "files of killed writers were not removed");
    assert_eq!(tensors(&workspace.path("killed/checkpoints/last.safetensors")), expected);
    let steps = |out: &str| {
        let text = fs::read_to_string(workspace.path(out).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        lines
            .map(|v| (v["kind"].to_string(), v["step"].as_u64(), v["loss"].as_f64(), v["knn"].as_f64()))
            .collect::<Vec<_>>()
    };
    assert_eq!(steps("killed"), steps("whole"));
}

#[test]
fn a_run_with_a_non_finite_loss_stops_and_can_be_replayed() {
    let workspace = Workspace::new();
    let (config, data, out) = (workspace.text("run.toml"), workspace.text("data"), workspace.text("run"));
    let arguments = ["pretrain", "--config", &config, "--data", &data, "--out", &out, "--set", "train.lr=1e30"];
    fail("macrl-train", &arguments, 1, "non-finite loss at step 1: there is no checkpoint from before");
    let note: Value = serde_json::from_str(&fs::read_to_string(workspace.path("run/replay.json")).unwrap()).unwrap();
    assert_eq!((note["step"].as_u64(), note["indices"].as_array().unwrap().len()), (Some(1), 16), "{note}");
    let said = succeed("macrl-train", &["replay", "--run", &out]);
    assert!(said.starts_with("step 1 of ") && said.contains("loss: NaN   <- not finite"), "{said}");
    assert!(said.contains("gradients not finite: ") && said.contains("of 16 images are not finite"), "{said}");
    write_idx(&workspace.path("other"), 330, 80);
    fail("macrl-train", &["replay", "--run", &out, "--data", &workspace.text("other")], 2, "trained on other data");
    fs::remove_file(workspace.path("run/replay.json")).unwrap();
    fail("macrl-train", &["replay", "--run", &out], 1, "nothing to replay");
}

/// `pooler_output` (1, D) of a graph for one input.
fn pooled(graph: &Path) -> Vec<f32> {
    let options = SessionOptions { device: macrl_runtime::Device::Cpu, ..SessionOptions::default() };
    let mut session = macrl_runtime::session(graph, &options).unwrap().session;
    let pixels: Vec<f32> = (0..3 * 32 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
    let input = TensorRef::from_array_view((vec![1, 3, 32, 32], pixels.as_slice())).unwrap();
    let outputs = session.run(ort::inputs![INPUT => input]).unwrap();
    outputs[POOLED].try_extract_tensor::<f32>().unwrap().1.to_vec()
}

#[test]
fn from_images_to_http_answers() {
    let workspace = Workspace::new();
    assert!(workspace.pretrain("run").status().unwrap().success());
    let run_dir = workspace.text("run");
    let json: Value =
        serde_json::from_str(&succeed("macrl-train", &["evaluate", "--run", &run_dir, "--json"])).unwrap();
    let rows: Vec<&str> = json["rows"].as_array().unwrap().iter().map(|r| r["features"].as_str().unwrap()).collect();
    assert_eq!(rows, ["macrl", "random", "pixels"]);
    assert!(
        json["rows"][0]["linear"].as_f64().unwrap() > 0.5,
        "four classes that the probe cannot distinguish: {json}"
    );
    finetune(&workspace, &run_dir);
    succeed("macrl-train", &["report", "--run", &run_dir]);
    assert!(fs::read_to_string(workspace.path("run/report.html")).unwrap().contains("<section id=\"finetune\">"));

    succeed("macrl-export", &["bundle", &workspace.text("bundle"), "--run", &run_dir]);
    let onnx = workspace.text("encoder.onnx");
    succeed("macrl-export", &[&onnx, "--run", &run_dir]);
    assert_eq!(
        pooled(&workspace.path("bundle/onnx/model.onnx")),
        pooled(Path::new(&onnx)),
        "the encoder alone is the bundle's encoder"
    );

    succeed(
        "macrl-train",
        &["unpack", "--data", &workspace.text("data"), "--per-class", "3", "--out", &workspace.text("images")],
    );
    let server = Server::start(&workspace.path("bundle"));
    let mut seen = 0;
    for class in fs::read_dir(workspace.path("images")).unwrap() {
        for file in fs::read_dir(class.unwrap().path()).unwrap() {
            let bytes = fs::read(file.unwrap().path()).unwrap();
            let answer = post(&format!("{}/embed", server.url), "image/png", &bytes);
            assert_eq!(answer.0, 200, "{}", answer.1);
            let embedding: Vec<f32> =
                answer.1["embeddings"][0].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
            let expected = checkpoint_embedding(&workspace.path("run"), &bytes);
            let largest = embedding.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(embedding.len() == 48 && largest < 1e-4, "HTTP and Candle differ by {largest}");
            let classes = post(&format!("{}/classify?top_k=2", server.url), "image/png", &bytes);
            assert_eq!(classes.1["predictions"][0].as_array().unwrap().len(), 2, "{}", classes.1);
            seen += 1;
        }
    }
    assert_eq!(seen, 12);

    let sheet = workspace.text("neighbours.png");
    let images = workspace.text("images");
    let said = succeed(
        "macrl-serve",
        &["demo", "--url", &server.url, "--gallery", &images, "--queries", &images, "--out", &sheet],
    );
    assert!(!said.is_empty() && fs::metadata(&sheet).unwrap().len() > 1000);

    // Mistakes of a user over HTTP.
    let embed = format!("{}/embed", server.url);
    assert_eq!(post(&embed, "image/png", b"not an image").0, 422);
    assert_eq!(post(&embed, "text/html", b"<p>").0, 415);
    assert_eq!(post(&embed, "application/json", b"{").0, 400);
    assert_eq!(post(&embed, "image/png", &vec![0; 33 << 20]).0, 413);
    assert_eq!(post(&format!("{}/nowhere", server.url), "image/png", b"").0, 404);
}

/// Fine-tunes the run's encoder on the labels, and a randomly initialised one as the baseline.
fn finetune(workspace: &Workspace, run_dir: &str) {
    let budget = ["--set", "finetune.epochs=3", "--set", "finetune.batch_size=16", "--set", "finetune.warmup_epochs=1"];
    let arguments = [&["finetune", "--run", run_dir, "--set", "finetune.lr=0.02"][..], &budget].concat();
    let said = succeed("macrl-train", &arguments);
    assert_eq!(said.lines().count(), 3, "{said}");
    let read = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(workspace.path("run").join(name)).unwrap()).unwrap()
    };
    let (own, evaluation) = (read("finetune.json"), read("evaluation.json"));
    assert_eq!(evaluation["finetune"], own);
    assert_eq!((&own["rows"][0]["features"], &own["rows"][1]["features"]), (&"macrl".into(), &"random".into()));
    assert!(own["rows"][0]["accuracy"].as_f64().unwrap() > 0.5, "{own}");
    // A new evaluation keeps the fine-tuning's result; a second fine-tuning needs --resume.
    succeed("macrl-train", &["evaluate", "--run", run_dir]);
    assert_eq!(read("evaluation.json")["finetune"], own);
    fail("macrl-train", &arguments, 2, "holds a fine-tuning already");
    assert_eq!(succeed("macrl-train", &[&arguments[..], &["--resume"]].concat()), said);
    let other = [&arguments[..], &["--resume", "--set", "finetune.lr=0.01"]].concat();
    fail("macrl-train", &other, 2, "finetune.lr is 0.02 and here 0.01: a fine-tuning keeps its configuration");
    // With more epochs, --resume continues from the last state.
    succeed("macrl-train", &[&arguments[..], &["--resume", "--set", "finetune.epochs=4"]].concat());
    let steps = |result: &Value, row: usize| result["rows"][row]["steps"].as_u64().unwrap();
    let longer = read("finetune.json");
    assert_eq!([0, 1].map(|row| 3 * steps(&longer, row)), [0, 1].map(|row| 4 * steps(&own, row)));
    fail("macrl-train", &[&arguments[..], &["--resume", "--no-baseline"]].concat(), 2, "has done 4.0 epochs already");
    fail("macrl-train", &["finetune", "--run", run_dir, "--set", "train.lr=1"], 2, "expected a key of [finetune]");
}

/// The L2-normalised embedding of an encoded image, computed from the checkpoint.
fn checkpoint_embedding(run: &Path, image: &[u8]) -> Vec<f32> {
    let checkpoint = checkpoint::load(&run.join("checkpoints/best.safetensors")).unwrap();
    let config: Config = checkpoint.config;
    let encoder = Encoder::from_tensors(&config.encoder, &checkpoint.tensors, "encoder.").unwrap();
    candle_embedding(&encoder, &Preprocess::from_config(&config), config.evaluate.pooling, image)
}

#[test]
fn mistakes_are_one_clear_line() {
    let workspace = Workspace::new();
    let (config, data, out) = (workspace.text("run.toml"), workspace.text("data"), workspace.text("out"));
    let pretrain = |more: &[&str], code: i32, hint: &str| {
        fail("macrl-train", &[&["pretrain", "--config", &config, "--out", &out], more].concat(), code, hint);
    };
    pretrain(&["--data", &data, "--set", "encoder.widht=8"], 2, "did you mean `encoder.width`");
    pretrain(&["--data", &data, "--set", "encoder.heads=5"], 2, "must divide the width");
    pretrain(&["--data", &data, "--set", "train.precision=bf16"], 2, "bf16");
    pretrain(&["--data", &data, "--device", "cuda"], 2, "CPU only");
    pretrain(&["--data", "nowhere"], 1, "nowhere");
    pretrain(&["--data", &workspace.text("")], 1, "looked for");
    fail("macrl-train", &["evaluate", "--run", "nowhere"], 1, "nowhere");
    fail("macrl-serve", &["--bundle", "nowhere"], 1, "nowhere");

    assert!(workspace.pretrain("run").args(["--set", "train.epochs=1"]).status().unwrap().success());
    let run_dir = workspace.text("run");
    write_idx(&workspace.path("other"), 330, 80);
    let arguments = ["pretrain", "--config", &config, "--out", &run_dir, "--resume", "--set", "train.epochs=1"];
    let other = workspace.text("other");
    fail(
        "macrl-train",
        &[&arguments[..], &["--data", &other]].concat(),
        2,
        "--resume: the run was trained on other data",
    );
    succeed("macrl-train", &[&arguments[..], &["--data", &data]].concat());
    succeed("macrl-export", &["bundle", &workspace.text("bundle"), "--run", &run_dir]);
    let model = workspace.path("bundle/onnx/model.onnx");
    let whole = fs::read(&model).unwrap();
    fs::write(&model, &whole[..whole.len() / 2]).unwrap();
    fail("macrl-serve", &["--bundle", &workspace.text("bundle"), "--listen", "127.0.0.1:0"], 1, "model.onnx");
    for name in ["last", "best"] {
        let path = workspace.path("run/checkpoints").join(format!("{name}.safetensors"));
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    }
    fail("macrl-export", &["bundle", &workspace.text("bundle2"), "--run", &run_dir], 1, "safetensors");
    fail("macrl-train", &["evaluate", "--run", &run_dir], 1, "damaged");
    assert!(!workspace.path("bundle2").exists());
}

#[test]
fn every_shipped_configuration_loads() {
    let mut count = 0;
    for file in fs::read_dir(root().join("configs")).unwrap() {
        let path = file.unwrap().path();
        Config::load(&path, &[]).unwrap();
        count += 1;
    }
    assert!(count >= 7, "only {count} configurations");
    assert!(run("macrl-train", &["--help"]).status.success());
}
