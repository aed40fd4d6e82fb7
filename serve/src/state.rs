//! What all requests share: the model in use, the index, the limits and the counters.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use macrl_bundle::bundle::Bundle;
use sha2::{Digest, Sha256};

use crate::engine::{Engine, EngineOptions};
use crate::error::ApiError;
use crate::index::{self, Encoder, Index, IndexError, Location, OpenOptions};
use crate::limits::Limits;
use crate::metrics::{Gauges, Metrics};
use crate::origin::Origin;
use crate::pool::{Budget, Pool, Share, SlowLane};

/// Servers and their data base are often started together: one that is not there yet is waited for.
const INDEX_PATIENCE: Duration = Duration::from_secs(30);

/// A bundle and the sessions that run it.
pub struct Model {
    /// The validated folder.
    pub bundle: Bundle,
    /// Its workers.
    pub engine: Engine,
}

impl Model {
    /// Name that answers carry.
    pub fn name(&self) -> &str {
        let name = &self.bundle.config.macrl.name;
        if name.is_empty() { "macrl" } else { name }
    }

    /// D.
    pub fn dim(&self) -> usize {
        self.bundle.config.hidden_size
    }

    /// Whose vectors it makes.
    pub fn encoder(&self) -> Encoder {
        Encoder::of(&self.bundle)
    }
}

/// How the server is set up, besides the model.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Bounds.
    pub limits: Limits,
    /// Inference.
    pub engine: EngineOptions,
    /// Where items are kept.
    pub index: Location,
    /// Where asked for, every request that reads or changes anything must name it.
    pub api_key: Option<String>,
    /// Web origins whose pages may call this server.
    pub cors_origins: Vec<Origin>,
}

/// Shared by every request.
pub struct App {
    /// As given.
    pub settings: Settings,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The items.
    pub index: Arc<dyn Index>,
    /// Decoding.
    pub pool: Pool,
    /// Decoding of large images.
    pub slow_lane: SlowLane,
    /// Images admitted.
    pub admitted: Arc<Budget>,
    /// Bytes of bodies being received.
    pub buffered: Arc<Budget>,
    /// When the process began to serve.
    pub started: Instant,
    bundle_dir: PathBuf,
    model: RwLock<Option<Arc<Model>>>,
    stopping: AtomicBool,
    key_hash: Option<[u8; 32]>,
    reloading: tokio::sync::Mutex<()>,
}

/// Cheap to clone.
pub type AppState = Arc<App>;

impl App {
    /// A server that holds no model yet: every route that needs one answers 503 until [`App::start`] is done.
    ///
    /// # Errors
    /// An index that cannot be opened, or holds vectors of another encoder.
    pub fn new(bundle: &Bundle, settings: Settings) -> Result<AppState, IndexError> {
        let (decoders, slow_decoders) = decoders();
        let limits = &settings.limits;
        let (max_bytes, exact_up_to) = (limits.index_bytes, limits.exact_up_to);
        let options = OpenOptions { max_bytes, exact_up_to, patience: INDEX_PATIENCE };
        Ok(Arc::new(Self {
            metrics: Arc::default(),
            index: index::open(&settings.index, &Encoder::of(bundle), &options)?,
            pool: Pool::new(decoders),
            slow_lane: SlowLane::new(slow_decoders),
            admitted: Budget::new(limits.queue),
            buffered: Budget::new(limits.buffered_bytes),
            started: Instant::now(),
            bundle_dir: bundle.dir.clone(),
            model: RwLock::new(None),
            stopping: AtomicBool::new(false),
            key_hash: settings.api_key.as_ref().map(|key| hash(key.as_bytes())),
            reloading: tokio::sync::Mutex::new(()),
            settings,
        }))
    }

    /// Opens the sessions (seconds; blocking) and begins to answer.
    ///
    /// # Errors
    /// What keeps the bundle from being served.
    pub fn start(&self, bundle: Bundle) -> anyhow::Result<()> {
        self.set_model(Some(Arc::new(self.load(bundle)?)));
        Ok(())
    }

    fn load(&self, bundle: Bundle) -> anyhow::Result<Model> {
        let engine = Engine::start(&bundle, &self.settings.engine, &self.metrics)?;
        Ok(Model { bundle, engine })
    }

    /// The model in use.
    ///
    /// # Errors
    /// [`ApiError::Starting`] before there is one, [`ApiError::Stopping`] after SIGTERM's grace.
    pub fn model(&self) -> Result<Arc<Model>, ApiError> {
        let model = self.model.read().unwrap_or_else(|e| e.into_inner()).clone();
        model.ok_or(if self.is_stopping() { ApiError::Stopping } else { ApiError::Starting })
    }

    fn set_model(&self, model: Option<Arc<Model>>) -> Option<Arc<Model>> {
        let mut slot = self.model.write().unwrap_or_else(|e| e.into_inner());
        std::mem::replace(&mut *slot, model)
    }

