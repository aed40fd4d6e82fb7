//! A tiny run folder, made without training.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use macrl_bundle::config::{Config, Pooling};
use macrl_bundle::probe::Probe;
use macrl_export::error::Failure;
use macrl_export::run::TrainedRun;
use macrl_nn::checkpoint;
use macrl_nn::vit::Encoder;

/// Steps noted in the checkpoints.
pub const STEPS: u64 = 120;

/// 16 x 16 images, 16 patches, 3 blocks of width 24.
pub fn config(pooling: Pooling) -> Config {
    let set = [
        "encoder.image_size=16",
        "encoder.patch_size=4",
        "encoder.width=24",
        "encoder.depth=3",
        "encoder.heads=2",
        "decoder.width=16",
        "decoder.heads=2",
        match pooling {
            Pooling::Cls => "evaluate.pooling=cls",
            Pooling::Mean => "evaluate.pooling=mean",
        },
    ];
    Config::parse("", "the test", &set.map(String::from)).unwrap()
}

/// Writes a run of random weights (with `evaluated`: a probe and numbers too) and returns its folder.
pub fn write_run(dir: &Path, pooling: Pooling, evaluated: bool) -> PathBuf {
    let run = dir.join("tiny");
    std::fs::create_dir_all(run.join("checkpoints")).unwrap();
    let config = config(pooling);
    for (name, seed) in [("last", 1), ("best", 2)] {
        let encoder = Encoder::init(&config.encoder, seed).unwrap();
        let tensors: Vec<_> =
            encoder.named().unwrap().into_iter().map(|(name, t)| (format!("encoder.{name}"), t)).collect();
        let notes = HashMap::from([("step".to_string(), STEPS.to_string())]);
        checkpoint::save(&run.join(format!("checkpoints/{name}.safetensors")), &config, &notes, &tensors).unwrap();
    }
    write_samples(&run, config.encoder.image_size);
    if evaluated {
        write_evaluation(&run, &config);
    }
    run
}

/// Eleven images (one more than a whole number of batches would have) of smooth colours.
fn write_samples(run: &Path, size: usize) {
    let count = 11;
    let pixel = |i: usize| (127.5 + 127.0 * (0.013 * i as f64).sin() * (0.0007 * i as f64).cos()) as u8;
    let values: Vec<u8> = (0..count * size * size * 3).map(pixel).collect();
    let pixels = Tensor::from_vec(values, (count, size, size, 3), &Device::Cpu).unwrap();
    let labels = Tensor::zeros(count, DType::I64, &Device::Cpu).unwrap();
    let tensors = [("pixels".to_string(), pixels), ("labels".to_string(), labels)];
    let bytes = checkpoint::to_bytes(&tensors, HashMap::new()).unwrap();
    std::fs::write(run.join("samples.safetensors"), bytes).unwrap();
}

fn write_evaluation(run: &Path, config: &Config) {
    let (classes, dim) = (3, config.encoder.width);
    let probe = Probe {
        weight: (0..classes * dim).map(|i| (i as f32 * 1.3).sin()).collect(),
        bias: vec![0.1, 0.0, -0.1],
        mean: vec![0.01; dim],
        std: vec![0.9; dim],
        labels: ["boot", "bag", "shirt"].map(String::from).to_vec(),
    };
    std::fs::write(run.join("probe.safetensors"), probe.to_bytes().unwrap()).unwrap();
    write_numbers(run, config, STEPS);
}

/// `evaluation.json` as measured after `steps` steps.
pub fn write_numbers(run: &Path, config: &Config, steps: u64) {
    let evaluation = serde_json::json!({
        "protocol": {"k": 20, "temperature": 0.07, "pooling": config.evaluate.pooling, "train_images": 60,
            "test_images": 30, "split": "made-up images", "checkpoint": "best", "steps": steps},
        "rows": [
            {"features": "macrl", "knn": 0.7, "knn1": 0.6, "linear": 0.8},
            {"features": "random", "knn": 0.5, "knn1": 0.4, "linear": 0.6},
            {"features": "pixels", "knn": 0.6, "knn1": 0.5, "linear": 0.7},
        ],
    });
    std::fs::write(run.join("evaluation.json"), evaluation.to_string()).unwrap();
}

/// The run read back.
pub fn source(run: &Path) -> TrainedRun {
    read(run, None).unwrap()
}

/// The run read back, or why not.
pub fn read(run: &Path, checkpoint: Option<&str>) -> Result<TrainedRun, Failure> {
    TrainedRun::read(run, checkpoint)
}

/// Every file below a folder, sorted, hidden ones too.
pub fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}
