//! How inference is spread over the machine.

use std::time::Duration;

use macrl_bundle::device::Device;

use super::precision::Precision;

/// How inference is spread over the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    /// The device that sessions run on.
    pub device: Device,
    /// Precision of the matrix products.
    pub precision: Precision,
    /// Number of sessions, each with its own thread; `None`: one per core, or one on a GPU.
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
            precision: Precision::F32,
            workers: None,
            threads: 1,
            spin: false,
            max_batch: None,
            batch_wait: Duration::ZERO,
        }
    }
}
