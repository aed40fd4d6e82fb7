//! The command `macrl`: images to a bundle, and images to a file of embeddings, in one line each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::fs;
use std::path::Path;

use macrl::{fail, root, run, succeed, write_idx};
use macrl_bundle::bundle::Bundle;
use serde_json::Value;

const SHIPPED: &str = "models/pretrained/cifar10";

/// Portable pixmaps of two colours, in two class folders.
fn write_images(dir: &Path) {
    for (i, class) in [(0u8, "dark"), (1, "light"), (2, "dark"), (3, "light"), (4, "dark")] {
        fs::create_dir_all(dir.join(class)).unwrap();
        let mut file = b"P6 40 24 255\n".to_vec();
        file.extend((0..40 * 24).flat_map(|p| [p as u8, i * 50, 255 - i * 40]));
        fs::write(dir.join(class).join(format!("{i}.ppm")), file).unwrap();
    }
}

#[test]
fn images_become_a_file_of_embeddings() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    write_images(&images);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let embed = |source: &str, out: &str| succeed("macrl", &["embed", SHIPPED, source, out]);
    embed(&path("images"), &path("out.npy"));
    let lines: Vec<Value> = fs::read_to_string(path("out.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ids: Vec<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!((ids.len(), ids[0], &lines[0]["metadata"]["label"]), (5, "dark/0.ppm", &Value::from("dark")));
    let array = fs::read(path("out.npy")).unwrap();
    let values: Vec<f32> =
        array[array.len() - 5 * 192 * 4..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert!(values.chunks(192).all(|v| (v.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4), "length 1");

    // An archive with the same files gives the same rows, as CSV.
    assert!(
        std::process::Command::new("tar")
            .args(["-czf", &path("a.tgz"), "-C", &path("images"), "."])
            .status()
            .unwrap()
            .success()
    );
    let said = embed(&path("a.tgz"), &path("out.csv"));
    assert!(said.contains("5 items in"), "{said}");
    let text = fs::read_to_string(path("out.csv")).unwrap();
    let rows: Vec<&str> = text.lines().collect();
    assert!(rows[0].starts_with("id,metadata,v0,v1,") && rows.len() == 6);
    let last: f32 = rows[5].rsplit(',').next().unwrap().parse().unwrap();
    assert_eq!(last, values[values.len() - 1]);
    fail("macrl", &["embed", SHIPPED, &path("images"), &path("out.csv")], 2, "exists: name another file");
    fail(
        "macrl",
        &["embed", SHIPPED, &path("images"), &path("out.txt")],
        2,
        "expected OUT.parquet, OUT.npy or OUT.csv",
    );
    fail("macrl", &["embed", SHIPPED, &path("none"), &path("x.npy")], 2, "expected a folder of images");
    embed(&path("images"), &path("out.parquet"));
    assert_eq!(&fs::read(path("out.parquet")).unwrap()[..4], b"PAR1");
}

#[test]
fn images_become_a_bundle() {
    let dir = tempfile::tempdir().unwrap();
    write_idx(&dir.path().join("data"), 64, 16);
    let (data, out) = (dir.path().join("data").display().to_string(), dir.path().join("run").display().to_string());
    let fast = ["train.epochs=2", "encoder.width=48", "encoder.depth=1", "encoder.heads=2", "encoder.patch_size=8"];
    let mut arguments = vec!["fit", data.as_str(), "--out", &out, "--minutes", "1", "--no-serve"];
    fast.iter().for_each(|set| arguments.extend(["--set", set]));
    let fit = || {
        let output = run("macrl", &arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let said = fit();
    assert!(said.contains("64 training images, about 28 pixels on the shorter edge: small images"), "{said}");
    assert!(said.contains("batches of 16 and a bank of 0 keys"), "{said}");
    assert!(said.contains("next: macrl-serve ingest --bundle"), "{said}");
    let bundle = Bundle::open(&dir.path().join("run/bundle")).unwrap();
    assert_eq!((bundle.config.num_hidden_layers, bundle.config.labels().len()), (1, 4));
    // Once more: the run is finished, and everything after it is done again.
    let again = fit();
    assert!(again.contains("resuming after step 8") && !again.contains("chosen for these images"), "{again}");

    // The bundle's encoder on other labels, and as the start of another run.
    write_idx(&dir.path().join("other"), 32, 16);
    let (bundle_dir, other) = (format!("{out}/bundle"), dir.path().join("other").display().to_string());
    let said = succeed("macrl-train", &["probe", "--bundle", &bundle_dir, "--data", &other]);
    assert!(said.contains("with `logits`"), "{said}");
    let changed = Bundle::open(Path::new(&bundle_dir)).unwrap();
    assert_eq!(changed.evaluation.unwrap().protocol.train_images, 32);
    assert_eq!(changed.config.macrl.encoder(), bundle.config.macrl.encoder());
    let second = dir.path().join("second").display().to_string();
    let init = ["pretrain", "--data", &other, "--init", &bundle_dir, "--out", &second, "--set", "train.epochs=1"];
    let output = run("macrl-train", &init);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("the encoder's 17 tensors are taken; left: head.bias, head.weight"),
        "{said}"
    );
    fail("macrl-train", &["pretrain"], 2, "expected --config FILE, or --data DIR");
    fail("macrl-train", &["pretrain", "--data", &other, "--init", &data, "--out", &second], 2, "--init: ");
}

#[test]
fn a_configuration_prints_with_its_comments() {
    let text = succeed("macrl", &["config", "cifar10-cpu", "--set", "train.epochs=9"]);
    assert!(text.contains("# Passes over the training images.\nepochs = 9\n"), "{text}");
    assert!(text.contains("[views.strong]") && text.contains("optimizer = \"muon\""));
    fail("macrl", &["config", "nothing"], 2, "found nothing");
    fail("macrl", &["config", "--set", "train.epoch=9"], 2, "train.epochs");
    assert!(root().join(SHIPPED).is_dir());
}
