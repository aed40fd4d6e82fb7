//! What other programs read of a bundle: names, shapes and entries, and that they compute our numbers with them.
//!
//! `bench/clients.py` runs the programs themselves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{D, Device, Tensor};
use candle_onnx::onnx::ModelProto;
use macrl_bundle::bundle::{Bundle, HIDDEN, LOGITS, POOLED};
use macrl_bundle::config::Pooling;
use macrl_bundle::probe::Probe;
use macrl_export::graph::Element;
use macrl_export::run::TrainedRun;
use macrl_export::write::{self, BundleOptions, Graphs};
use macrl_export::{card, parity, upgrade};
use prost::Message;
use serde_json::{Value, json};

const GRAPHS: [&str; 3] = ["onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx"];

fn export(dir: &Path, pooling: Pooling, evaluated: bool) -> (TrainedRun, Bundle) {
    let source = support::source(&support::write_run(dir, pooling, evaluated));
    let target = dir.join("bundle");
    write::bundle(&target, &source, &Graphs::build(&source, Element::F32).unwrap(), &BundleOptions::default()).unwrap();
    (source, Bundle::open(&target).unwrap())
}

fn json(bundle: &Bundle, name: &str) -> Value {
    serde_json::from_slice(&fs::read(bundle.dir.join(name)).unwrap()).unwrap()
}

fn model(bundle: &Bundle, name: &str) -> ModelProto {
    ModelProto::decode(fs::read(bundle.dir.join(name)).unwrap().as_slice()).unwrap()
}

/// timm's VisionTransformer with `model_args`, from its definition: features and scores of pixels (B, 3, S, S).
fn timm(config: &Value, w: &HashMap<String, Tensor>, pixels: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
    let number = |key: &str| config["model_args"][key].as_u64().unwrap() as usize;
    let (p, d, heads) = (number("patch_size"), number("embed_dim"), number("num_heads"));
    let linear = |x: &Tensor, name: &str| {
        let weight = w[&format!("{name}.weight")].t()?;
        x.contiguous()?.broadcast_matmul(&weight)?.broadcast_add(&w[&format!("{name}.bias")])
    };
    let norm = |x: &Tensor, name: &str| {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
        x.broadcast_div(&deviation)?
            .broadcast_mul(&w[&format!("{name}.weight")])?
            .broadcast_add(&w[&format!("{name}.bias")])
    };
    let x = pixels.conv2d(&w["patch_embed.proj.weight"], 0, p, 1, 1)?.flatten_from(2)?.transpose(1, 2)?;
    let x = x.broadcast_add(&w["patch_embed.proj.bias"])?;
    let (b, n, _) = x.dims3()?;
    let x = Tensor::cat(&[&w["cls_token"].broadcast_as((b, 1, d))?.contiguous()?, &x.contiguous()?], 1)?;
    let mut x = x.broadcast_add(&w["pos_embed"])?;
    for block in (0..number("depth")).map(|i| format!("blocks.{i}.")) {
        let qkv = linear(&norm(&x, &format!("{block}norm1"))?, &format!("{block}attn.qkv"))?;
        let qkv = qkv.reshape((b, n + 1, 3, heads, d / heads))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let part = |i: usize| qkv.get(i);
        let scores = (part(0)?.matmul(&part(1)?.t()?.contiguous()?)? * ((d / heads) as f64).powf(-0.5))?;
        let powers = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let shares = powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?;
        let y = shares.matmul(&part(2)?)?.transpose(1, 2)?.reshape((b, n + 1, d))?;
        x = (x + linear(&y, &format!("{block}attn.proj"))?)?;
        let y = linear(&norm(&x, &format!("{block}norm2"))?, &format!("{block}mlp.fc1"))?.gelu_erf()?;
        x = (x + linear(&y, &format!("{block}mlp.fc2"))?)?;
    }
    let x = norm(&x, "norm")?;
    let feature = match config["global_pool"].as_str().unwrap() {
        "avg" => x.narrow(1, 1, n)?.mean(1)?,
        _ => x.narrow(1, 0, 1)?.squeeze(1)?,
    };
    let scores = if w.contains_key("head.weight") { linear(&feature, "head")? } else { feature.clone() };
    Ok((feature, scores))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + b.abs()))
}

