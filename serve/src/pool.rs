//! Work off the async threads: decoding, as many images at once as there are cores, and a slow lane for large ones.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};

use tokio::sync::{Semaphore, oneshot};

use crate::error::ApiError;

/// A bounded pool of blocking work.
#[derive(Debug, Clone)]
pub struct Pool {
    slots: Arc<Semaphore>,
}

impl Pool {
    /// At most `size` jobs at once; others wait in order, and leave the line when their request is dropped.
    pub fn new(size: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(size.max(1))) }
    }

    /// Runs `work` on a blocking thread.
    ///
    /// # Errors
    /// [`ApiError::Undecodable`] where it panics (it reads what a client sent), else what it returns.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let slot = self.slots.clone().acquire_owned().await.map_err(|_| ApiError::Stopping)?;
        let job = tokio::task::spawn_blocking(move || {
            // Held by the work, not by the request: a dropped request's job still occupies a core.
            let _slot = slot;
            work()
        });
        job.await.unwrap_or_else(|_| Err(decoder_failed()))
    }
}

/// Runs `work` here.
///
/// # Errors
/// [`ApiError::Undecodable`] where it panics (it reads what a client sent), else what it returns.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(decoder_failed()))
}

fn decoder_failed() -> ApiError {
    ApiError::Undecodable("the input made its decoder fail".into())
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads of their own at low priority, for work that may take seconds: it gets what the rest leaves over.
#[derive(Debug)]
pub struct SlowLane {
    jobs: mpsc::Sender<Job>,
}

impl SlowLane {
    /// `size` threads, at least one; they end when this is dropped.
    pub fn new(size: usize) -> Self {
        let (jobs, waiting) = mpsc::channel::<Job>();
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..size.max(1) {
            let waiting = waiting.clone();
            let thread = std::thread::Builder::new().name(format!("slow-lane-{number}"));
            // Where the system has no thread to give, the channel is closed and `run` says so.
            let _ = thread.spawn(move || work_off(&waiting));
        }
        Self { jobs }
    }

    /// Runs `work` when its turn comes, unless its request has been dropped by then.
    ///
    /// # Errors
    /// [`ApiError::Undecodable`] where it panics, else what it returns.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let job = move || {
            if !reply.is_closed() {
                let _ = reply.send(guarded(work));
            }
        };
        let closed = || ApiError::Internal("there is no thread to decode large images".into());
        self.jobs.send(Box::new(job)).map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}

fn work_off(waiting: &Mutex<mpsc::Receiver<Job>>) {
    // Nice 10 of this thread alone: beside a busy core's ordinary work it gets about a tenth.
    let _ = rustix::process::setpriority_process(None, 10);
    loop {
        let next = waiting.lock().unwrap_or_else(|e| e.into_inner()).recv();
        match next {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

/// A counted resource: images in flight, bytes being received.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// So much, and no more.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// What is taken now.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// A share that nobody has drawn from yet.
    pub fn share(self: &Arc<Self>) -> Share {
        Share { budget: self.clone(), amount: 0 }
    }

    /// Takes `amount` at once or not at all.
    pub fn take(self: &Arc<Self>, amount: usize) -> Option<Share> {
        let mut share = self.share();
        share.grow(amount).then_some(share)
    }
}

/// What one request holds of a [`Budget`]; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    amount: usize,
}

impl Share {
    /// Takes more; false, and nothing taken, where the budget does not have it.
    pub fn grow(&mut self, amount: usize) -> bool {
        let limit = self.budget.limit;
        let taken = self
            .budget
            .used
            .fetch_update(Relaxed, Relaxed, |used| used.checked_add(amount).filter(|total| *total <= limit));
        if taken.is_ok() {
            self.amount += amount;
        }
        taken.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.amount, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_overdrawn_and_is_given_back() {
        let budget = Budget::new(10);
        let mut first = budget.take(6).unwrap();
        assert!(budget.take(5).is_none());
        assert!(first.grow(4) && !first.grow(1));
        drop(first);
        assert_eq!(budget.used(), 0);
        assert!(budget.take(11).is_none());
    }

    #[tokio::test]
    async fn a_panic_is_the_inputs_fault_and_frees_its_slot() {
        let pool = Pool::new(1);
        let failed = pool.run::<()>(|| std::panic::panic_any("boom")).await.unwrap_err();
        assert_eq!(failed.status(), 422);
        assert_eq!(pool.run(|| Ok(7)).await.unwrap(), 7);
        let lane = SlowLane::new(1);
        let failed = lane.run::<()>(|| std::panic::panic_any("boom")).await.unwrap_err();
        assert_eq!(failed.status(), 422);
        assert_eq!(lane.run(|| Ok(7)).await.unwrap(), 7);
    }
}
