//! Evaluation with the real binaries: folders without labels, and large images in limited memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::fs;
use std::path::Path;
use std::process::Command;

use macrl::{binary, fail, succeed};
use serde_json::Value;

/// Writes a PPM file of one colour with noise.
fn write_image(path: &Path, size: u32, number: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut bytes = format!("P6\n{size} {size}\n255\n").into_bytes();
    for i in 0..size * size {
        let noise = (i.wrapping_mul(2_654_435_761) ^ number.wrapping_mul(40_503)) >> 27;
        bytes.extend([40 * (number % 6) + noise, 30 + noise, 10 * (number % 7) + noise].map(|v| v.min(255) as u8));
    }
    fs::write(path, bytes).unwrap();
}

/// Pretrains on `data` for a few steps; returns the run folder.
fn pretrain(dir: &Path, data: &Path, size: u32) -> String {
    let config = dir.join("run.toml");
    let text = format!(
        "[encoder]\nimage_size = {size}\npatch_size = {}\nwidth = 24\ndepth = 1\nheads = 2\n[decoder]\nwidth = 16\ndepth = 1\n\
         heads = 2\n[projector]\nhidden = 32\ndim = 16\n[contrast]\nbank_size = 8\n[train]\nepochs = 2\nbatch_size = 8\n\
         warmup_epochs = 0\n[evaluate]\nevery_epochs = 1\n",
        size / 4
    );
    fs::write(&config, text).unwrap();
    let run = dir.join("run").display().to_string();
    let (config, data) = (config.display().to_string(), data.display().to_string());
    succeed("macrl-train", &["pretrain", "--config", &config, "--data", &data, "--out", &run]);
    run
}

fn read(run: &str, name: &str) -> String {
    fs::read_to_string(Path::new(run).join(name)).unwrap()
}

#[test]
fn images_without_labels_have_their_own_evaluation_and_report() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    (0..40).for_each(|i| write_image(&data.join(format!("{i:02}.ppm")), 16, i));
    let run = pretrain(dir.path(), &data, 16);
    assert!(!read(&run, "metrics.jsonl").contains("knn"));
    succeed("macrl-train", &["report", "--run", &run]);
    let page = read(&run, "report.html");
    assert!(page.contains("No image has a label") && page.contains("macrl-train evaluate --run"), "{page}");

    let table = succeed("macrl-train", &["evaluate", "--run", &run]);
    assert!(table.starts_with("features") && table.contains("spread") && !table.contains("kNN"), "{table}");
    let evaluation: Value = serde_json::from_str(&read(&run, "evaluation.json")).unwrap();
    assert_eq!(evaluation["rows"], Value::Array(Vec::new()));
    let rows = evaluation["unlabelled"]["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["features"].as_str().unwrap()).collect::<Vec<_>>(), ["macrl", "random"]);
    assert!(rows.iter().all(|row| row["rank"].as_f64().unwrap() >= 1.0));
    succeed("macrl-train", &["report", "--run", &run]);
    let page = read(&run, "report.html");
    assert!(page.contains("Evaluation without labels") && page.contains("36 training images"));
    assert!(!page.contains("coloured by class") && !page.contains("class=\"other") && !page.contains("<ul>"));

    fail("macrl-train", &["finetune", "--run", &run], 1, "fine-tuning needs class sub-folders or labels");
    let features = dir.path().join("features").display().to_string();
    fail("macrl-train", &["evaluate", "--run", &run, "--features-out", &features], 2, "no image here has a label");
}

#[test]
fn large_images_are_evaluated_in_limited_memory() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for i in 0..40 {
        let class = if i % 2 == 0 { "even" } else { "odd" };
        write_image(&data.join(class).join(format!("{i:02}.ppm")), 128, i);
    }
    let run = pretrain(dir.path(), &data, 128);
    // A matrix of 49,152 x 49,152 would be 19 GB.
    let bounded = Command::new("sh")
        .args(["-c", "ulimit -v 6000000; exec \"$@\"", "sh"])
        .arg(binary("macrl-train"))
        .args(["evaluate", "--run", &run])
        .output()
        .unwrap();
    assert!(bounded.status.success(), "{}", String::from_utf8_lossy(&bounded.stderr));
    let evaluation: Value = serde_json::from_str(&read(&run, "evaluation.json")).unwrap();
    assert_eq!(evaluation["rows"][2]["dim"], 3 * 32 * 32);
    assert!(evaluation["protocol"]["pixels"].as_str().unwrap().contains("averaged down to 32 x 32"));
}
