//! The queue of images that wait for inference.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use macrl_bundle::decode::DecodeError;
use tokio::sync::oneshot;

use super::error::EmbedError;
use crate::pool::catch_panic;

/// Decodes and preprocesses an image to (S, S, 3) u8.
pub type Prepare = Box<dyn FnOnce() -> Result<Vec<u8>, DecodeError> + Send>;

/// The pixels of an image, or how to get them.
pub enum Pixels {
    /// (S, S, 3) u8, as [`Preprocess::fit`](macrl_bundle::preprocess::Preprocess::fit) gives.
    Ready(Vec<u8>),
    /// To be prepared by the worker that embeds the image.  For small images, handing them to another thread and back would
    /// cost more than decoding them.
    Deferred(Prepare),
}

impl Pixels {
    pub(super) fn prepare(self) -> Result<Vec<u8>, EmbedError> {
        match self {
            Self::Ready(pixels) => Ok(pixels),
            Self::Deferred(prepare) => catch_panic(|| Ok(prepare()?)),
        }
    }
}

/// A raw pooled feature (D), or why there is none.
pub(super) type EmbedResult = Result<Vec<f32>, EmbedError>;

/// An image in the queue.
pub(super) struct Job {
    pub(super) pixels: Pixels,
    pub(super) reply: oneshot::Sender<EmbedResult>,
    /// When it was queued.
    pub(super) since: Instant,
}

/// What the queue's mutex protects.
#[derive(Default)]
pub(super) struct QueueState {
    pub(super) jobs: VecDeque<Job>,
    pub(super) closed: bool,
    /// Number of workers that wait for jobs.
    pub(super) idle: usize,
}

/// The queue between requests and workers.
#[derive(Default)]
pub(super) struct JobQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

impl JobQueue {
    pub(super) fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Adds an image, unless the queue is closed.
    pub(super) fn push(&self, job: Job) -> Result<(), EmbedError> {
        let mut state = self.lock();
        if state.closed {
            return Err(EmbedError::Stopped);
        }
        state.jobs.push_back(job);
        self.wake_one(&state);
        Ok(())
    }

    /// Closes the queue: nothing more is added, and workers end when it is empty.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Wakes a worker if one waits.  Without the check, every notification would be a system call.
    pub(super) fn wake_one(&self, state: &QueueState) {
        if state.idle > 0 {
            self.changed.notify_one();
        }
    }

    /// Releases the lock until the queue changes, for at most `timeout`.
    pub(super) fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, QueueState>,
        timeout: Duration,
    ) -> MutexGuard<'a, QueueState> {
        state.idle += 1;
        let mut state = self.changed.wait_timeout(state, timeout).unwrap_or_else(|e| e.into_inner()).0;
        state.idle -= 1;
        state
    }
}
