//! Runs the programs in examples/.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use macrl::{post, root};

/// Command for an example; `cargo test --workspace` builds the examples before any test runs.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    // target/release/deps/TEST -> target/release/examples/NAME
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing: `cargo build --release --examples` builds it", path.display());
    let mut command = Command::new(path);
    command.current_dir(root());
    command
}

fn succeed(name: &str, arguments: &[&str]) -> String {
    let output = example(name).args(arguments).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Writes `count` PNG files with different colour patterns.
fn write_images(dir: &Path, count: u8) {
    for k in 0..count {
        let wave = |x: u32, y: u32| [x * 8, y * 8, (x + y) * u32::from(k)].map(|v| v as u8);
        image::RgbImage::from_fn(32, 32, |x, y| image::Rgb(wave(x, y))).save(dir.join(format!("{k}.png"))).unwrap();
    }
}

#[test]
fn pretraining_writes_a_run_that_can_be_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let (images, out) = (dir.path().join("images"), dir.path().join("run"));
    std::fs::create_dir(&images).unwrap();
    write_images(&images, 20);
    let (images, out) = (images.to_str().unwrap(), out.to_str().unwrap());
    let said = succeed("pretrain", &[images, out]);
    assert!(said.contains("18 training images (image folder)") && said.contains("last.safetensors"), "{said}");
    let table = macrl::succeed("macrl-train", &["evaluate", "--run", out, "--data", images]);
    assert!(table.contains("macrl"), "{table}");
}

#[test]
fn embedding_prints_one_line_per_file() {
    let dir = tempfile::tempdir().unwrap();
    write_images(dir.path(), 2);
    let files = ["0.png", "1.png"].map(|name| dir.path().join(name).to_str().unwrap().to_string());
    let said = succeed("embed", &["models/pretrained/cifar10", &files[0], &files[1]]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 2 && lines.iter().all(|line| line.contains(": 192 numbers, [")), "{said}");
    assert_ne!(lines[0].split_once(": "), lines[1].split_once(": "));
}

#[test]
fn the_server_answers_its_own_route_and_macrls() {
    let mut command = example("serve");
    let mut server = command.args(["models/pretrained/cifar10", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("listening on ").unwrap_or_default().to_string();
    let visits = |_| ureq::get(format!("{url}/visits")).call().unwrap().body_mut().read_to_string().unwrap();
    let answers = [(); 2].map(visits);
    let (status, answer) = post(&format!("{url}/images/embed"), "image/x-portable-pixmap", b"P6 1 1 255\nabc");
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(answers, ["1 visits\n", "2 visits\n"]);
    assert_eq!((status, answer["dim"].as_u64()), (200, Some(192)), "{answer}");
}
