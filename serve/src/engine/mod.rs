//! Inference: worker threads run batches of queued images through ONNX Runtime.
//!
//! A request queues its images and awaits a channel for each.  A free worker takes its share of the queue, at most `max_batch`
//! images; with a `batch_wait`, an incomplete batch waits so long for more.  Async threads only pass the results on.

mod error;
mod options;
mod precision;
mod queue;
mod runner;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use macrl_bundle::bundle::Bundle;
use macrl_runtime::SharedWeights;
use macrl_runtime::{Device, SessionOptions};
use tokio::sync::oneshot;

pub use self::error::{EmbedError, EngineError};
pub use self::options::{EngineOptions, Precision};
use self::precision::Chosen;
use self::queue::{EmbedResult, Job, JobQueue};
pub use self::queue::{Pixels, Prepare};
use self::worker::Worker;
use crate::metrics::Metrics;

/// The workers and their queue.  When it is dropped, the workers finish what is queued and end.
pub struct Engine {
    queue: Arc<JobQueue>,
    threads: Vec<JoinHandle<()>>,
    devices: Vec<&'static str>,
    fallback: Option<String>,
    precision: &'static str,
    precision_note: Option<String>,
    max_batch: usize,
}

impl Engine {
    /// Opens the sessions, checks the graph against the bundle, runs every batch size once, and starts the workers.
    ///
    /// # Errors
    /// Every [`EngineError`].
    pub fn start(bundle: &Bundle, options: &EngineOptions, metrics: &Arc<Metrics>) -> Result<Self, EngineError> {
        // First of all: any other use of `ort` would look for the library by its bare name, and panic.
        macrl_runtime::load()?;
        let chosen = Chosen::of(bundle, options)?;
        let workers = open(&chosen, options, metrics)?;
        let devices = workers.iter().map(|w| w.runner.device).collect();
        let fallback = workers.iter().rev().find_map(|w| w.runner.fallback.clone());
        let max_batch = workers.iter().map(|w| w.max_batch).max().unwrap_or(1);
        let queue = Arc::new(JobQueue::default());
        let mut engine = Self {
            queue: queue.clone(),
            threads: Vec::new(),
            devices,
            precision: precision_of(&chosen, &workers, fallback.as_deref()),
            fallback,
            precision_note: chosen.note,
            max_batch,
        };
        for (number, worker) in workers.into_iter().enumerate() {
            let queue = queue.clone();
            let thread = std::thread::Builder::new().name(format!("inference-{number}"));
            engine.threads.push(thread.spawn(move || worker.run(&queue)).map_err(EngineError::Thread)?);
        }
        Ok(engine)
    }

    /// The raw pooled feature (D) of one image.  If the future is dropped, the image is not embedded.
    ///
    /// # Errors
    /// Every [`EmbedError`].
    pub async fn embed(&self, pixels: Pixels) -> EmbedResult {
        self.submit(pixels)?.await.unwrap_or(Err(EmbedError::Stopped))
    }

    /// Queues one image; its feature arrives in the channel.
    ///
    /// # Errors
    /// [`EmbedError::Stopped`] if the workers have ended.
    pub fn submit(&self, pixels: Pixels) -> Result<oneshot::Receiver<EmbedResult>, EmbedError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job { pixels, reply, since: Instant::now() })?;
        Ok(answer)
    }

    /// Number of images that wait for a batch.
    pub fn queued(&self) -> usize {
        self.queue.lock().jobs.len()
    }

    /// The device that each session really runs on.
    pub fn devices(&self) -> &[&'static str] {
        &self.devices
    }

    /// Whether workers may decode images.  On a GPU they may not: the few of them must keep the GPU busy.
    pub fn prepares(&self) -> bool {
        self.devices.iter().all(|device| *device == "cpu")
    }

    /// Precision of the matrix products: `f32`, `int8` or, on a GPU, `f16`.
    pub fn precision(&self) -> &'static str {
        self.precision
    }

    /// The reason for the decision of `--precision auto`.
    pub fn precision_note(&self) -> Option<&str> {
        self.precision_note.as_deref()
    }

    /// Largest batch of a session.
    pub fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// Which feature of a GPU is not used, and why: CUDA (if the library has it), half precision, or page-locked memory.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }
}

/// Opens the sessions of the chosen graph.
fn open(chosen: &Chosen, options: &EngineOptions, metrics: &Arc<Metrics>) -> Result<Vec<Worker>, EngineError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // A single worker does not share its weights; they would only be held twice.
    let sharing = chosen.device != Device::Cuda && options.workers.unwrap_or(cores) > 1;
    let weights = sharing.then(|| SharedWeights::read(&chosen.bundle.onnx)).transpose()?;
    let session = SessionOptions {
        device: chosen.device,
        threads: options.threads,
        spin: options.spin,
        weights: weights.as_ref(),
    };
    let open = || Worker::new(&session, &chosen.bundle, options, metrics);
    let mut workers = vec![open()?];
    let usual = if workers[0].runner.device == "cpu" { cores } else { 1 };
    for _ in 1..options.workers.unwrap_or(usual) {
        workers.push(open()?);
    }
    Ok(workers)
}

/// The precision in use.  A GPU runs the half-precision graph if there is one, unless `fallback` says why not.
fn precision_of(chosen: &Chosen, workers: &[Worker], fallback: Option<&str>) -> &'static str {
    let on_gpu = workers.iter().all(|w| w.runner.device != "cpu") && chosen.bundle.onnx_fp16.is_some();
    match (chosen.int8, on_gpu && !fallback.is_some_and(|why| why.contains("half precision"))) {
        (true, _) => "int8",
        (_, true) => "f16",
        _ => "f32",
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use macrl_bundle::decode::DecodeError;

    use super::*;
    use crate::pool::WorkError;

    fn pixels(edge: u32, seed: u32) -> Vec<u8> {
        (0..edge * edge * 3).map(|i| (i * (seed + 3) % 251) as u8).collect()
    }

    #[test]
    fn an_image_that_cannot_be_decoded_does_not_disturb_its_batch() {
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
        let broken = DecodeError::Format { found: "no bytes".into() };
        let error = broken.clone();
        let fails = move || Err(error);
        let batch = [
            Pixels::Ready(pixels(edge, 1)),
            Pixels::Deferred(Box::new(fails)),
            Pixels::Deferred(Box::new(|| std::panic::panic_any("a decoder's panic"))),
            Pixels::Deferred(Box::new(move || Ok(pixels(edge, 1)))),
        ];
        let answers: Vec<_> = batch.into_iter().map(|image| engine.submit(image).unwrap()).collect();
        let answers: Vec<EmbedResult> = answers.into_iter().map(|answer| answer.blocking_recv().unwrap()).collect();
        assert_eq!(metrics.images.load(std::sync::atomic::Ordering::Relaxed), 2);
        assert_eq!(answers[1], Err(EmbedError::Decode(broken)));
        assert_eq!(answers[2], Err(EmbedError::Work(WorkError::Panicked)));
        let features: Vec<&Vec<f32>> = [0, 3].map(|i| answers[i].as_ref().unwrap()).into();
        assert_eq!(features[0].len(), bundle.config.hidden_size);
        assert_eq!(features[0], features[1]);
        let other = engine.submit(Pixels::Ready(pixels(edge, 2))).unwrap();
        drop(engine);
        assert_ne!(&other.blocking_recv().unwrap().unwrap(), features[0], "a queued image is still embedded");
    }
}
