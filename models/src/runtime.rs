//! ONNX Runtime: found and loaded at run time, so that one binary serves on a CPU or on CUDA by the library it finds.
//!
//! `ort` panics where its library is missing; everything here goes through [`load`], which does not.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::Mutex;

use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider};
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::weights::SharedWeights;

/// Why there is no session.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// No library anywhere.
    #[error(
        "ONNX Runtime's library (libonnxruntime.so, 1.{minor} or later) was not found{looked}; \
         `make setup` fetches it, or set ORT_DYLIB_PATH to it",
        minor = ort::MINOR_VERSION
    )]
    NotFound {
        /// What was found and did not load, if anything.
        looked: String,
    },
    /// The file that the user named does not load.
    #[error("ORT_DYLIB_PATH={path} is not a usable ONNX Runtime library: {cause}; unset it, or run `make setup`")]
    Named {
        /// The variable's value.
        path: String,
        /// What the loader said.
        cause: String,
    },
    /// The library is there and refuses to start.
    #[error("ONNX Runtime does not start: {0}")]
    Start(String),
    /// CUDA was asked for and is not to be had.
    #[error("CUDA was asked for, but ONNX Runtime cannot use it: {0}; use --device cpu, or `make setup ORT=gpu`")]
    Cuda(String),
    /// The model is not one that ONNX Runtime loads.
    #[error("{path} is not a model that ONNX Runtime loads: {cause}")]
    Model {
        /// The file.
        path: String,
        /// What ONNX Runtime said.
        cause: String,
    },
    /// A device name that does not exist.
    #[error("device must be auto, cpu or cuda, found `{0}`")]
    Device(String),
}

/// Where inference runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// CUDA where the library has it and it works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device; not to be had is an error.
    Cuda,
}

impl FromStr for Device {
    type Err = RuntimeError;
    fn from_str(text: &str) -> Result<Self, RuntimeError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            other => Err(RuntimeError::Device(other.into())),
        }
    }
}

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

struct Runtime {
    environment: Environment,
    path: PathBuf,
}

/// Held for the life of the process: `ort` keeps only a weak reference and allows one environment.
static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

/// Finds and loads ONNX Runtime once; later calls return the same environment.
///
/// Looked for in this order: the environment variable `ORT_DYLIB_PATH` (a file, or a folder that holds one); beside the
/// executable; `.deps/` in the working directory, the executable's folder or an ancestor of either; an installed Python
/// `onnxruntime`.
///
/// # Errors
/// [`RuntimeError::NotFound`], [`RuntimeError::Named`] or [`RuntimeError::Start`].
pub fn load() -> Result<Environment, RuntimeError> {
    let mut slot = RUNTIME.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(runtime) = slot.as_ref() {
        return Ok(runtime.environment.clone());
    }
    let (builder, path) = match std::env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()) {
        Some(named) => load_named(Path::new(&named))?,
        None => load_first()?,
    };
    let environment =
        builder.with_name("macrl").with_telemetry(false).build().map_err(|e| RuntimeError::Start(one_line(&e)))?;
    *slot = Some(Runtime { environment: environment.clone(), path });
    Ok(environment)
}

/// The library that [`load`] loaded.
pub fn library_path() -> Option<PathBuf> {
    RUNTIME.lock().unwrap_or_else(|e| e.into_inner()).as_ref().map(|r| r.path.clone())
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

type Found = (ort::environment::EnvironmentBuilder, PathBuf);

fn load_named(named: &Path) -> Result<Found, RuntimeError> {
    let fault = |cause: String| RuntimeError::Named { path: named.display().to_string(), cause };
    let path = match named {
        dir if dir.is_dir() => library_in(dir).ok_or_else(|| fault("the folder holds no libonnxruntime.so".into()))?,
        file if file.is_file() => file.to_path_buf(),
        _ => return Err(fault("there is no such file".into())),
    };
    let builder = ort::init_from(&path).map_err(|e| fault(one_line(&e)))?;
    Ok((builder, path))
}

fn load_first() -> Result<Found, RuntimeError> {
    let mut refused = Vec::new();
    for candidate in candidates() {
        match ort::init_from(&candidate) {
            Ok(builder) => return Ok((builder, candidate)),
            Err(e) => refused.push(one_line(&e)),
        }
    }
    let looked = if refused.is_empty() { String::new() } else { format!(" ({})", refused.join("; ")) };
    Err(RuntimeError::NotFound { looked })
}

/// Places in the order of [`load`]'s documentation; Python is only asked when all others are exhausted.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let executable = std::env::current_exe().ok().and_then(|e| Some(e.parent()?.to_path_buf()));
    let working = std::env::current_dir().ok();
    let beside = executable.iter().filter_map(|dir| library_in(dir)).collect::<Vec<_>>();
    let deps = [working, executable]
        .into_iter()
        .flatten()
        .flat_map(|dir| dir.ancestors().map(|a| a.join(".deps")).collect::<Vec<_>>())
        .filter_map(|deps| find_below(&deps, 5));
    beside.into_iter().chain(deps).chain(std::iter::once_with(python_library).flatten())
}

fn is_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("libonnxruntime.so") || name == "libonnxruntime.dylib" || name == "onnxruntime.dll"
}

/// The library directly in `dir`; the shortest name is the one without a version.
fn library_in(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.filter_map(|e| Some(e.ok()?.path()));
    entries.filter(|p| is_library(p) && p.is_file()).min_by_key(|p| p.as_os_str().len())
}

fn find_below(dir: &Path, depth: usize) -> Option<PathBuf> {
    if let Some(found) = library_in(dir) {
        return Some(found);
    }
    if depth == 0 {
        return None;
    }
    let mut folders: Vec<PathBuf> = std::fs::read_dir(dir).ok()?.filter_map(|e| Some(e.ok()?.path())).collect();
    folders.retain(|p| p.is_dir() && !p.is_symlink());
    folders.sort();
    folders.iter().find_map(|folder| find_below(folder, depth - 1))
}

/// Asks Python where its `onnxruntime` is, without importing it.
fn python_library() -> Option<PathBuf> {
    let script = "import importlib.util as u; s = u.find_spec('onnxruntime'); print(s.submodule_search_locations[0] if s else '')";
    let output = Command::new("python3").args(["-c", script]).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    let folder = folder.trim();
    if folder.is_empty() { None } else { library_in(&Path::new(folder).join("capi")) }
}

fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
