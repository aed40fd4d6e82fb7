//! The bundles that are part of the project: their sizes, their files, and the answers of a server that runs one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, safetensors};
use macrl::{Server, candle_embedding, post, root};
use macrl_bundle::bundle::Bundle;
use macrl_nn::vit::Encoder;

/// Largest size of a file, and of all files of a bundle together, in bytes.
const FILE_LIMIT: u64 = 12 << 20;
const BUNDLE_LIMIT: u64 = 30 << 20;

fn shipped() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("models/pretrained")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).collect()
}

fn sizes(dir: &Path) -> Vec<u64> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sizes(&path) } else { vec![path.metadata().unwrap().len()] }).collect()
}

/// A PPM file with a colour pattern that depends on `k`.
fn waves(size: usize, k: usize) -> Vec<u8> {
    let mut file = format!("P6 {size} {size} 255\n").into_bytes();
    let pixels = (0..size * size).map(|p| (p % size, p / size));
    file.extend(pixels.flat_map(|(x, y)| [x * k, y * k, (x + y) * k].map(|v| (v * 8 % 256) as u8)));
    file
}

#[test]
fn shipped_bundles_are_small_complete_and_documented() {
    let bundles = shipped();
    assert!(!bundles.is_empty());
    for dir in bundles {
        let sizes = sizes(&dir);
        assert!(sizes.iter().all(|size| *size <= FILE_LIMIT) && sizes.iter().sum::<u64>() <= BUNDLE_LIMIT, "{sizes:?}");
        let bundle = Bundle::open(&dir).unwrap();
        assert!(bundle.probe.is_some() && bundle.onnx_fp16.is_some());
        let int8 = bundle.parity.and_then(|parity| parity.int8);
        assert!(bundle.onnx_int8.is_some() && int8.is_some_and(|proof| proof.holds() && proof.accuracy.is_some()));
        let rows = bundle.evaluation.unwrap().rows;
        assert_eq!(rows.iter().map(|r| r.features.as_str()).collect::<Vec<_>>(), ["macrl", "random", "pixels"]);
        let card = fs::read_to_string(dir.join("README.md")).unwrap();
        for section in ["## Data, protocol and numbers", "## Parity", "## Limits", "## Licence", "## Provenance"] {
            assert!(card.contains(section), "{}: no {section}", dir.display());
        }
    }
}

#[test]
fn a_server_gives_the_shipped_encoders_embeddings_and_classes() {
    for dir in shipped() {
        let bundle = Bundle::open(&dir).unwrap();
        let weights = safetensors::load(&bundle.weights, &Device::Cpu).unwrap();
        let encoder = Encoder::from_tensors(&bundle.config.encoder(), &weights, "").unwrap();
        let server = Server::start(&dir);
        for (size, k) in [(32, 1), (32, 3), (45, 2)] {
            let image = waves(size, k);
            let (status, answer) = post(&format!("{}/embed", server.url), "image/x-portable-pixmap", &image);
            assert_eq!(status, 200, "{answer}");
            let served: Vec<f32> =
                answer["embeddings"][0].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
            let expected = candle_embedding(&encoder, &bundle.preprocess, bundle.config.pooling, &image);
            let cosine: f32 = served.iter().zip(&expected).map(|(a, b)| a * b).sum();
            // model.safetensors has float16 weights.
            assert!(served.len() == bundle.config.hidden_size && cosine > 0.9999, "cosine {cosine}");
            let (_, classes) = post(&format!("{}/classify?top_k=1", server.url), "image/x-portable-pixmap", &image);
            let label = classes["predictions"][0][0]["label"].as_str().unwrap();
            assert!(bundle.config.labels().contains(&label.to_string()), "{label}");
        }
    }
}

#[test]
fn eight_bits_give_nearly_the_same_embeddings() {
    for dir in shipped() {
        let servers = ["f32", "int8"].map(|precision| Server::start_in(&dir, precision));
        let precisions = servers.each_ref().map(|server| {
            let info = ureq::get(format!("{}/info", server.url)).call().unwrap().body_mut().read_to_string().unwrap();
            serde_json::from_str::<serde_json::Value>(&info).unwrap()["precision"].clone()
        });
        assert_eq!(precisions, ["f32", "int8"]);
        for k in [1, 3, 5] {
            let image = waves(40, k);
            let [full, int8] = servers.each_ref().map(|server| {
                let (status, answer) = post(&format!("{}/embed", server.url), "image/x-portable-pixmap", &image);
                assert_eq!(status, 200, "{answer}");
                let values = answer["embeddings"][0].as_array().unwrap().iter();
                values.map(|v| v.as_f64().unwrap()).collect::<Vec<_>>()
            });
            let cosine: f64 = full.iter().zip(&int8).map(|(a, b)| a * b).sum();
            assert!(cosine > 0.999 && full != int8, "cosine {cosine}");
        }
    }
}
