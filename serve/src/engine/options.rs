//! How inference is spread over the machine, and in which precision.

use std::str::FromStr;
use std::time::Duration;

use macrl_bundle::device::Device;

/// Precision of the matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 8 bits on a CPU if the bundle has an 8-bit graph with its proof and it is faster on this machine; otherwise 32 bits.
    Auto,
    /// 32 bits on a CPU; on a GPU 16 bits, if the bundle has that graph.
    #[default]
    F32,
    /// 8 bits on a CPU; an error if the bundle has no such graph.
    Int8,
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            other => Err(format!("precision must be auto, f32 or int8, found `{other}`")),
        }
    }
}

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
