//! Blocking work off the async threads: a pool with a thread for each core, and one of low priority for large images.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};

use tokio::sync::{Semaphore, oneshot};

/// Why work has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// It panicked.  It reads what a client sent, so the input is at fault.
    #[error("the input made its decoder fail")]
    Panicked,
    /// The pool was closed.
    #[error("the server is stopping")]
    Closed,
    /// The system could not start a thread.
    #[error("there is no thread to decode large images")]
    NoThread,
}

/// A bounded pool of blocking threads.
#[derive(Debug, Clone)]
pub struct Pool {
    slots: Arc<Semaphore>,
}

impl Pool {
    /// Runs at most `size` jobs at once.  Others wait in order; a job whose request is dropped leaves the queue.
    pub fn new(size: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(size.max(1))) }
    }

    /// Runs `work` on a blocking thread.
    ///
    /// # Errors
    /// The work's own, [`WorkError::Panicked`] and [`WorkError::Closed`].
    pub async fn run<T: Send + 'static, E: From<WorkError> + Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let slot = self.slots.clone().acquire_owned().await.map_err(|_| WorkError::Closed)?;
        let job = tokio::task::spawn_blocking(move || {
            // Held by the work and not by the request: the job of a dropped request still occupies a core.
            let _slot = slot;
            work()
        });
        job.await.unwrap_or_else(|_| Err(WorkError::Panicked.into()))
    }
}

/// Runs `work` on this thread; a panic becomes an error.
///
/// # Errors
/// The work's own, [`WorkError::Panicked`].
pub fn catch_panic<T, E: From<WorkError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(WorkError::Panicked.into()))
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads of low priority, for work that may take seconds: they use the processor time that other work leaves.
#[derive(Debug)]
pub struct LowPriorityPool {
    jobs: mpsc::Sender<Job>,
}

impl LowPriorityPool {
    /// Starts `size` threads, at least one.  They end when this is dropped.
    pub fn new(size: usize) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..size.max(1) {
            let queue = queue.clone();
            let thread = std::thread::Builder::new().name(format!("large-images-{number}"));
            // If the system cannot start a thread, the channel is closed and `run` reports it.
            let _ = thread.spawn(move || run_jobs(&queue));
        }
        Self { jobs }
    }

    /// Runs `work` in its turn, unless its request has been dropped by then.
    ///
    /// # Errors
    /// The work's own, [`WorkError::Panicked`] and [`WorkError::NoThread`].
    pub async fn run<T: Send + 'static, E: From<WorkError> + Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let (reply, answer) = oneshot::channel();
        let job = move || {
            if !reply.is_closed() {
                let _ = reply.send(catch_panic(work));
            }
        };
        self.jobs.send(Box::new(job)).map_err(|_| WorkError::NoThread)?;
        answer.await.unwrap_or_else(|_| Err(WorkError::NoThread.into()))
    }
}

fn run_jobs(queue: &Mutex<mpsc::Receiver<Job>>) {
    // Nice 10 for this thread alone: on a busy core it gets about a tenth of the time.
    let _ = rustix::process::setpriority_process(None, 10);
    loop {
        let next = queue.lock().unwrap_or_else(|e| e.into_inner()).recv();
        match next {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error_and_frees_its_slot() {
        let pool = Pool::new(1);
        let panics = || -> Result<(), WorkError> { std::panic::panic_any("boom") };
        assert_eq!(pool.run(panics).await, Err(WorkError::Panicked));
        assert_eq!(pool.run(|| Ok::<_, WorkError>(7)).await, Ok(7));
        let low_priority = LowPriorityPool::new(1);
        assert_eq!(low_priority.run(panics).await, Err(WorkError::Panicked));
        assert_eq!(low_priority.run(|| Ok::<_, WorkError>(7)).await, Ok(7));
    }
}
