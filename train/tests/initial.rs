//! `pretrain --init`: which weights a run can start from, and which are refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use macrl_bundle::config::{Config, Pooling};
use macrl_nn::vit::{Encoder, positions};
use macrl_train::initial::Initial;
use macrl_train::state::State;

fn config() -> Config {
    let set =
        ["encoder.image_size=16", "encoder.patch_size=4", "encoder.width=64", "encoder.depth=2", "encoder.heads=1"];
    Config::parse("", "test", &set.map(String::from)).unwrap()
}

/// A file as timm writes it, and the encoder in it.
fn timm_file(dir: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> (std::path::PathBuf, Encoder) {
    let encoder = Encoder::init(&config().encoder, 77).unwrap();
    let mut tensors: HashMap<String, Tensor> = encoder.named().unwrap().into_iter().collect();
    let fixed = Tensor::from_vec(positions(4, 64), (1, 17, 64), &Device::Cpu).unwrap();
    tensors.insert("pos_embed".into(), fixed);
    tensors.insert("head.weight".into(), Tensor::zeros((3, 64), candle_core::DType::F32, &Device::Cpu).unwrap());
    change(&mut tensors);
    let path = dir.join("model.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();
    (path, encoder)
}

fn features(encoder: &Encoder) -> Vec<f32> {
    let pixels: Vec<f32> = (0..3 * 16 * 16).map(|i| (i as f32 * 0.37).sin()).collect();
    let pixels = Tensor::from_vec(pixels, (1, 3, 16, 16), &Device::Cpu).unwrap();
    encoder.features(&pixels, Pooling::Mean).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_run_starts_with_the_files_encoder_in_both_branches() {
    let dir = tempfile::tempdir().unwrap();
    let (path, encoder) = timm_file(dir.path(), |_| ());
    let initial = Initial::read(&path).unwrap();
    assert_eq!((initial.left.clone(), initial.taken()), (vec!["head.weight".to_string()], 3 + 12 * 2 + 2));
    let config = Config::parse("", "test", &initial.settings).unwrap();
    assert_eq!(config.encoder, self::config().encoder);
    let state = State::starting_from(&config, initial.encoder(&config.encoder).unwrap()).unwrap();
    assert_eq!(features(&state.method.encoder), features(&encoder));
    assert_eq!(features(&state.method.key.as_ref().unwrap().0), features(&encoder));
    let shallower =
        Config::parse("", "test", &["encoder.depth=1", "encoder.width=64", "encoder.heads=1"].map(String::from))
            .unwrap();
    assert!(initial.encoder(&shallower.encoder).is_err());
}

#[test]
fn what_would_be_lost_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let (path, _) = timm_file(dir.path(), |tensors| change(tensors));
        format!("{:#}", Initial::read(&path).err().unwrap())
    };
    let scale = |tensors: &mut HashMap<String, Tensor>| {
        tensors.insert("blocks.0.ls1.gamma".into(), tensors["norm.weight"].clone());
    };
    assert!(refused(&scale).contains("blocks.0.ls1.gamma is a part that this encoder does not have"));
    let learned = |tensors: &mut HashMap<String, Tensor>| {
        let other = (&tensors["pos_embed"] + 0.1).unwrap();
        tensors.insert("pos_embed".into(), other);
    };
    assert!(refused(&learned).contains("learned positions"));
    let cut = |tensors: &mut HashMap<String, Tensor>| {
        tensors.remove("patch_embed.proj.weight");
    };
    assert!(refused(&cut).contains("patch_embed.proj.weight is missing"));
    std::fs::write(dir.path().join("x"), "text").unwrap();
    let why = Initial::read(&dir.path().join("x")).err().unwrap().to_string();
    assert!(why.ends_with("is neither a bundle nor a safetensors file"), "{why}");
}