#[test]
fn timms_network_of_the_weights_gives_our_features_and_classes() {
    for pooling in [Pooling::Mean, Pooling::Cls] {
        let dir = tempfile::tempdir().unwrap();
        let (source, bundle) = export(dir.path(), pooling, true);
        let weights = candle_core::safetensors::load(&bundle.weights, &Device::Cpu).unwrap();
        // 4 tensors before the blocks, 12 in each, 2 after them, and the head.
        assert_eq!(weights.len(), 4 + 12 * 3 + 2 + 2);
        assert_eq!((weights["head.weight"].dims(), weights["head.bias"].dims()), (&[3, 24][..], &[3][..]));
        for config in ["config.json", "config.0.json"] {
            let (features, scores) =
                timm(&json(&bundle, config), &weights, &source.images.batch(0, 11).unwrap()).unwrap();
            let ours = parity::candle(&source.encoder, &source.images, pooling).unwrap();
            assert!(close(&values(&features), &ours.pooled));
            let probe = bundle.probe.as_ref().unwrap();
            let expected: Vec<f32> = ours.pooled.chunks_exact(24).flat_map(|f| probe.logits(f)).collect();
            assert!(close(&values(&scores), &expected));
        }
    }
}

#[test]
fn configurations_name_what_each_program_looks_for() {
    let dir = tempfile::tempdir().unwrap();
    let (_, bundle) = export(dir.path(), Pooling::Mean, true);
    let [config, transformers, processor] =
        ["config.json", "config.0.json", "preprocessor_config.json"].map(|name| json(&bundle, name));
    // transformers.js takes its class from these; transformers goes on to the second file.
    assert_eq!(config["model_type"], "vit");
    assert_eq!(config["architectures"], json!(["ViTForImageClassification"]));
    assert_eq!(config["configuration_files"], json!(["config.0.json"]));
    assert_eq!(config["id2label"], json!({"0": "boot", "1": "bag", "2": "shirt"}));
    assert_eq!(transformers["model_type"], "timm_wrapper");
    assert_eq!(transformers["architectures"], json!(["TimmWrapperForImageClassification"]));
    assert_eq!((&transformers["num_hidden_layers"], &transformers["dtype"]), (&Value::Null, &json!("float32")));
    assert_eq!(transformers["id2label"], config["id2label"]);
    for file in [&config, &transformers] {
        assert_eq!(file["architecture"], "vit_tiny_patch16_224");
        assert_eq!(
            file["model_args"],
            json!({"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": 4,
                "global_pool": "avg", "fc_norm": false})
        );
        assert_eq!((&file["num_classes"], &file["label_names"]), (&json!(3), &json!(["boot", "bag", "shirt"])));
        let expected = json!({"input_size": [3, 16, 16], "fixed_input_size": true, "interpolation": "bicubic", "crop_pct": 1.0,
            "crop_mode": "center", "first_conv": "patch_embed.proj", "classifier": "head", "num_classes": 3});
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&file["pretrained_cfg"][key], value, "{key}");
        }
    }
    // transformers 4 reads the transform from config.json, 5 and transformers.js from the file of its own.
    for file in [&config, &processor] {
        assert_eq!(file["image_processor_type"], "BitImageProcessor");
        assert_eq!(
            (&file["size"], &file["crop_size"]),
            (&json!({"shortest_edge": 16}), &json!({"height": 16, "width": 16}))
        );
        assert_eq!(
            (&file["resample"], &file["do_convert_rgb"], &file["do_resize"]),
            (&json!(3), &json!(true), &json!(true))
        );
    }
    let card = fs::read_to_string(bundle.dir.join("README.md")).unwrap();
    assert!(
        card.contains("`logits`; 32-bit") && card.contains("\"local-dir:.\"") && card.contains("image-classification")
    );
}

#[test]
fn graphs_give_the_probes_scores_as_logits() {
    let dir = tempfile::tempdir().unwrap();
    let (source, bundle) = export(dir.path(), Pooling::Mean, true);
    for name in GRAPHS {
        let outputs = parity::onnx_runtime(&bundle.dir.join(name), &source.images, &[HIDDEN, POOLED, LOGITS]).unwrap();
        assert_eq!(outputs.logits.len(), 11 * 3);
        parity::logits(name, &outputs, bundle.probe.as_ref()).unwrap();
        let other = Probe { bias: vec![0.3, 0.0, -0.1], ..bundle.probe.clone().unwrap() };
        let line = parity::logits(name, &outputs, Some(&other)).unwrap_err().to_string();
        assert!(line.contains("`logits` differ from the probe's scores"), "{line}");
    }
}

#[test]
fn without_a_probe_there_are_no_classes_to_guess() {
    let dir = tempfile::tempdir().unwrap();
    let (_, bundle) = export(dir.path(), Pooling::Cls, false);
    let weights = candle_core::safetensors::load(&bundle.weights, &Device::Cpu).unwrap();
    assert!(!weights.contains_key("head.weight"));
    for name in GRAPHS {
        let outputs: Vec<String> = model(&bundle, name).graph.unwrap().output.into_iter().map(|o| o.name).collect();
        assert_eq!(outputs, [HIDDEN, POOLED]);
    }
    let [config, transformers] = ["config.json", "config.0.json"].map(|name| json(&bundle, name));
    assert_eq!((&config["architectures"], &config["global_pool"]), (&json!(["ViTModel"]), &json!("token")));
    // transformers' classifier refuses a network with no class.
    assert_eq!((&transformers["num_classes"], &transformers["label_names"]), (&json!(0), &json!([])));
    assert!(!fs::read_to_string(bundle.dir.join("README.md")).unwrap().contains("logits"));
}

