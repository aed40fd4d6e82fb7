//! Shared by the system tests: the real binaries, a small data set, and a server that is stopped when its test ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use macrl_bundle::config::Pooling;
use macrl_bundle::decode::{DecodeLimits, decode};
use macrl_bundle::preprocess::Preprocess;
use macrl_nn::ops::tokens::pool;
use macrl_nn::vit::Encoder;
use serde_json::Value;

/// Path of a binary; `cargo test --workspace` builds the binaries before any test, and a missing one is built here.
pub fn binary(name: &str) -> PathBuf {
    static BUILD: OnceLock<()> = OnceLock::new();
    // target/release/deps/TEST -> target/release
    let test = std::env::current_exe().expect("a path");
    let path = test.ancestors().nth(2).expect("target/release").join(name);
    if !path.exists() {
        BUILD.get_or_init(|| {
            let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
            let built = Command::new(cargo).args(["build", "--release", "--bins"]).current_dir(root()).status();
            assert!(built.expect("cargo runs").success(), "the binaries do not build");
        });
    }
    path
}

/// The root folder of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a binary until it ends.
pub fn run(name: &str, arguments: &[&str]) -> Output {
    Command::new(binary(name)).args(arguments).current_dir(root()).output().expect("the binary starts")
}

/// Runs a binary that must succeed; returns its standard output.
#[track_caller]
pub fn succeed(name: &str, arguments: &[&str]) -> String {
    let output = run(name, arguments);
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a binary that must fail with exit code `code`; the last line on stderr must contain `hint`.
#[track_caller]
pub fn fail(name: &str, arguments: &[&str], code: i32, hint: &str) {
    let output = run(name, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    let last = error.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(code), "{name} {arguments:?}: {error}");
    assert!(last.contains(hint), "expected `{hint}` in the last line of: {error}");
    assert!(!error.contains("panicked"), "{error}");
}

/// Writes IDX files (MNIST's format): 28 x 28 grey images of four classes, each a bright bar at its own angle.
pub fn write_idx(dir: &Path, train: u32, test: u32) {
    fs::create_dir_all(dir).expect("a folder");
    let mut state = 1u32;
    let mut noise = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); // Numerical Recipes' generator
        (state >> 26) as u8
    };
    for (name, count) in [("train", train), ("t10k", test)] {
        let mut images = [0x803u32, count, 28, 28].iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>();
        let mut labels = [0x801u32, count].iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>();
        for i in 0..count {
            labels.push((i % 4) as u8);
            let angle = f64::from(i % 4) * std::f64::consts::FRAC_PI_4;
            let shift = f64::from(noise()) / 16.0 - 2.0;
            for (y, x) in (0..28 * 28).map(|p| (p / 28, p % 28)) {
                let across = (f64::from(x) - 13.5) * angle.sin() - (f64::from(y) - 13.5) * angle.cos() + shift;
                images.push(if across.abs() < 3.0 { 190 + noise() } else { noise() });
            }
        }
        fs::write(dir.join(format!("{name}-images-idx3-ubyte")), images).expect("a file");
        fs::write(dir.join(format!("{name}-labels-idx1-ubyte")), labels).expect("a file");
    }
}

/// Writes a configuration that is small enough to train in seconds.
pub fn write_config(path: &Path) {
    let text = "[data]\nfit = \"pad\"\n[encoder]\nwidth = 48\ndepth = 2\npatch_size = 8\n[decoder]\nwidth = 32\ndepth = 1\n\
                heads = 2\n[projector]\nhidden = 64\ndim = 32\n[contrast]\nbank_size = 64\n[train]\nepochs = 6\n\
                batch_size = 16\nlr = 1e-2\nwarmup_epochs = 1\ncheckpoint_every = 3\n";
    fs::write(path, text).expect("a file");
}

/// Posts a body; returns the status and the JSON of the answer (null if it is not JSON).
pub fn post(url: &str, kind: &str, body: &[u8]) -> (u16, Value) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    // As with curl, a large body waits for the server's `100 Continue`: one that is too large is refused unsent.
    let answer = agent.post(url).content_type(kind).header("expect", "100-continue").send(body);
    let mut answer = answer.expect("an answer");
    (answer.status().as_u16(), answer.body_mut().read_json().unwrap_or_default())
}

/// The L2-normalised embedding of an encoded image (D), computed by Candle.
pub fn candle_embedding(encoder: &Encoder, preprocess: &Preprocess, pooling: Pooling, image: &[u8]) -> Vec<f32> {
    let fitted = preprocess.fit(&decode(image, &DecodeLimits::default()).expect("an image"));
    let mut values = vec![0f32; preprocess.values()];
    preprocess.normalize(fitted.as_raw(), &mut values);
    let size = preprocess.image_size;
    let pixels = Tensor::from_vec(values, (1, 3, size, size), &Device::Cpu).expect("a shape that fits");
    let feature = pool(&encoder.forward_pixels(&pixels).expect("features"), pooling).expect("features");
    let feature = feature.flatten_all().and_then(|f| f.to_vec1::<f32>()).expect("32-bit features");
    let length = feature.iter().map(|v| v * v).sum::<f32>().sqrt();
    feature.iter().map(|v| v / length).collect()
}

/// A running server, which is stopped on drop.
pub struct Server {
    child: Child,
    /// Base URL, `http://HOST:PORT`
    pub url: String,
}

impl Server {
    /// Starts `macrl-serve` in 32 bits on a free port and waits until it is ready.
    pub fn start(bundle: &Path) -> Self {
        Self::start_in(bundle, "f32")
    }

    /// The same in a precision.
    pub fn start_in(bundle: &Path, precision: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let listen = format!("127.0.0.1:{port}");
        let mut child = Command::new(binary("macrl-serve"))
            .args(["--bundle", &bundle.display().to_string(), "--listen", &listen, "--precision", precision])
            .current_dir(root())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let url = format!("http://{listen}");
        let start = Instant::now();
        while ureq::get(format!("{url}/ready")).call().is_err() {
            let ended = child.try_wait().expect("a child");
            if ended.is_some() || start.elapsed() > Duration::from_secs(60) {
                let _ = child.kill();
                let said =
                    child.stderr.take().map(|s| BufReader::new(s).lines().map_while(Result::ok).collect::<Vec<_>>());
                panic!("the server did not become ready: {said:?}");
            }
            sleep(Duration::from_millis(50));
        }
        Server { child, url }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
