//! Inference: worker threads that turn waiting images into batches.
//!
//! Nothing here runs on an async thread.  A request leaves its pixels in the queue and awaits a channel; a worker takes
//! what is waiting, at most `max_batch`, as soon as it is free (greedy), or waits up to `batch_wait` for more.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use macrl_models::bundle::Bundle;
use macrl_models::preprocess::Preprocess;
use macrl_models::runtime::{self, Device, RuntimeError, SessionOptions};
use ort::session::builder::PrepackedWeights;
use tokio::sync::oneshot;

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::runner::Runner;

/// How inference is spread over the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    /// Where it runs.
    pub device: Device,
    /// Sessions, each on its own thread.
    pub workers: usize,
    /// Threads within an operator of one session.
    pub threads: usize,
    /// Whether those threads spin while they wait.
    pub spin: bool,
    /// Largest batch; `None`: 8 on a CPU, 64 on a GPU.
    pub max_batch: Option<usize>,
    /// How long an incomplete batch waits for more images.
    pub batch_wait: Duration,
}

impl Default for EngineOptions {
    /// One single-threaded session per core: a batch of small images does not gain from threads within an operator.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            device: Device::Auto,
            workers: cores,
            threads: 1,
            spin: false,
            max_batch: None,
            batch_wait: Duration::ZERO,
        }
    }
}

/// The largest batch that pays: on a CPU a thread's batch of 8 leaves its cache, and 32 cost 3 to 17 % an image more; a
/// GPU wants more of them.
fn usual_batch(device: &str) -> usize {
    if device == "cpu" { 8 } else { 64 }
}

/// Why a bundle cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// ONNX Runtime or the model file.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The graph loads and does not do what the bundle says.
    #[error("{path} does not fit config.json: {cause}")]
    Graph {
        /// The model file.
        path: String,
        /// What was expected and found.
        cause: String,
    },
    /// The system gave no thread.
    #[error("cannot start an inference thread: {0}")]
    Thread(std::io::Error),
}

/// One image's way through a batch.
struct Job {
    /// (S, S, 3) u8.
    pixels: Vec<u8>,
    reply: oneshot::Sender<Result<Vec<f32>, ApiError>>,
    since: Instant,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The workers and their queue.  Dropping it lets the workers finish what is queued and end.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    devices: Vec<&'static str>,
    fallback: Option<String>,
    max_batch: usize,
}

impl Engine {
    /// Opens the sessions, checks the graph against the bundle, warms every batch size, and starts the workers.
    ///
    /// # Errors
    /// Every [`EngineError`].
    pub fn start(bundle: &Bundle, options: &EngineOptions, metrics: &Arc<Metrics>) -> Result<Self, EngineError> {
        // First of all: whatever else touches `ort` would look for the library by its bare name, and panic.
        runtime::load()?;
        let prepacked = PrepackedWeights::new();
        let mut workers = Vec::new();
        for _ in 0..options.workers.max(1) {
            let session = SessionOptions {
                device: options.device,
                threads: options.threads,
                spin: options.spin,
                // The CPU provider's.  ONNX Runtime shares what it repacks of initializers that a session was handed; those
                // in a model file, like a bundle's, every session repacks for itself.
                prepacked: (options.device == Device::Cpu).then_some(&prepacked),
            };
            workers.push(Worker::new(&session, bundle, options, metrics)?);
        }
        let devices = workers.iter().map(|w| w.runner.device).collect();
        let fallback = workers.iter().rev().find_map(|w| w.runner.fallback.clone());
        let max_batch = workers.iter().map(|w| w.max_batch).max().unwrap_or(1);
        let shared = Arc::new(Shared::default());
        let mut engine = Self { shared: shared.clone(), threads: Vec::new(), devices, fallback, max_batch };
        for (number, worker) in workers.into_iter().enumerate() {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("inference-{number}"));
            engine.threads.push(thread.spawn(move || worker.run(&shared)).map_err(EngineError::Thread)?);
        }
        Ok(engine)
    }

    /// The raw pooled feature (D) of one image.  Dropping the future abandons the image.
    ///
    /// # Shapes
    /// `pixels` (S, S, 3) u8, as [`Preprocess::fit`] gives.
    ///
    /// # Errors
    /// [`ApiError::Internal`] where ONNX Runtime fails, [`ApiError::Stopping`] where the workers have ended.
    pub async fn embed(&self, pixels: Vec<u8>) -> Result<Vec<f32>, ApiError> {
        self.submit(pixels)?.await.unwrap_or(Err(ApiError::Stopping))
    }

    /// [`Engine::embed`], to be awaited elsewhere.
    ///
    /// # Errors
    /// [`ApiError::Stopping`] where the workers have ended.
    pub fn submit(&self, pixels: Vec<u8>) -> Result<oneshot::Receiver<Result<Vec<f32>, ApiError>>, ApiError> {
        let (reply, answer) = oneshot::channel();
        {
            let mut queue = self.shared.lock();
            if queue.closed {
                return Err(ApiError::Stopping);
            }
            queue.jobs.push_back(Job { pixels, reply, since: Instant::now() });
        }
        self.shared.arrived.notify_one();
        Ok(answer)
    }

    /// Images waiting for a batch.
    pub fn queued(&self) -> usize {
        self.shared.lock().jobs.len()
    }

    /// Where each session really runs.
    pub fn devices(&self) -> &[&'static str] {
        &self.devices
    }

    /// Largest batch of a session.
    pub fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// What of a GPU is not in use and why: CUDA where the library offers it, or page-locked memory.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Worker {
    runner: Runner,
    preprocess: Preprocess,
    max_batch: usize,
    batch_wait: Duration,
    metrics: Arc<Metrics>,
}

