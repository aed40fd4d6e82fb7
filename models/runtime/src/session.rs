//! Opening a model file on a CPU or on CUDA.

use std::path::Path;

use macrl_bundle::device::Device;
use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider};
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::error::{RuntimeError, one_line};
use crate::library::load;
use crate::weights::SharedWeights;

/// How a session is built.
#[derive(Clone, Default)]
pub struct SessionOptions<'a> {
    /// Where it runs.
    pub device: Device,
    /// Threads within an operator; 0: ONNX Runtime's choice (one per physical core).
    pub threads: usize,
    /// Whether those threads spin while they wait (lower latency, busy cores).
    pub spin: bool,
    /// The model's weights, where several sessions of it share them; on a CPU only.
    pub weights: Option<&'a SharedWeights>,
}

/// A session and where it really runs: `cpu` or `cuda`.
pub struct Loaded {
    /// `run` needs `&mut`: one caller at a time.
    pub session: Session,
    /// The execution provider in use.
    pub device: &'static str,
    /// Why `auto` did not take CUDA, where the library offers it.
    pub fallback: Option<String>,
}

/// Rewritings of a graph that cost time: on a CPU the sum and the norm of a residual in one node take ten times as long as
/// in two (3 % of a small encoder's time, ONNX Runtime 1.31).
const SLOWER_ON_CPU: &str = "SkipLayerNormFusion";

/// Opens a model file.
///
/// # Errors
/// Those of [`load`], [`RuntimeError::Cuda`] where CUDA was asked for, [`RuntimeError::Model`].
pub fn session(model: &Path, options: &SessionOptions) -> Result<Loaded, RuntimeError> {
    let environment = load()?;
    let mut fallback = None;
    if options.device != Device::Cpu {
        match cuda_session(&environment, model, options) {
            Ok(session) => return Ok(Loaded { session, device: "cuda", fallback }),
            Err(e) if options.device == Device::Cuda => return Err(e),
            Err(e) => fallback = ep::CUDA::is_available().unwrap_or(false).then(|| e.to_string()),
        }
    }
    let session = builder(&environment, options)
        .and_then(|b| Ok(b.with_disabled_optimizers(SLOWER_ON_CPU)?))
        .and_then(|mut b| match options.weights {
            Some(weights) => weights.session(b, model),
            None => b.commit_from_file(model),
        })
        .map_err(|e| RuntimeError::Model { path: model.display().to_string(), cause: one_line(&e) })?;
    Ok(Loaded { session, device: "cpu", fallback })
}

fn cuda_session(environment: &Environment, model: &Path, options: &SessionOptions) -> Result<Session, RuntimeError> {
    if !ep::CUDA::is_available().unwrap_or(false) {
        return Err(RuntimeError::Cuda("the library found was built without it".into()));
    }
    builder(environment, options)
        // Without error_on_failure a session silently runs on the CPU.
        .and_then(|b| Ok(b.with_execution_providers([ep::CUDA::default().build().error_on_failure()])?))
        .and_then(|mut b| b.commit_from_file(model))
        .map_err(|e| RuntimeError::Cuda(one_line(&e)))
}

fn builder(environment: &Environment, options: &SessionOptions) -> ort::Result<SessionBuilder> {
    let mut builder = Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_op_spinning(options.spin)?
        .with_inter_threads(1)?;
    if options.threads > 0 {
        builder = builder.with_intra_threads(options.threads)?;
    }
    Ok(builder)
}
