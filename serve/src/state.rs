//! The state that all requests share: the model in use, the index, the limits and the metrics.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use macrl_bundle::bundle::Bundle;
use macrl_bundle::preprocess::JpegDecoding;

use crate::budget::{Budget, Reservation};
use crate::engine::{Engine, EngineOptions};
use crate::error::ApiError;
use crate::host_policy::HostPolicy;
use crate::index::{self, EncoderIdentity, Index, IndexError, Location, OpenOptions};
use crate::keys::{Keys, Role};
use crate::labels::{LabelStore, Labels};
use crate::limits::Limits;
use crate::memory::{MemoryParts, decoders};
use crate::metrics::{Gauges, Metrics};
use crate::origin::Origin;
use crate::pool::{LowPriorityPool, Pool};

/// Time to wait for a database that does not answer yet: it is often started together with the server.
const INDEX_PATIENCE: Duration = Duration::from_secs(30);

/// A bundle and the engine that runs it.
pub struct Model {
    /// The validated bundle.
    pub bundle: Bundle,
    /// The engine with its sessions.
    pub engine: Engine,
}

impl Model {
    /// The model's name in answers.
    pub fn name(&self) -> &str {
        let name = &self.bundle.config.macrl.name;
        if name.is_empty() { "macrl" } else { name }
    }

    /// Length of a vector, D.
    pub fn dim(&self) -> usize {
        self.bundle.config.hidden_size
    }

    /// The identity of its encoder.
    pub fn encoder(&self) -> EncoderIdentity {
        EncoderIdentity::of(&self.bundle)
    }
}

/// The server's configuration, apart from the bundle.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Limits of requests.
    pub limits: Limits,
    /// Options of the engine.
    pub engine: EngineOptions,
    /// Whether large JPEGs are decoded at their full size, whatever the bundle says.
    pub exact_decoding: bool,
    /// Where items are stored.
    pub index: Location,
    /// A key that allows everything.  Without any key, every request is accepted.
    pub api_key: Option<String>,
    /// Further keys, with their roles.
    pub keys: Keys,
    /// Host names under which a server without a key answers.
    pub hosts: HostPolicy,
    /// Web origins whose pages may call the server.
    pub cors_origins: Vec<Origin>,
}

/// The state of the server.
pub struct App {
    /// Limits and switches from the command line.
    pub settings: Settings,
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// The index that routes read and write.
    pub index: Arc<dyn Index>,
    /// Decodes images and parses bodies.
    pub pool: Pool,
    /// Decodes large images at low priority.
    pub large_image_pool: LowPriorityPool,
    /// Budget of images that are admitted at once.
    pub admitted: Arc<Budget>,
    /// Budget of those of them that the low-priority pool decodes.
    pub large_images: Arc<Budget>,
    /// Budget of the bytes of all bodies in memory.
    pub buffered: Arc<Budget>,
    /// Budget of the bytes of all large responses that are being sent.
    pub responses: Arc<Budget>,
    /// Labels that people give to items; `None` if the index keeps none.
    pub labels: Option<Labels>,
    /// Held while a map is drawn.
    pub map_turn: tokio::sync::Mutex<()>,
    /// When the server was started.
    pub started: Instant,
    bundle_dir: PathBuf,
    model: RwLock<Option<Arc<Model>>>,
    stopping: AtomicBool,
    keys: Keys,
    reloading: tokio::sync::Mutex<()>,
}

/// A shared handle of the state.
pub type AppState = Arc<App>;

impl App {
    /// The state without a model: routes that need one answer 503 until [`App::start`] is done.
    ///
    /// # Errors
    /// An index that cannot be opened, or that holds vectors of another encoder.
    pub fn new(bundle: &Bundle, settings: Settings) -> Result<AppState, IndexError> {
        let limits = &settings.limits;
        let (decoders, slow_decoders) = decoders(limits);
        let (max_bytes, exact_up_to) = (limits.index_bytes, limits.exact_up_to);
        let options = OpenOptions { max_bytes, exact_up_to, patience: INDEX_PATIENCE };
        let mut keys = settings.keys.clone();
        settings.api_key.iter().for_each(|key| keys.insert(Role::Admin, key));
        Ok(Arc::new(Self {
            metrics: Arc::default(),
            index: index::open(&settings.index, &EncoderIdentity::of(bundle), &options)?,
            // After the index, which makes sure that no other process has the folder open.
            labels: LabelStore::open(&settings.index)?.map(Labels::new),
            pool: Pool::new(decoders),
            large_image_pool: LowPriorityPool::new(slow_decoders),
            admitted: Budget::new(limits.queue),
            // Half of the queue, but never less than one request may have.
            large_images: Budget::new((limits.queue / 2).max(limits.images)),
            buffered: Budget::new(limits.buffered_bytes),
            responses: Budget::new(limits.response_bytes),
            map_turn: tokio::sync::Mutex::new(()),
            started: Instant::now(),
            bundle_dir: bundle.dir.clone(),
            model: RwLock::new(None),
            stopping: AtomicBool::new(false),
            keys,
            reloading: tokio::sync::Mutex::new(()),
            settings,
        }))
    }

