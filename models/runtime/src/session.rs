//! Opens a model file on the CPU or on CUDA.

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
    /// Device to use; `Auto` tries CUDA first.
    pub device: Device,
    /// Threads within an operator; 0 lets ONNX Runtime choose (one per physical core).
    pub threads: usize,
    /// Whether idle threads spin: lower latency, but busy cores.
    pub spin: bool,
    /// Weights of the model that several sessions share; used on the CPU only.
    pub weights: Option<&'a SharedWeights>,
}

/// An open session and the device that it runs on.
pub struct Loaded {
    /// `run` needs `&mut`, so one caller at a time can use it.
    pub session: Session,
    /// The device in use, `cpu` or `cuda`.
    pub device: &'static str,
    /// Why `auto` did not choose CUDA although the library supports it.
    pub fallback: Option<String>,
}

/// Graph optimisations that slow the encoder down.  On a CPU the fused node for residual sum and normalisation takes
/// ten times as long as two separate nodes (3 % of a small encoder's time, ONNX Runtime 1.31).
const SLOWER_ON_CPU: &str = "SkipLayerNormFusion";

/// Opens a model file as a session.
///
/// # Errors
/// Those of [`load`]; [`RuntimeError::Cuda`] if CUDA was requested and is not available; [`RuntimeError::Model`].
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
        return Err(RuntimeError::Cuda("this library was built without CUDA".into()));
    }
    builder(environment, options)
        // Without error_on_failure, ONNX Runtime silently falls back to the CPU.
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
