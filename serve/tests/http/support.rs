//! A server with the tiny bundle, and helpers to send requests.

use std::io::Cursor;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use macrl_bundle::bundle::Bundle;
use macrl_bundle::device::Device;
use macrl_serve::engine::EngineOptions;
use macrl_serve::routes::app;
use macrl_serve::state::{App, AppState, Settings};
use serde_json::Value;
use tower::ServiceExt;

pub(crate) use crate::bundle::{DIM, TINY, write_bundle};

/// A server without a socket.
pub(crate) struct Server {
    /// The server's state, for tests that inspect it.
    pub(crate) state: AppState,
    /// Folder that holds the bundle; removed at the end of the test.
    pub(crate) dir: tempfile::TempDir,
    router: Router,
}

/// Settings with one worker.
pub(crate) fn settings() -> Settings {
    let engine =
        EngineOptions { workers: Some(1), max_batch: Some(4), device: Device::Cpu, ..EngineOptions::default() };
    Settings { engine, ..Settings::default() }
}

/// A server that is not started: it has no model yet.
pub(crate) fn unstarted(settings: Settings, probe: bool) -> Server {
    let dir = tempfile::tempdir().unwrap();
    write_bundle(dir.path(), "tiny", probe);
    let state = App::new(&Bundle::open(dir.path()).unwrap(), settings).unwrap();
    Server { router: app(state.clone()), state, dir }
}

/// A server with these settings.
pub(crate) fn server_with(settings: Settings) -> Server {
    let server = unstarted(settings, true);
    server.state.start(Bundle::open(server.dir.path()).unwrap()).unwrap();
    server
}

/// A server with the default settings.
pub(crate) fn server() -> Server {
    server_with(settings())
}

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The error's code, after checking its shape.
    pub(crate) fn code(&self) -> String {
        let json = self.json();
        assert!(json["error"]["message"].as_str().is_some_and(|m| !m.is_empty() && !m.contains('\n')), "{json}");
        json["error"]["code"].as_str().unwrap().to_string()
    }
}

impl Server {
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec();
        Answer { status, headers, body }
    }

    pub(crate) async fn call(&self, method: &str, path: &str, content_type: &str, body: impl Into<Body>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !content_type.is_empty() {
            request = request.header("Content-Type", content_type);
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, "", Body::empty()).await
    }

    pub(crate) async fn post_json(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, "application/json", body.to_string()).await
    }

    pub(crate) async fn post_image(&self, path: &str, bytes: Vec<u8>) -> Answer {
        self.call("POST", path, "image/png", bytes).await
    }
}

/// An 8 x 8 pattern that differs with `seed`.
pub(crate) fn pattern(seed: u32) -> RgbImage {
    RgbImage::from_fn(8, 8, |x, y| Rgb([0, 1, 2].map(|c| ((x * 16 + y * 3 + c * 40 + seed * 31) % 256) as u8)))
}

pub(crate) fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.into().write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

/// [`pattern`] as PNG.
pub(crate) fn png(seed: u32) -> Vec<u8> {
    encode(pattern(seed), ImageFormat::Png)
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A form's body: (field name, file name, content).
pub(crate) fn form(parts: &[(&str, Option<&str>, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, file, content) in parts {
        let file = file.map_or(String::new(), |f| format!("; filename=\"{f}\""));
        body.extend(format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").bytes());
        body.extend_from_slice(content);
        body.extend(b"\r\n");
    }
    body.extend(b"--XX--\r\n");
    ("multipart/form-data; boundary=XX".into(), body)
}

pub(crate) fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

pub(crate) fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5)
}