    /// Starts the engine, which blocks for seconds, and sets the model.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn start(&self, bundle: Bundle) -> anyhow::Result<()> {
        self.set_model(Some(Arc::new(self.load(bundle)?)));
        Ok(())
    }

    fn load(&self, mut bundle: Bundle) -> anyhow::Result<Model> {
        if self.settings.exact_decoding {
            bundle.preprocess.jpeg_decoding = JpegDecoding::Exact;
        }
        let engine = Engine::start(&bundle, &self.settings.engine, &self.metrics)?;
        Ok(Model { bundle, engine })
    }

    /// The model in use.
    ///
    /// # Errors
    /// [`ApiError::Starting`] before it is loaded, [`ApiError::Stopping`] after it was unloaded.
    pub fn model(&self) -> Result<Arc<Model>, ApiError> {
        let model = self.model.read().unwrap_or_else(|e| e.into_inner()).clone();
        model.ok_or(if self.is_stopping() { ApiError::Stopping } else { ApiError::Starting })
    }

    fn set_model(&self, model: Option<Arc<Model>>) -> Option<Arc<Model>> {
        let mut slot = self.model.write().unwrap_or_else(|e| e.into_inner());
        std::mem::replace(&mut *slot, model)
    }

    /// Reads the bundle's folder again and replaces the model.  Requests that have begun finish with the old one.
    ///
    /// # Errors
    /// If the new bundle is broken, or the index holds vectors of another encoder, the old model stays in use.
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
        // The index switches first: it takes only vectors of the old encoder before this, and only those of the new one after.
        self.index.adopt(&model.encoder()).await?;
        self.set_model(Some(Arc::new(model)));
        Ok(())
    }

    /// Admits `images` images, or none.
    ///
    /// # Errors
    /// [`ApiError::TooManyImages`] or [`ApiError::QueueFull`].
    pub fn admit(&self, images: usize) -> Result<Reservation, ApiError> {
        let limit = self.settings.limits.images;
        if images > limit {
            return Err(ApiError::TooManyImages { limit, found: images });
        }
        self.admitted.reserve(images).ok_or_else(|| self.queue_full())
    }

    /// As [`App::admit`], but waits while the queue is full: for the later steps of a request that was admitted.
    ///
    /// # Errors
    /// [`ApiError::Timeout`] if the queue stays full for the time of a request.
    pub async fn admit_later(&self, images: usize) -> Result<Reservation, ApiError> {
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

    /// The most bytes that clients can make the server take.
    pub fn memory_parts(&self) -> MemoryParts {
        MemoryParts::of(&self.settings.limits, !matches!(self.settings.index, Location::Postgres(_)))
    }

    /// The error for a full queue; it estimates from the throughput so far when the queue will be empty.
    pub fn queue_full(&self) -> ApiError {
        let images = self.metrics.images.load(Ordering::Relaxed).max(1) as f64;
        let pace = images / self.started.elapsed().as_secs_f64().max(1.0);
        let seconds = (self.admitted.used() as f64 / pace.max(1.0)).ceil();
        ApiError::QueueFull { retry_after: (seconds as u64).clamp(1, 30) }
    }

    /// Makes `/ready` answer 503 from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Drops the model; its workers end.
    pub fn unload(&self) {
        drop(self.set_model(None));
    }

    /// Whether [`App::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Whether requests need a key.
    pub fn asks_for_key(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The roles that have keys.
    pub fn roles(&self) -> Vec<String> {
        self.keys.roles()
    }

    /// Checks that the bearer of the given key may do what needs the role `needed`.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`] without an accepted key; [`ApiError::Forbidden`] with one of a lesser role.
    pub fn authorize(&self, given: Option<&[u8]>, needed: Role) -> Result<(), ApiError> {
        if !self.asks_for_key() {
            return Ok(());
        }
        match given.filter(|key| !key.is_empty()).and_then(|key| self.keys.role(key)) {
            None => Err(ApiError::Unauthorized),
            Some(role) if role < needed => Err(ApiError::Forbidden { needed, role }),
            Some(_) => Ok(()),
        }
    }

    /// What an operator should know about who can use the server.
    pub fn access_warnings(&self) -> Vec<String> {
        let open = !self.asks_for_key() && self.settings.hosts.beyond_loopback();
        let any = self.settings.cors_origins.contains(&Origin::Any) && !self.asks_for_key();
        let open = open.then_some(
            "other machines can reach the server and no key is asked for: set MACRL_API_KEY, unless something before the \
             server checks who asks",
        );
        let any = any.then_some("--cors-origin * without a key: every web page that a user visits can read and write");
        open.into_iter().chain(any).map(str::to_string).collect()
    }

    /// The current values that `/metrics` shows beside the counters.
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
            responses: self.responses.used(),
            responses_limit: limits.response_bytes,
            items,
            connections_limit: limits.connections,
            ready: model.is_some() && !self.is_stopping(),
            model: model.as_ref().map(|m| (m.name().to_string(), m.bundle.config.macrl.weights_sha256.clone())),
            device: model.and_then(|m| m.engine.devices().first().copied()).unwrap_or_default(),
        }
    }
}