    /// Reads the bundle's folder again and swaps the new model in; requests under way finish with the old one.
    ///
    /// # Errors
    /// Why the old model stays: the new bundle is broken, or the index holds vectors of other weights.
    pub async fn reload(self: &Arc<Self>) -> anyhow::Result<()> {
        let _one_at_a_time = self.reloading.lock().await;
        let result = self.swap().await;
        let counter = if result.is_ok() { &self.metrics.reloads } else { &self.metrics.failed_reloads };
        counter.fetch_add(1, Ordering::Relaxed);
        match &result {
            Ok(()) => tracing::info!("bundle reloaded"),
            Err(e) => tracing::error!("bundle not reloaded, the old one keeps serving: {e:#}"),
        }
        result
    }

    async fn swap(self: &Arc<Self>) -> anyhow::Result<()> {
        self.model().map_err(anyhow::Error::from)?;
        let app = self.clone();
        let load = move || app.load(Bundle::open(&app.bundle_dir)?);
        let model = tokio::task::spawn_blocking(load).await.context("the loader failed")??;
        // The index decides: from here on it takes no vector of the old encoder, and none of the new one before.
        self.index.adopt(&model.encoder()).await?;
        self.set_model(Some(Arc::new(model)));
        Ok(())
    }

    /// Takes room for `images` images in the queue, at once.
    ///
    /// # Errors
    /// [`ApiError::TooManyImages`] or [`ApiError::QueueFull`].
    pub fn admit(&self, images: usize) -> Result<Share, ApiError> {
        let limit = self.settings.limits.images;
        if images > limit {
            return Err(ApiError::TooManyImages { limit, found: images });
        }
        self.admitted.take(images).ok_or_else(|| self.queue_full())
    }

    /// Waits for room where [`App::admit`] finds none: for a request that has been admitted before and goes on.
    ///
    /// # Errors
    /// [`ApiError::Timeout`] where there is none within the request's time.
    pub async fn admit_later(&self, images: usize) -> Result<Share, ApiError> {
        let limit = self.settings.limits.request_timeout;
        let until = Instant::now() + limit;
        loop {
            match self.admit(images) {
                Err(ApiError::QueueFull { .. }) if Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(ApiError::QueueFull { .. }) => return Err(ApiError::Timeout(limit.as_secs())),
                outcome => return outcome,
            }
        }
    }

    /// Bytes that all requests together may take at their worst: what decoders may allocate, one image each, and bodies.
    pub fn worst_case_bytes(&self) -> u64 {
        let limits = &self.settings.limits;
        let (decoders, slow_decoders) = decoders();
        (decoders + slow_decoders) as u64 * limits.decode.max_alloc + limits.buffered_bytes as u64
    }

    /// When the queue should have emptied, by the pace so far.
    pub fn queue_full(&self) -> ApiError {
        let images = self.metrics.images.load(Ordering::Relaxed).max(1) as f64;
        let pace = images / self.started.elapsed().as_secs_f64().max(1.0);
        let seconds = (self.admitted.used() as f64 / pace.max(1.0)).ceil();
        ApiError::QueueFull { retry_after: (seconds as u64).clamp(1, 30) }
    }

    /// No new work: `/ready` says so from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Lets the workers end.
    pub fn unload(&self) {
        drop(self.set_model(None));
    }

    /// Whether [`App::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Whether a request that names this key may pass.  Hashes are compared: their first different byte tells nothing
    /// about the key's.
    pub fn key_fits(&self, given: Option<&[u8]>) -> bool {
        match (&self.key_hash, given) {
            (None, _) => true,
            (Some(expected), Some(given)) => {
                hash(given).iter().zip(expected).fold(0, |different, (a, b)| different | (a ^ b)) == 0
            }
            (Some(_), None) => false,
        }
    }

    /// What `/metrics` shows beside the counters.
    pub async fn gauges(&self) -> Gauges {
        let model = self.model().ok();
        let items = self.index.status().await.ok().map(|status| status.items);
        let limits = &self.settings.limits;
        Gauges {
            in_flight: self.admitted.used(),
            in_flight_limit: limits.queue,
            queued: model.as_ref().map_or(0, |m| m.engine.queued()),
            buffered: self.buffered.used(),
            buffered_limit: limits.buffered_bytes,
            items,
            connections_limit: limits.connections,
            ready: model.is_some() && !self.is_stopping(),
            model: model.as_ref().map(|m| (m.name().to_string(), m.bundle.config.macrl.weights_sha256.clone())),
            device: model.and_then(|m| m.engine.devices().first().copied()).unwrap_or_default(),
        }
    }
}

/// Images that are decoded at once: ordinary ones, and large ones beside them.
fn decoders() -> (usize, usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores, (cores / 2).max(1))
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}
