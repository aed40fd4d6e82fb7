//! A thread that turns waiting images into batches, and batches into features.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use macrl_bundle::bundle::Bundle;
use macrl_bundle::preprocess::Preprocess;
use macrl_runtime::SessionOptions;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::queue::{Job, Outcome, Queue, Shared};
use super::runner::Runner;
use super::{EngineError, EngineOptions};
use crate::error::ApiError;
use crate::metrics::Metrics;

/// The largest batch that pays: on a CPU a thread's batch of 8 leaves its cache, and 32 cost 3 to 17 % an image more; a
/// GPU wants more of them.
fn usual_batch(device: &str) -> usize {
    if device == "cpu" { 8 } else { 64 }
}

/// One session and its batches.
pub(super) struct Worker {
    pub(super) runner: Runner,
    preprocess: Preprocess,
    pub(super) max_batch: usize,
    batch_wait: Duration,
    metrics: Arc<Metrics>,
    /// Where the replies' receivers live, if on async threads.
    tasks: Option<Handle>,
}

impl Worker {
    /// Opens a session, checks the graph against the bundle, and warms every batch size.
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
        let max_batch = options.max_batch.unwrap_or_else(|| usual_batch(runner.device)).max(1);
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

    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self, shared: &Shared) {
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
                queue = shared.wait(queue, rest);
            } else if queue.closed {
                return None;
            } else {
                queue = shared.wait(queue, Duration::MAX);
            }
        }
        // Who would wait for a full batch does not want it shared.
        let idle = if self.batch_wait.is_zero() { queue.idle } else { 0 };
        let take = batch_of(queue.jobs.len(), self.max_batch, idle, self.runner.device);
        let jobs: Vec<Job> = queue.jobs.drain(..take).collect();
        if !queue.jobs.is_empty() {
            // The rest is another worker's.
            shared.call_one(&queue);
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
        let (replies, images) = self.prepared(jobs);
        if images.is_empty() {
            return;
        }
        // A GPU runs only the batch sizes it was warmed for; what is missing is padded with old pixels.
        let size = if self.runner.device == "cpu" { images.len() } else { padded(images.len(), self.max_batch) };
        let features = self.infer(&images, size);
        self.metrics.batch_size.observe(images.len() as f64);
        if features.is_ok() {
            self.metrics.images.fetch_add(images.len() as u64, Relaxed);
        }
        self.hand_out(replies, features, size);
    }

    /// Gives each image its part of the features (`size`, D).
    fn hand_out(&self, replies: Vec<oneshot::Sender<Outcome>>, features: Result<Vec<f32>, String>, size: usize) {
        let send = move || {
            for (i, reply) in replies.into_iter().enumerate() {
                let part = |all: &Vec<f32>| all[i * all.len() / size..(i + 1) * all.len() / size].to_vec();
                let _ = reply.send(features.as_ref().map(part).map_err(|cause| ApiError::Internal(cause.clone())));
            }
        };
        // From here every reply would wake an async thread, and each time interrupt the inference on its core.
        match &self.tasks {
            Some(tasks) => drop(tasks.spawn(async move { send() })),
            None => send(),
        }
    }

    /// The images that could be read, and who waits for them; who sent others is told at once.
    fn prepared(&self, jobs: Vec<Job>) -> (Vec<oneshot::Sender<Outcome>>, Vec<Vec<u8>>) {
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

    /// Pooled features (`size`, D) of the images, and of whatever else is in the batch.
    fn infer(&mut self, images: &[Vec<u8>], size: usize) -> Result<Vec<f32>, String> {
        let slots = self.runner.input(size)?.chunks_exact_mut(self.preprocess.values());
        images.iter().zip(slots).for_each(|(pixels, slot)| self.preprocess.normalize(pixels, slot));
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

/// How many of the `waiting` images are one batch: on a CPU this worker's share of them where others are `idle`, down to the
/// next power of two, for padding would cost as much as an image; on a GPU all that fit.
fn batch_of(waiting: usize, max_batch: usize, idle: usize, device: &str) -> usize {
    if device != "cpu" {
        return waiting.min(max_batch);
    }
    let share = waiting.div_ceil(1 + idle).min(max_batch);
    share.checked_ilog2().map_or(0, |exponent| 1 << exponent)
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
        assert_eq!([1, 2, 3, 7, 8, 31].map(|n| batch_of(n, 24, 0, "cpu")), [1, 2, 2, 4, 8, 16]);
        assert_eq!([1, 2, 3, 8, 9].map(|n| batch_of(n, 4, 1, "cpu")), [1, 1, 2, 4, 4]);
        assert_eq!([7, 31].map(|n| batch_of(n, 24, 3, "cuda")), [7, 24]);
        assert_eq!([1, 3, 17, 24].map(|n| padded(n, 24)), [1, 4, 24, 24]);
    }
}
