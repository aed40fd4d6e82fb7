//! What waits for inference: images, and who waits for their features.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::ApiError;
use crate::pool::guarded;

/// What the preprocessing of an image gives: (S, S, 3) u8, or why there are none.
pub type Prepare = Box<dyn FnOnce() -> Result<Vec<u8>, ApiError> + Send>;

/// An image on its way into a batch.
pub enum Pixels {
    /// (S, S, 3) u8, as [`Preprocess::fit`](macrl_bundle::preprocess::Preprocess::fit) gives.
    Ready(Vec<u8>),
    /// To be prepared by the worker that infers: for small images, whose way to another thread and back costs more than
    /// their decoding.
    Deferred(Prepare),
}

impl Pixels {
    pub(super) fn prepare(self) -> Result<Vec<u8>, ApiError> {
        match self {
            Self::Ready(pixels) => Ok(pixels),
            Self::Deferred(prepare) => guarded(prepare),
        }
    }
}

/// A raw pooled feature (D), or why there is none.
pub(super) type Outcome = Result<Vec<f32>, ApiError>;

/// One image's way through a batch.
pub(super) struct Job {
    pub(super) pixels: Pixels,
    pub(super) reply: oneshot::Sender<Outcome>,
    pub(super) since: Instant,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) jobs: VecDeque<Job>,
    pub(super) closed: bool,
    /// Workers that wait for work.
    pub(super) idle: usize,
}

/// The queue and the news of its changes.
#[derive(Default)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    news: Condvar,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes an image in, unless the queue is closed.
    pub(super) fn push(&self, job: Job) -> Result<(), ApiError> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(ApiError::Stopping);
        }
        queue.jobs.push_back(job);
        self.call_one(&queue);
        Ok(())
    }

    /// Takes nothing more in, and lets the workers see it.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.news.notify_all();
    }

    /// Wakes a worker, if one sleeps: to call nobody would still be a system call.
    pub(super) fn call_one(&self, queue: &Queue) {
        if queue.idle > 0 {
            self.news.notify_one();
        }
    }

    /// Gives the queue up until there is news, for at most `patience`.
    pub(super) fn wait<'a>(&self, mut queue: MutexGuard<'a, Queue>, patience: Duration) -> MutexGuard<'a, Queue> {
        queue.idle += 1;
        let mut queue = self.news.wait_timeout(queue, patience).unwrap_or_else(|e| e.into_inner()).0;
        queue.idle -= 1;
        queue
    }
}
