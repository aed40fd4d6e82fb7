//! The real binary: socket, signals, exit codes, the demo client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_macrl-serve");

/// A running server; killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) url: String,
}

impl Process {
    pub(crate) fn start(bundle: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(BINARY)
            .args(["--listen", "127.0.0.1:0", "--device", "cpu", "--bundle"])
            .arg(bundle)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines.next().unwrap().unwrap().strip_prefix("listening on ").unwrap().to_string();
        assert!(lines.next().unwrap().unwrap().starts_with("ready: tiny on "));
        // Further output is read, so that the process never blocks on it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }

    pub(crate) fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// One request over a new connection; the whole answer.
    pub(crate) fn ask(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    pub(crate) fn wait(&mut self, patience: Duration) -> Option<i32> {
        let since = Instant::now();
        while since.elapsed() < patience {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn bundle() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_bundle(dir.path(), "tiny", true);
    dir
}

pub(crate) fn request(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /embed HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: image/png\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

pub(crate) fn run(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().unwrap()
}

pub(crate) fn one_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    text
}

#[test]
fn sigterm_finishes_what_was_accepted_and_exits_0() {
    let dir = bundle();
    let mut server = Process::start(dir.path(), &["--grace", "30"]);
    // A request whose body comes half before the signal and half after it.
    let whole = request(&png(0));
    let (first, second) = whole.split_at(whole.len() - 30);
    let mut slow = TcpStream::connect(server.address()).unwrap();
    slow.write_all(first).unwrap();
    let idle = TcpStream::connect(server.address()).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    server.signal("-TERM");
    let since = Instant::now();
    while TcpStream::connect(server.address()).is_ok() {
        assert!(since.elapsed() < Duration::from_secs(10), "it still accepts");
        std::thread::sleep(Duration::from_millis(10));
    }
    slow.write_all(second).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(idle);
    assert_eq!(server.wait(Duration::from_secs(40)), Some(0));
}

#[test]
fn a_header_that_never_ends_is_cut_off_and_delays_no_other_client() {
    let dir = bundle();
    let server = Process::start(dir.path(), &["--header-timeout", "0.3"]);
    let mut loris: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    for stream in &mut loris {
        stream.write_all(b"POST /embed HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    }
    assert!(server.ask(&request(&png(0))).starts_with("HTTP/1.1 200"));
    for stream in &mut loris {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut answer = Vec::new();
        // The server closed the connection, with or without an answer.
        assert!(stream.read_to_end(&mut answer).is_ok(), "still open");
    }
}

#[test]
fn idle_connections_are_closed_for_new_ones() {
    let dir = bundle();
    let server =
        Process::start(dir.path(), &["--max-connections", "20", "--header-timeout", "60", "--body-timeout", "60"]);
    let whole = request(&png(0));
    let (headers, bodies) = (&whole[..30], &whole[..whole.len() - 10]);
    let mut idle: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    for (i, stream) in idle.iter_mut().enumerate() {
        let _ = stream.write_all(if i % 2 == 0 { headers } else { bodies });
    }
    let since = Instant::now();
    for _ in 0..30 {
        assert!(server.ask(&request(&png(0))).starts_with("HTTP/1.1 200"));
    }
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
}

#[test]
fn a_client_that_writes_before_it_reads_learns_that_its_body_is_too_large() {
    let dir = bundle();
    let server = Process::start(dir.path(), &["--max-body", "100000"]);
    let answer = server.ask(&request(&vec![0; 20_000_000]));
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer:.200}");
}

#[test]
fn sighup_reads_the_bundle_again() {
    let dir = bundle();
    let server = Process::start(dir.path(), &[]);
    write_bundle(dir.path(), "second", true);
    server.signal("-HUP");
    let since = Instant::now();
    while !server.ask(b"GET /info HTTP/1.0\r\n\r\n").contains("\"name\":\"second\"") {
        assert!(since.elapsed() < Duration::from_secs(10), "not reloaded");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn mistakes_are_one_line_with_the_right_exit_code() {
    let dir = bundle();
    let path = dir.path().to_str().unwrap();
    for args in [
        &["--bundel", "x"][..],
        &[],
        &["--bundle", path, "--device", "tpu"],
        &["--bundle", path, "--listen", "garbage"],
        &["--bundle", path, "--workers", "0"],
        &["--bundle", path, "--grace", "-1"],
        &["--bundle", path, "--max-images", "500"],
        &["--bundle", path, "--max-inputs", "2049"],
        &["--bundle", path, "--keep-alive", "0"],
        &["--bundle", path, "--drain-delay", "-1"],
        &["--bundle", path, "--cors-origin", "example.org"],
        &["--bundle", path, "--cors-origin", "https://example.org/page"],
        &["ingest", path],
        &["ingest", "--url", "http://x", "--index", "y", path],
        &["--bundle", path, "--index", "mysql://x"],
        &["--bundle", path, "--index", "postgres://ann:secret@host:port/x"],
        &["export", "--index", "x", "y.csv"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", one_line(&output));
        assert!(!one_line(&output).contains("secret"));
    }
    let missing = run(&["--bundle", "/nowhere"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(one_line(&missing).contains("there is no bundle at /nowhere"));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let output = run(&["--bundle", path, "--listen", &port]);
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains(&format!("cannot listen on {port}")));

    std::fs::write(dir.path().join("probe.safetensors"), b"cut").unwrap();
    let output = run(&["--bundle", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains("probe.safetensors"));
}

#[test]
fn a_missing_runtime_is_one_sentence() {
    let dir = bundle();
    let output =
        Command::new(BINARY).arg("--bundle").arg(dir.path()).env("ORT_DYLIB_PATH", "/nowhere.so").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line = one_line(&output);
    assert!(line.contains("ORT_DYLIB_PATH=/nowhere.so") && line.contains("make setup"), "{line}");
}

/// A library that anybody can have put into the working directory must not run.
#[test]
fn a_library_in_the_working_directory_is_not_loaded() {
    macrl_runtime::load().unwrap();
    let real = macrl_runtime::library_path().unwrap();
    let (dir, place) = (bundle(), tempfile::tempdir().unwrap());
    let working = place.path().join("a/b");
    std::fs::create_dir_all(&working).unwrap();
    for planted in [place.path(), &working].map(|folder| folder.join(".deps")) {
        std::fs::create_dir(&planted).unwrap();
        std::os::unix::fs::symlink(&real, planted.join("libonnxruntime.so")).unwrap();
    }
    let start = |more: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(["--listen", "127.0.0.1:0", "--device", "cpu", "--bundle"]).arg(dir.path()).args(more);
        let mut child = command.current_dir(&working).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines.next().unwrap().unwrap().strip_prefix("listening on ").unwrap().to_string();
        assert!(lines.next().unwrap().unwrap().starts_with("ready: tiny on "));
        let server = Process { child, url };
        let answer = server.ask(b"GET /info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let info: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").last().unwrap()).unwrap();
        std::path::PathBuf::from(info["libraries"]["onnxruntime"].as_str().unwrap())
    };
    let loaded = start(&[]);
    assert!(loaded.is_absolute() && !loaded.starts_with(place.path()), "{}", loaded.display());
    // Named, it is used.
    let named = working.join(".deps");
    assert_eq!(start(&["--onnx-runtime", named.to_str().unwrap()]), named.join("libonnxruntime.so"));
}

#[test]
fn a_bundle_that_was_changed_or_holds_a_pipe_ends_the_start() {
    let dir = bundle();
    let path = dir.path().to_str().unwrap();
    let weights = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let hash = macrl_bundle::owned::digest(&weights).unwrap().unwrap();
    let config = dir.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"weights_sha256\": \"tiny\"", &format!("\"weights_sha256\": \"{hash}\"")))
        .unwrap();
    *bytes.last_mut().unwrap() ^= 0x80; // a sign
    std::fs::write(&weights, &bytes).unwrap();
    let output = run(&["--bundle", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains("model.safetensors was changed after the export: expected SHA-256"));
    std::fs::remove_file(&config).unwrap();
    assert!(Command::new("mkfifo").arg(&config).status().unwrap().success());
    let output = run(&["--bundle", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains("config.json: expected a regular file"));
}

#[test]
fn an_unwritable_log_does_not_end_the_server() {
    let dir = bundle();
    let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else { return };
    let mut child = Command::new(BINARY)
        .args(["--listen", "127.0.0.1:0", "--log-level", "info", "--device", "cpu", "--bundle"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(full)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.next().unwrap().unwrap().strip_prefix("listening on ").unwrap().to_string();
    lines.next().unwrap().unwrap();
    let server = Process { child, url };
    for _ in 0..3 {
        assert!(server.ask(&request(&png(0))).starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn the_demo_uploads_searches_and_draws() {
    let (dir, work) = (bundle(), tempfile::tempdir().unwrap());
    for (folder, seeds) in [("gallery", 0..6u32), ("queries", 6..8)] {
        for seed in seeds {
            let label = work.path().join(folder).join(if seed % 2 == 0 { "even" } else { "odd" });
            std::fs::create_dir_all(&label).unwrap();
            std::fs::write(label.join(format!("{seed}.png")), png(seed)).unwrap();
        }
    }
    let server = Process::start(dir.path(), &[]);
    let at = |name: &str| work.path().join(name).to_str().unwrap().to_string();
    let demo =
        ["demo", "--url", &server.url, "--queries", &at("queries"), "--gallery", &at("gallery"), "--out", &at("n.png")];
    let output = run(&demo);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("neighbours of the query's class:"), "{text}");
    // Two rows of a query and five neighbours.
    assert_eq!(image::image_dimensions(at("n.png")).unwrap(), (6 * 110 + 6 + 14, 2 * 110 + 6));
    let mut wrong = demo;
    let nowhere = at("nothing");
    wrong[4] = &nowhere;
    assert_eq!(run(&wrong).status.code(), Some(1));
}
