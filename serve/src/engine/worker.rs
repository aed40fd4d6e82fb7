//! A worker thread: takes batches from the queue and computes their features.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use macrl_bundle::bundle::Bundle;
use macrl_bundle::preprocess::Preprocess;
use macrl_runtime::SessionOptions;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::error::{EmbedError, EngineError};
use super::options::EngineOptions;
use super::queue::{EmbedResult, Job, JobQueue, QueueState};
use super::runner::Runner;
use crate::metrics::Metrics;

/// The default batch size.  On a CPU, a batch of 8 fits into a core's cache; with 32, an image costs 3 to 17 % more.  A GPU
/// needs larger batches.
fn default_batch(device: &str) -> usize {
    if device == "cpu" { 8 } else { 64 }
}

/// A session and how its batches are formed.
pub(super) struct Worker {
    pub(super) runner: Runner,
    preprocess: Preprocess,
    pub(super) max_batch: usize,
    batch_wait: Duration,
    metrics: Arc<Metrics>,
    /// The runtime whose tasks await the results; `None` for callers that block.
    tasks: Option<Handle>,
}

impl Worker {
    /// Opens a session, checks the graph against the bundle, and runs every batch size once.
    ///
    /// # Errors
    /// Every [`EngineError`] but `Thread`.
    pub(super) fn new(
        session: &SessionOptions,
        bundle: &Bundle,
        options: &EngineOptions,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, EngineError> {
        let fault = |cause: String| EngineError::Graph { path: bundle.onnx.display().to_string(), cause };
        let mut runner = Runner::open(bundle, session)?.map_err(fault)?;
        let max_batch = options.max_batch.unwrap_or_else(|| default_batch(runner.device)).max(1);
        runner.warm(&buckets(max_batch)).map_err(fault)?;
        Ok(Self {
            runner,
            preprocess: bundle.preprocess.clone(),
            max_batch,
            batch_wait: options.batch_wait,
            metrics: metrics.clone(),
            tasks: Handle::try_current().ok(),
        })
    }

    /// Runs until the queue is closed and empty.
    pub(super) fn run(mut self, queue: &JobQueue) {
        while let Some(jobs) = self.next_batch(queue) {
            self.answer(jobs);
        }
    }

    /// Waits for a batch; `None` once the queue is closed and empty.
    fn next_batch(&self, queue: &JobQueue) -> Option<Vec<Job>> {
        let mut state = queue.lock();
        loop {
            self.drop_abandoned(&mut state);
            if let Some(first) = state.jobs.front() {
                let rest = self.batch_wait.saturating_sub(first.since.elapsed());
                if state.jobs.len() >= self.max_batch || rest.is_zero() || state.closed {
                    break;
                }
                state = queue.wait(state, rest);
            } else if state.closed {
                return None;
            } else {
                state = queue.wait(state, Duration::MAX);
            }
        }
        // With a `batch_wait`, full batches are wanted: the queue is not shared out among the workers.
        let idle = if self.batch_wait.is_zero() { state.idle } else { 0 };
        let take = batch_of(state.jobs.len(), self.max_batch, idle, self.runner.device);
        let jobs: Vec<Job> = state.jobs.drain(..take).collect();
        if !state.jobs.is_empty() {
            // Another worker takes the rest.
            queue.wake_one(&state);
        }
        Some(jobs)
    }

    /// Removes images whose client has disconnected.
    fn drop_abandoned(&self, state: &mut QueueState) {
        let before = state.jobs.len();
        state.jobs.retain(|job| !job.reply.is_closed());
        self.metrics.abandoned.fetch_add((before - state.jobs.len()) as u64, Relaxed);
    }

    /// Embeds the images of a batch and sends their features.
    fn answer(&mut self, jobs: Vec<Job>) {
        let (replies, images) = self.prepared(jobs);
        if images.is_empty() {
            return;
        }
        // A GPU runs only the batch sizes that were run at start; a smaller batch is padded with old pixels.
        let size = if self.runner.device == "cpu" { images.len() } else { padded(images.len(), self.max_batch) };
        let features = self.infer(&images, size);
        self.metrics.batch_size.observe(images.len() as f64);
        if features.is_ok() {
            self.metrics.images.fetch_add(images.len() as u64, Relaxed);
        }
        self.send_features(replies, features, size);
    }

    /// Sends each image its row of the features (`size`, D).
    fn send_features(
        &self,
        replies: Vec<oneshot::Sender<EmbedResult>>,
        features: Result<Vec<f32>, String>,
        size: usize,
    ) {
        let send = move || {
            for (i, reply) in replies.into_iter().enumerate() {
                let part = |all: &Vec<f32>| all[i * all.len() / size..(i + 1) * all.len() / size].to_vec();
                let _ = reply.send(features.as_ref().map(part).map_err(|cause| EmbedError::Inference(cause.clone())));
            }
        };
        // Sent from this thread, each reply would wake an async thread, which would interrupt the inference on its core.
        match &self.tasks {
            Some(tasks) => drop(tasks.spawn(async move { send() })),
            None => send(),
        }
    }

    /// The pixels of the images that can be decoded, with the channels for their features.  Errors are sent at once.
    fn prepared(&self, jobs: Vec<Job>) -> (Vec<oneshot::Sender<EmbedResult>>, Vec<Vec<u8>>) {
        let prepare = |job: Job| {
            self.metrics.queue_seconds.time(job.since.elapsed());
            match job.pixels.prepare() {
                Ok(pixels) => Some((job.reply, pixels)),
                Err(cause) => {
                    let _ = job.reply.send(Err(cause));
                    None
                }
            }
        };
        jobs.into_iter().filter_map(prepare).unzip()
    }

    /// Pooled features (`size`, D) of the images and of the padding.
    fn infer(&mut self, images: &[Vec<u8>], size: usize) -> Result<Vec<f32>, String> {
        let slots = self.runner.input(size)?.chunks_exact_mut(self.preprocess.values());
        images.iter().zip(slots).for_each(|(pixels, slot)| self.preprocess.normalize(pixels, slot));
        let started = Instant::now();
        let features = self.runner.run(size);
        self.metrics.inference_seconds.time(started.elapsed());
        features
    }
}

/// The batch sizes that are run once at start: powers of two up to the largest, and the largest.
fn buckets(max_batch: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = (0..).map(|i| 1 << i).take_while(|s| *s < max_batch).collect();
    sizes.push(max_batch);
    sizes
}

/// How many of the `waiting` images form a batch.  On a CPU it is this worker's share beside the `idle` ones, rounded down to
/// a power of two, because padding costs as much as an image.  On a GPU it is all that fit.
fn batch_of(waiting: usize, max_batch: usize, idle: usize, device: &str) -> usize {
    if device != "cpu" {
        return waiting.min(max_batch);
    }
    let share = waiting.div_ceil(1 + idle).min(max_batch);
    share.checked_ilog2().map_or(0, |exponent| 1 << exponent)
}

/// The smallest bucket that holds `images`.
fn padded(images: usize, max_batch: usize) -> usize {
    buckets(max_batch).into_iter().find(|b| *b >= images).unwrap_or(max_batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_sizes_that_were_run_at_start() {
        assert_eq!(buckets(1), [1]);
        assert_eq!(buckets(24), [1, 2, 4, 8, 16, 24]);
        assert_eq!([1, 2, 3, 7, 8, 31].map(|n| batch_of(n, 24, 0, "cpu")), [1, 2, 2, 4, 8, 16]);
        assert_eq!([1, 2, 3, 8, 9].map(|n| batch_of(n, 4, 1, "cpu")), [1, 1, 2, 4, 4]);
        assert_eq!([7, 31].map(|n| batch_of(n, 24, 3, "cuda")), [7, 24]);
        assert_eq!([1, 3, 17, 24].map(|n| padded(n, 24)), [1, 4, 24, 24]);
    }
}
