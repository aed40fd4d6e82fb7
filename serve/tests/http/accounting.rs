//! What requests are charged for, and for how long; the time of a request; the places of probes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use macrl_serve::limits::Limits;
use macrl_serve::pool::WorkError;
use macrl_serve::state::Settings;
use serde_json::json;

use crate::process::{Process, bundle, request};
use crate::support::*;

/// Work that waits until it is released.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn wait(&self) {
        let open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(open, |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// Occupies the threads for large images until the gate is opened.
fn block_large_images(server: &Server) -> Gate {
    let gate = Gate::default();
    for _ in 0..256 {
        let (state, gate) = (server.state.clone(), gate.clone());
        tokio::spawn(async move {
            let work = move || {
                gate.wait();
                Ok::<_, WorkError>(())
            };
            let _ = state.large_image_pool.run(work).await;
        });
    }
    gate
}

/// An image of 8 x 8 pixels in a file of 70 kB: it is decoded on the threads for large images.
fn dense() -> Vec<u8> {
    let mut bytes = png(0);
    bytes.resize(70_000, 0);
    bytes
}

async fn until(mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(60), "it did not happen");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_body_counts_until_its_image_is_decoded() {
    let server = Arc::new(server());
    let (kind, form) = form(&[("image", Some("a.png"), &dense())]);
    let json = json!({ "images": [base64(&dense())] }).to_string();
    let item = json!({ "image": base64(&dense()) }).to_string();
    for (method, path, kind, body) in [
        ("POST", "/embed", "image/png", dense()),
        ("POST", "/embed", kind.as_str(), form),
        ("POST", "/embed", "application/json", json.clone().into_bytes()),
        ("POST", "/search", "application/json", item.clone().into_bytes()),
        ("PUT", "/items/a", "application/json", item.into_bytes()),
        ("POST", "/v1/embeddings", "application/json", json!({ "input": base64(&dense()) }).to_string().into_bytes()),
    ] {
        let (gate, length) = (block_large_images(&server), body.len());
        let asked = Request::builder().method(method).uri(path).header("content-type", kind);
        let (sender, asked) = (server.clone(), asked.body(Body::from(body)).unwrap());
        let answer = tokio::spawn(async move { sender.send(asked).await });
        until(|| server.state.large_images.used() == 1).await;
        assert_eq!(server.state.buffered.used(), length, "{path} {kind}");
        gate.open();
        assert!(answer.await.unwrap().status.is_success(), "{path} {kind}");
        until(|| server.state.buffered.used() == 0).await;
    }
}

#[tokio::test]
async fn slow_images_take_a_part_of_the_queue() {
    let limits = Limits { queue: 4, images: 2, ..Limits::default() };
    let server = Arc::new(server_with(Settings { limits, ..settings() }));
    let gate = block_large_images(&server);
    let sent: Vec<_> = (0..2)
        .map(|_| {
            let server = server.clone();
            tokio::spawn(async move { server.post_image("/embed", dense()).await.status.as_u16() })
        })
        .collect();
    until(|| server.state.large_images.used() == 2).await;
    assert_eq!(server.post_image("/embed", dense()).await.code(), "queue_full");
    assert_eq!(server.post_image("/embed", png(1)).await.status, 200, "small images have room");
    gate.open();
    for answer in sent {
        assert_eq!(answer.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn every_route_answers_within_the_time_of_a_request() {
    let limits = Limits { request_timeout: Duration::from_millis(30), ..Limits::default() };
    let server = Arc::new(server_with(Settings { limits, ..settings() }));
    // All threads that parse bodies and draw maps are busy.
    let gate = Gate::default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for _ in 0..cores {
        let (state, gate) = (server.state.clone(), gate.clone());
        let work = move || {
            gate.wait();
            Ok::<_, WorkError>(())
        };
        tokio::spawn(async move { state.pool.run(work).await });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let long = json!({ "id": "a", "filter": { "x": "y".repeat(5000) } });
    let (map, search) = (server.get("/map").await, server.post_json("/search", long).await);
    gate.open();
    assert_eq!((map.code(), search.code()), ("timeout".into(), "timeout".into()));
    assert_eq!((map.status.as_u16(), search.status.as_u16()), (503, 503));
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn metadata_has_a_bounded_number_of_fields() {
    let server = server();
    let put = async |fields: usize| {
        let metadata: serde_json::Map<String, serde_json::Value> =
            (0..fields).map(|i| (format!("f{i}"), json!(1))).collect();
        let body = json!({ "vector": vec![1.0; DIM], "metadata": metadata });
        server.call("PUT", "/items/a", "application/json", body.to_string()).await
    };
    assert_eq!(put(256).await.status, 201);
    let refused = put(257).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (400, "malformed"));
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("at most 256 fields, found 257"));
}

/// Two busy clients take all places: a probe is answered meanwhile, and a third client waits for its turn.
#[test]
fn probes_are_answered_while_busy_clients_take_all_places() {
    let dir = bundle();
    // A batch waits for a second, so two requests are under way for a second.
    let server = Process::start(dir.path(), &["--max-connections", "2", "--batch-wait", "1000", "--max-batch", "64"]);
    let image = request(&png(0));
    // The machine may be busy, too: then the images are done before the probe is sent, and it is tried again.
    let answered_meanwhile = || {
        let mut busy: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        busy.iter_mut().for_each(|client| client.write_all(&image).unwrap());
        std::thread::sleep(Duration::from_millis(100));
        let mut other = TcpStream::connect(server.address()).unwrap();
        other.write_all(&image).unwrap();
        let probe = server.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(probe.starts_with("HTTP/1.1 200"), "{probe}");
        let meanwhile = busy.iter().all(|client| {
            client.set_nonblocking(true).unwrap();
            let waits = client.peek(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
            client.set_nonblocking(false).unwrap();
            waits
        });
        for client in busy.iter_mut().chain([&mut other]) {
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        // A probe beyond the places has its connection closed, one with a place keeps it.
        meanwhile && probe.to_ascii_lowercase().contains("connection: close")
    };
    assert!((0..20).any(|_| answered_meanwhile()), "no probe was answered meanwhile");
}

#[test]
fn a_budget_of_memory_is_divided_and_shown() {
    let dir = bundle();
    let info = |more: &[&str]| {
        let server = Process::start(dir.path(), more);
        let answer = server.ask(b"GET /info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        serde_json::from_str::<serde_json::Value>(answer.split("\r\n\r\n").last().unwrap()).unwrap()
    };
    let budget = info(&["--memory", "1GiB"]);
    let bytes = |part: &str| budget["memory"][part].as_u64().unwrap();
    assert_eq!(bytes("budget"), 1 << 30);
    let parts = ["decoders", "bodies", "responses", "connections", "index"].map(bytes);
    assert!(parts.iter().sum::<u64>() == bytes("sum") && bytes("sum") <= 1 << 30, "{budget}");
    assert_eq!(budget["limits"]["index_bytes"].as_u64(), Some((1 << 30) / 5));
    assert_eq!(budget["limits"]["body_bytes"].as_u64(), Some(32 << 20), "as without a budget");
    assert!(info(&[])["memory"]["budget"].is_null());
    let path = dir.path().to_str().unwrap();
    for wrong in [&["--memory", "1MiB"][..], &["--memory", "much"], &["--memory", "1GiB", "--max-index", "1073741824"]]
    {
        let output =
            std::process::Command::new(crate::process::BINARY).args(["--bundle", path]).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1, "{wrong:?}");
    }
}
