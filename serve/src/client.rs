//! An HTTP client for a running server, for `demo` and `ingest`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use macrl_bundle::progress::Progress;
use macrl_bundle::regular;
use serde_json::{Value, json};
use ureq::http::{Response, StatusCode};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

use crate::image_folder::ImageFile;
use crate::index::JsonMap;

/// Images of one upload request.
const BATCH: usize = 32;

/// The result of an upload.
#[derive(Debug, Default)]
pub struct Uploaded {
    /// Number of items that replaced another one.
    pub replaced: usize,
    /// Id and cause of each item that was refused.
    pub failed: Vec<(String, String)>,
}

/// A client of one server.
pub struct Client {
    agent: Agent,
    url: String,
    key: Option<String>,
}

impl Client {
    /// `url` is like `http://127.0.0.1:8080`.
    pub fn new(url: &str, key: Option<String>) -> Self {
        let config = Agent::config_builder().timeout_global(Some(Duration::from_secs(120))).http_status_as_error(false);
        Self { agent: config.build().into(), url: url.trim_end_matches('/').into(), key }
    }

    /// Waits until the server answers `/ready` with 200.  With `starting`, it also waits while nothing listens on the port.
    ///
    /// # Errors
    /// The last answer or error, after `patience`.
    pub fn wait_until_ready(&self, patience: Duration, starting: bool) -> Result<()> {
        let since = Instant::now();
        loop {
            let last = match self.call(self.agent.get(self.at("/ready")), "/ready") {
                Ok((status, _)) if status.is_success() => return Ok(()),
                Ok((status, text)) => refused("/ready", status, &text),
                Err(e) if starting => e,
                Err(e) => return Err(e.context(format!("{} does not answer", self.url))),
            };
            if since.elapsed() > patience {
                return Err(last.context(format!("{} is not ready after {} s", self.url, patience.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// GET; the answer as JSON.
    ///
    /// # Errors
    /// No answer, or one that is not 2xx with JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.find(path)?.with_context(|| format!("{path} answered 404"))
    }

    /// GET; the answer as JSON, or `None` for 404.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.call(self.agent.get(self.at(path)), path)? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, text) => json_of(path, status, &text).map(Some),
        }
    }

    /// DELETE; returns whether there was something to delete.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn delete(&self, path: &str) -> Result<bool> {
        match self.call(self.agent.delete(self.at(path)), path)? {
            (StatusCode::NOT_FOUND, _) => Ok(false),
            (status, text) => json_of(path, status, &text).map(|_| true),
        }
    }

    /// POST; the answer as JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Result<Value> {
        let request = self.with_key(self.agent.post(self.at(path))).header("Content-Type", content_type);
        let (status, text) = read(request.send(body), path)?;
        json_of(path, status, &text)
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn with_key<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("Authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn call(&self, request: RequestBuilder<WithoutBody>, path: &str) -> Result<(StatusCode, String)> {
        read(self.with_key(request).call(), path)
    }

    /// Uploads images with their metadata, and shows a progress bar on a terminal.
    ///
    /// # Errors
    /// A request that failed as a whole.
    pub fn upload(&self, images: &[(ImageFile, JsonMap)]) -> Result<Uploaded> {
        let progress = Progress::new("uploading images", images.len());
        let mut all = Uploaded::default();
        for batch in images.chunks(BATCH) {
            self.upload_batch(batch, &mut all)?;
            progress.add(batch.len());
        }
        Ok(all)
    }

    fn upload_batch(&self, batch: &[(ImageFile, JsonMap)], all: &mut Uploaded) -> Result<()> {
        let items = batch.iter().map(|(image, metadata)| item(image, metadata)).collect::<Result<Vec<_>>>()?;
        let body = serde_json::to_vec(&json!({ "items": items }))?;
        let answer = self.post("/items", "application/json", &body)?;
        let results = answer["results"].as_array().filter(|r| r.len() == batch.len());
        let results =
            results.with_context(|| format!("expected {} results from /items, found {answer}", batch.len()))?;
        for ((image, _), result) in batch.iter().zip(results) {
            if result["error"].is_null() {
                all.replaced += usize::from(result["status"] == "updated");
            } else {
                let cause = result["error"]["message"].as_str().unwrap_or("unknown").to_string();
                all.failed.push((image.id.clone(), cause));
            }
        }
        Ok(())
    }
}

fn item(image: &ImageFile, metadata: &JsonMap) -> Result<Value> {
    let bytes = regular::read_up_to(&image.path, regular::MAX_IMAGE)
        .with_context(|| format!("cannot read {}", image.path.display()))?;
    Ok(json!({ "id": image.id, "image": STANDARD.encode(bytes), "metadata": metadata }))
}

fn read(answer: Result<Response<Body>, ureq::Error>, path: &str) -> Result<(StatusCode, String)> {
    let mut response = answer.map_err(|e| anyhow!("{path}: {e}"))?;
    let text = response.body_mut().read_to_string().with_context(|| format!("{path}: the answer broke off"))?;
    Ok((response.status(), text))
}

fn json_of(path: &str, status: StatusCode, text: &str) -> Result<Value> {
    if !status.is_success() {
        return Err(refused(path, status, text));
    }
    serde_json::from_str(text).with_context(|| format!("{path} did not answer with JSON"))
}

fn refused(path: &str, status: StatusCode, text: &str) -> anyhow::Error {
    anyhow!("{path} answered {status}: {}", text.chars().take(300).collect::<String>())
}
