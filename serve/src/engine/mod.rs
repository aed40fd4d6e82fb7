//! Inference: worker threads that turn waiting images into batches.
//!
//! A request leaves its pixels in the queue and awaits a channel; as soon as a worker is free it takes its share of what is
//! waiting, at most `max_batch` (greedy), or waits up to `batch_wait` for more.  Async threads only hand out its answers.

mod queue;
mod runner;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use macrl_bundle::bundle::Bundle;
use macrl_runtime::SharedWeights;
use macrl_runtime::{Device, RuntimeError, SessionOptions};
use tokio::sync::oneshot;

use self::queue::{Job, Outcome, Shared};
pub use self::queue::{Pixels, Prepare};
use self::worker::Worker;
use crate::error::ApiError;
use crate::metrics::Metrics;

/// How inference is spread over the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    /// Where it runs.
    pub device: Device,
    /// Sessions, each on its own thread; `None`: one per core, or one on a GPU.
    pub workers: Option<usize>,
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
        Self {
            device: Device::Auto,
            workers: None,
            threads: 1,
            spin: false,
            max_batch: None,
            batch_wait: Duration::ZERO,
        }
    }
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
        macrl_runtime::load()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // With one worker there is nobody to share with, and the weights would only be held twice.
        let sharing = options.device != Device::Cuda && options.workers.unwrap_or(cores) > 1;
        let weights = sharing.then(|| SharedWeights::read(&bundle.onnx)).transpose()?;
        let session = SessionOptions {
            device: options.device,
            threads: options.threads,
            spin: options.spin,
            weights: weights.as_ref(),
        };
        let open = || Worker::new(&session, bundle, options, metrics);
        let mut workers = vec![open()?];
        let usual = if workers[0].runner.device == "cpu" { cores } else { 1 };
        for _ in 1..options.workers.unwrap_or(usual) {
            workers.push(open()?);
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
    /// # Errors
    /// Those of deferred pixels, [`ApiError::Internal`] where ONNX Runtime fails, [`ApiError::Stopping`] where the workers
    /// have ended.
    pub async fn embed(&self, pixels: Pixels) -> Outcome {
        self.submit(pixels)?.await.unwrap_or(Err(ApiError::Stopping))
    }

    /// [`Engine::embed`], to be awaited elsewhere.
    ///
    /// # Errors
    /// [`ApiError::Stopping`] where the workers have ended.
    pub fn submit(&self, pixels: Pixels) -> Result<oneshot::Receiver<Outcome>, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.shared.push(Job { pixels, reply, since: Instant::now() })?;
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

    /// Whether the workers may prepare images: on a GPU the few of them are busy keeping it busy.
    pub fn prepares(&self) -> bool {
        self.devices.iter().all(|device| *device == "cpu")
    }

    /// Largest batch of a session.
    pub fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// What of a GPU is not in use and why: CUDA where the library offers it, half precision, or page-locked memory.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn pixels(edge: u32, seed: u32) -> Vec<u8> {
        (0..edge * edge * 3).map(|i| (i * (seed + 3) % 251) as u8).collect()
    }

    #[test]
    fn an_image_that_cannot_be_prepared_costs_its_batch_nothing() {
        let bundle = Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pretrained/cifar10")).unwrap();
        let edge = bundle.preprocess.image_size as u32;
        let options = EngineOptions {
            device: Device::Cpu,
            workers: Some(1),
            max_batch: Some(4),
            batch_wait: Duration::from_secs(5),
            ..EngineOptions::default()
        };
        let metrics = Arc::new(Metrics::default());
        let engine = Engine::start(&bundle, &options, &metrics).unwrap();
        assert!(engine.prepares());
        let fails = || Err(ApiError::Undecodable("no image".into()));
        let batch = [
            Pixels::Ready(pixels(edge, 1)),
            Pixels::Deferred(Box::new(fails)),
            Pixels::Deferred(Box::new(|| std::panic::panic_any("a decoder's"))),
            Pixels::Deferred(Box::new(move || Ok(pixels(edge, 1)))),
        ];
        let answers: Vec<_> = batch.into_iter().map(|image| engine.submit(image).unwrap()).collect();
        let answers: Vec<Outcome> = answers.into_iter().map(|answer| answer.blocking_recv().unwrap()).collect();
        assert_eq!(metrics.images.load(std::sync::atomic::Ordering::Relaxed), 2);
        for failed in &answers[1..3] {
            assert_eq!(failed.as_ref().unwrap_err().status(), 422);
        }
        let features: Vec<&Vec<f32>> = [0, 3].map(|i| answers[i].as_ref().unwrap()).into();
        assert_eq!(features[0].len(), bundle.config.hidden_size);
        assert_eq!(features[0], features[1]);
        let other = engine.submit(Pixels::Ready(pixels(edge, 2))).unwrap();
        drop(engine);
        assert_ne!(&other.blocking_recv().unwrap().unwrap(), features[0], "what was queued is finished");
    }
}