/// Takes away what version 0.1.0 did not write.
fn make_old(bundle: &Bundle) {
    let dir = &bundle.dir;
    for name in ["config.0.json", ".macrl.json"] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    let mut config = json(bundle, "config.json");
    let keep = ["model_type", "pooling", "id2label", "label2id", "macrl", "image_size", "patch_size", "num_channels"];
    let geometry = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"];
    let rest = ["layer_norm_eps", "qkv_bias", "architectures"];
    config.as_object_mut().unwrap().retain(|k, _| [&keep[..], &geometry, &rest].concat().contains(&k.as_str()));
    config["architectures"] = json!(["ViTModel"]);
    let encoder = config["macrl"]["encoder_sha256"].take();
    for later in ["encoder_sha256", "files_sha256"] {
        config["macrl"].as_object_mut().unwrap().remove(later);
    }
    config["macrl"]["weights_sha256"] = encoder;
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut weights = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
    weights.retain(|name, _| !name.starts_with("head."));
    // Written as an export writes it: the hash is the recorded one.
    let tensors: Vec<(String, Tensor)> = weights.into_iter().collect();
    let note = HashMap::from([("format".to_string(), "pt".to_string())]);
    fs::write(dir.join("model.safetensors"), macrl_nn::checkpoint::to_bytes(&tensors, note).unwrap()).unwrap();
    let before = fs::read(dir.join(GRAPHS[0])).unwrap();
    let [mut full, half, mut int8] = GRAPHS.map(|name| model(bundle, name));
    let mut half = macrl_export::share::whole(&half, &before).unwrap();
    [&mut full, &mut half, &mut int8].into_iter().for_each(|graph| macrl_export::head::set(graph, None));
    let after = full.encode_to_vec();
    let half = macrl_export::share::halves(&half, "model.onnx", &after);
    for (name, bytes) in GRAPHS.into_iter().zip([after, half.encode_to_vec(), int8.encode_to_vec()]) {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

#[test]
fn an_older_bundle_is_read_and_becomes_one_of_today() {
    let dir = tempfile::tempdir().unwrap();
    let source = support::source(&support::write_run(dir.path(), Pooling::Mean, true));
    let target = dir.path().join("bundle");
    let options = BundleOptions { weights: Element::F16, notes: Some("## Licence\n\nAsk.".into()) };
    write::bundle(&target, &source, &Graphs::build(&source, Element::F16).unwrap(), &options).unwrap();
    let today = Bundle::open(&target).unwrap();
    // The 8-bit graph holds the same constants in another order.
    let files = ["config.0.json", "model.safetensors", GRAPHS[0], GRAPHS[1], "README.md", "parity.json"];
    let read = || files.map(|name| fs::read(target.join(name)).unwrap());
    let (expected, configuration) = (read(), json(&today, "config.json"));
    make_old(&today);
    let card = fs::read_to_string(target.join("README.md")).unwrap();
    fs::write(target.join("README.md"), card::with_section(&card, "## Use\n\nIt was otherwise.\n")).unwrap();
    let old = Bundle::open(&target).unwrap();
    assert_eq!(old.config.macrl.encoder(), today.config.macrl.encoder(), "an index of it stays valid");
    let said = upgrade::bundle(&target, None).unwrap();
    assert!(said.contains("3 graphs with `logits`"), "{said}");
    for (name, (found, expected)) in files.iter().zip(read().iter().zip(&expected)) {
        assert!(found == expected, "{name}");
    }
    let but_hashes = |mut config: serde_json::Value| {
        config["macrl"]["files_sha256"].take();
        config
    };
    assert_eq!(but_hashes(json(&today, "config.json")), but_hashes(configuration));
    upgrade::bundle(&target, None).unwrap();
    assert_eq!(read(), expected);
    let (code, line) = match upgrade::bundle(dir.path(), None) {
        Err(failure) => (failure.code(), failure.to_string()),
        Ok(said) => panic!("{said}"),
    };
    assert!(code == 2 && line.contains("config.json is missing"), "{line}");
}

#[test]
fn another_probe_changes_the_classes_and_not_the_features() {
    let dir = tempfile::tempdir().unwrap();
    let (source, before) = export(dir.path(), Pooling::Mean, true);
    let probe = Probe {
        weight: (0..2 * 24).map(|i| (i as f32 * 0.7).cos()).collect(),
        bias: vec![0.5, -0.5],
        mean: vec![0.1; 24],
        std: vec![0.8; 24],
        labels: vec!["cat".into(), "dog".into()],
    };
    let file = dir.path().join("probe.safetensors");
    fs::write(&file, probe.to_bytes().unwrap()).unwrap();
    upgrade::bundle(&before.dir, Some(&file)).unwrap();
    let after = Bundle::open(&before.dir).unwrap();
    assert_eq!(
        (after.config.labels(), after.probe.as_ref()),
        (vec!["cat".to_string(), "dog".to_string()], Some(&probe))
    );
    assert!(after.evaluation.is_none(), "numbers of the other probe");
    assert_eq!(after.config.macrl.encoder(), before.config.macrl.encoder());
    for name in GRAPHS {
        let outputs = parity::onnx_runtime(&after.dir.join(name), &source.images, &[POOLED, LOGITS]).unwrap();
        assert_eq!(outputs.logits.len(), 11 * 2);
        parity::logits(name, &outputs, Some(&probe)).unwrap();
    }
    assert_eq!(json(&after, "config.0.json")["label_names"], json!(["cat", "dog"]));
    assert!(fs::read_to_string(after.dir.join("README.md")).unwrap().contains("came without numbers"));
    let narrow = Probe { weight: vec![1.0; 4], mean: vec![0.0; 2], std: vec![1.0; 2], ..probe };
    fs::write(&file, narrow.to_bytes().unwrap()).unwrap();
    let failure = upgrade::bundle(&after.dir, Some(&file)).err().unwrap();
    assert!(
        failure.code() == 2 && failure.to_string().contains("expected features of 24 values, found 2"),
        "{failure}"
    );
}

#[test]
fn a_fine_tuned_network_leaves_with_its_own_head() {
    let dir = tempfile::tempdir().unwrap();
    let run = support::write_run(dir.path(), Pooling::Mean, true);
    let config = support::config(Pooling::Mean);
    let encoder = macrl_nn::vit::Encoder::init(&config.encoder, 9).unwrap();
    let mut tensors: Vec<_> = encoder.named().unwrap().into_iter().map(|(n, t)| (format!("encoder.{n}"), t)).collect();
    let weight: Vec<f32> = (0..2 * 24).map(|i| (i as f32 * 1.1).sin()).collect();
    tensors.push(("head.weight".into(), Tensor::from_slice(&weight, (2, 24), &Device::Cpu).unwrap()));
    tensors.push(("head.bias".into(), Tensor::new(&[0.25f32, -0.25], &Device::Cpu).unwrap()));
    fs::create_dir_all(run.join("finetune/macrl")).unwrap();
    let notes = [("step", "77"), ("labels", "[\"left\", \"right\"]")].map(|(k, v)| (k.to_string(), v.to_string()));
    let file = run.join("finetune/macrl/best.safetensors");
    macrl_nn::checkpoint::save(&file, &config, &HashMap::from(notes), &tensors).unwrap();
    let result = json!({"protocol": {"split": "made up", "train_images": 9, "test_images": 4},
        "rows": [{"features": "macrl", "accuracy": 0.75, "best": 0.8}]});
    fs::write(run.join("finetune.json"), result.to_string()).unwrap();
    let source = support::read(&run, Some("finetuned")).unwrap();
    assert_eq!((source.steps, source.checkpoint.as_str()), (77, "finetune/macrl/best.safetensors"));
    let target = dir.path().join("bundle");
    write::bundle(&target, &source, &Graphs::build(&source, Element::F32).unwrap(), &BundleOptions::default()).unwrap();
    let bundle = Bundle::open(&target).unwrap();
    assert_eq!(bundle.config.labels(), ["left", "right"]);
    let probe = bundle.probe.as_ref().unwrap();
    assert_eq!((&probe.weight, &probe.std), (&weight, &vec![1.0; 24]));
    assert!(bundle.evaluation.is_none(), "the numbers of the frozen encoder are not this network's");
    assert_eq!(bundle.config.macrl.extra["finetune"], result);
    let card = fs::read_to_string(target.join("README.md")).unwrap();
    assert!(card.contains("| **pretrained: this model** | 75.0 | 80.0 |") && !card.contains("raw pixels"));
    let missing = support::read(&support::write_run(&dir.path().join("x"), Pooling::Mean, true), Some("finetuned"));
    let missing = missing.err().unwrap();
    assert!(missing.code() == 2 && missing.to_string().contains("finetune/macrl/best.safetensors"), "{missing}");
}