impl Worker {
    fn new(
        session: &SessionOptions,
        bundle: &Bundle,
        options: &EngineOptions,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, EngineError> {
        let fault = |cause: String| EngineError::Graph { path: bundle.onnx.display().to_string(), cause };
        let mut runner = Runner::open(bundle, session)?.map_err(fault)?;
        let max_batch = options.max_batch.unwrap_or_else(|| usual_batch(runner.device)).max(1);
        runner.warm(&buckets(max_batch)).map_err(fault)?;
        let preprocess = bundle.preprocess.clone();
        Ok(Self { runner, preprocess, max_batch, batch_wait: options.batch_wait, metrics: metrics.clone() })
    }

    fn run(mut self, shared: &Shared) {
        while let Some(jobs) = self.next_batch(shared) {
            self.answer(jobs);
        }
    }

    /// Blocks until there is work; `None` when the queue is closed and empty.
    fn next_batch(&self, shared: &Shared) -> Option<Vec<Job>> {
        let mut queue = shared.lock();
        loop {
            self.drop_abandoned(&mut queue);
            if let Some(first) = queue.jobs.front() {
                let rest = self.batch_wait.saturating_sub(first.since.elapsed());
                if queue.jobs.len() >= self.max_batch || rest.is_zero() || queue.closed {
                    break;
                }
                queue = shared.arrived.wait_timeout(queue, rest).unwrap_or_else(|e| e.into_inner()).0;
            } else if queue.closed {
                return None;
            } else {
                queue = shared.arrived.wait(queue).unwrap_or_else(|e| e.into_inner());
            }
        }
        let take = batch_of(queue.jobs.len().min(self.max_batch), self.runner.device);
        let jobs: Vec<Job> = queue.jobs.drain(..take).collect();
        if !queue.jobs.is_empty() {
            // The rest is another worker's.
            shared.arrived.notify_one();
        }
        Some(jobs)
    }

    /// Images whose client has gone cost no inference.
    fn drop_abandoned(&self, queue: &mut Queue) {
        let before = queue.jobs.len();
        queue.jobs.retain(|job| !job.reply.is_closed());
        self.metrics.abandoned.fetch_add((before - queue.jobs.len()) as u64, Relaxed);
    }

    fn answer(&mut self, jobs: Vec<Job>) {
        // A GPU runs only the batch sizes it was warmed for; what is missing is padded with old pixels.
        let size = if self.runner.device == "cpu" { jobs.len() } else { padded(jobs.len(), self.max_batch) };
        let features = self.infer(&jobs, size);
        self.metrics.batch_size.observe(jobs.len() as f64);
        match features {
            Ok(features) => {
                self.metrics.images.fetch_add(jobs.len() as u64, Relaxed);
                for (job, feature) in jobs.into_iter().zip(features.chunks_exact(features.len() / size)) {
                    let _ = job.reply.send(Ok(feature.to_vec()));
                }
            }
            Err(cause) => jobs.into_iter().for_each(|job| {
                let _ = job.reply.send(Err(ApiError::Internal(cause.clone())));
            }),
        }
    }

    /// Pooled features (`size`, D) of the jobs' images, and of whatever else is in the batch.
    fn infer(&mut self, jobs: &[Job], size: usize) -> Result<Vec<f32>, String> {
        let slots = self.runner.input(size)?.chunks_exact_mut(self.preprocess.values());
        for (job, slot) in jobs.iter().zip(slots) {
            self.metrics.queue_seconds.time(job.since.elapsed());
            self.preprocess.normalize(&job.pixels, slot);
        }
        let started = Instant::now();
        let features = self.runner.run(size);
        self.metrics.inference_seconds.time(started.elapsed());
        features
    }
}

/// Batch sizes that are warmed: powers of two up to the largest, and the largest.
fn buckets(max_batch: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = (0..).map(|i| 1 << i).take_while(|s| *s < max_batch).collect();
    sizes.push(max_batch);
    sizes
}

/// The largest bucket that `waiting` fills on a CPU, where padding would cost as much as an image; all of them on a GPU.
fn batch_of(waiting: usize, device: &str) -> usize {
    if device != "cpu" {
        return waiting;
    }
    buckets(waiting.max(1)).into_iter().rev().find(|b| b.is_power_of_two() && *b <= waiting).unwrap_or(waiting)
}

/// The smallest bucket with room for `images`.
fn padded(images: usize, max_batch: usize) -> usize {
    buckets(max_batch).into_iter().find(|b| *b >= images).unwrap_or(max_batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_in_warmed_sizes() {
        assert_eq!(buckets(1), [1]);
        assert_eq!(buckets(24), [1, 2, 4, 8, 16, 24]);
        assert_eq!([1, 2, 3, 7, 8, 31].map(|n| batch_of(n, "cpu")), [1, 2, 2, 4, 8, 16]);
        assert_eq!(batch_of(7, "cuda"), 7);
        assert_eq!([1, 3, 17, 24].map(|n| padded(n, 24)), [1, 4, 24, 24]);
    }
}
