//! The other end of the wire: what `demo` and `ingest` ask a running server.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use macrl_models::progress::Progress;
use serde_json::{Value, json};
use ureq::Agent;

/// Images of one upload request.
const BATCH: usize = 32;

/// One file of an image folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Path below the folder, with `/`.
    pub id: String,
    /// First sub-folder, where there is one.
    pub label: Option<String>,
    /// Where it lies.
    pub path: PathBuf,
}

impl Picture {
    /// What its item knows about it: `{"label", "file"}`.
    pub fn metadata(&self) -> Value {
        let file = self.path.file_name().unwrap_or_default().to_string_lossy();
        match &self.label {
            Some(label) => json!({ "label": label, "file": file }),
            None => json!({ "file": file }),
        }
    }
}

/// The image files below `folder`, sorted by path.
///
/// # Errors
/// A folder that is missing or holds no image.
pub fn pictures(folder: &Path) -> Result<Vec<Picture>> {
    let mut found = Vec::new();
    walk(folder, folder, &mut found)?;
    if found.is_empty() {
        bail!("{} holds no image files (jpg, png, webp, gif, bmp, tif, ppm, pgm)", folder.display());
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

fn walk(root: &Path, dir: &Path, found: &mut Vec<Picture>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read the folder {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            walk(root, &path, found)?;
        } else if is_image(&path) {
            let parts: Vec<String> =
                path.strip_prefix(root)?.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
            let label = (parts.len() > 1).then(|| parts[0].clone());
            found.push(Picture { id: parts.join("/"), label, path });
        }
    }
    Ok(())
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    matches!(
        extension.as_str(),
        "jpg" | "jpeg" | "png" | "webp" | "gif" | "bmp" | "tif" | "tiff" | "ppm" | "pgm" | "pnm" | "apng"
    )
}

/// A connection to one server.
pub struct Client {
    agent: Agent,
    url: String,
    key: Option<String>,
}

impl Client {
    /// `url` is like `http://127.0.0.1:8080`; a key is taken from the environment variable MACRL_API_KEY.
    pub fn new(url: &str) -> Self {
        let config = Agent::config_builder().timeout_global(Some(Duration::from_secs(120))).http_status_as_error(false);
        let key = std::env::var("MACRL_API_KEY").ok().filter(|k| !k.is_empty());
        Self { agent: config.build().into(), url: url.trim_end_matches('/').into(), key }
    }

    /// Waits until the server answers `/ready` with 200.
    ///
    /// # Errors
    /// What it last said, when `patience` is over.
    pub fn wait_until_ready(&self, patience: Duration) -> Result<()> {
        let since = Instant::now();
        loop {
            let last = match self.get("/ready") {
                Ok(_) => return Ok(()),
                Err(e) => e,
            };
            if since.elapsed() > patience {
                return Err(last.context(format!("{} is not ready after {} s", self.url, patience.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// GET, as JSON.
    ///
    /// # Errors
    /// No answer, or one that is not 2xx with JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        read(request.call(), path)
    }

    /// POST of a body, answered as JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Result<Value> {
        let mut request = self.agent.post(format!("{}{path}", self.url)).header("Content-Type", content_type);
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        read(request.send(body), path)
    }

    /// Uploads pictures as items `{"label", "file"}`, with a progress bar on a terminal; what failed, by id.
    ///
    /// # Errors
    /// A request that failed as a whole.
    pub fn upload(&self, pictures: &[Picture]) -> Result<Vec<(String, String)>> {
        let progress = Progress::new("uploading images", pictures.len());
        let mut failed = Vec::new();
        for batch in pictures.chunks(BATCH) {
            failed.extend(self.upload_batch(batch)?);
            progress.add(batch.len());
        }
        Ok(failed)
    }

    fn upload_batch(&self, batch: &[Picture]) -> Result<Vec<(String, String)>> {
        let items = batch.iter().map(item).collect::<Result<Vec<_>>>()?;
        let body = serde_json::to_vec(&json!({ "items": items }))?;
        let answer = self.post("/items", "application/json", &body)?;
        let results = answer["results"].as_array().filter(|r| r.len() == batch.len());
        let results =
            results.with_context(|| format!("expected {} results from /items, found {answer}", batch.len()))?;
        let failures = batch.iter().zip(results).filter(|(_, r)| !r["error"].is_null());
        Ok(failures
            .map(|(p, r)| (p.id.clone(), r["error"]["message"].as_str().unwrap_or("unknown").to_string()))
            .collect())
    }
}

fn item(picture: &Picture) -> Result<Value> {
    let bytes = std::fs::read(&picture.path).with_context(|| format!("cannot read {}", picture.path.display()))?;
    Ok(json!({ "id": picture.id, "image": STANDARD.encode(bytes), "metadata": picture.metadata() }))
}

fn read(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>, path: &str) -> Result<Value> {
    let mut response = answer.map_err(|e| anyhow!("{path}: {e}"))?;
    let status = response.status();
    let text = response.body_mut().read_to_string().with_context(|| format!("{path}: the answer broke off"))?;
    if !status.is_success() {
        bail!("{path} answered {status}: {}", text.chars().take(300).collect::<String>());
    }
    serde_json::from_str(&text).with_context(|| format!("{path} did not answer with JSON"))
}
