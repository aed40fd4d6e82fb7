//! Finds and loads the ONNX Runtime library.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use macrl_bundle::places::near_program;
use ort::environment::Environment;

use crate::error::{RuntimeError, one_line};

struct Runtime {
    environment: Environment,
    path: PathBuf,
}

/// Kept until the process ends: `ort` holds only a weak reference and allows one environment.
static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

/// The library that an option names, instead of the environment variable.
static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Makes [`load`] load this library: a file, or the folder that contains it.  Has no effect after the first call.
pub fn choose_library(path: &Path) {
    CHOSEN.get_or_init(|| path.to_path_buf());
}

/// Finds and loads ONNX Runtime once; later calls return the same environment.
///
/// Searched in this order: what [`choose_library`] names; the environment variable `ORT_DYLIB_PATH` (a file, or a folder that
/// contains one); the program's folder and the `.deps` of its source tree ([`macrl_bundle::places`]); a Python package
/// `onnxruntime`, of the `python3` beside the program or on the PATH.  Never in the working directory: a library that is loaded runs.
///
/// # Errors
/// [`RuntimeError::NotFound`], [`RuntimeError::Named`] or [`RuntimeError::Start`].
pub fn load() -> Result<Environment, RuntimeError> {
    let mut slot = RUNTIME.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(runtime) = slot.as_ref() {
        return Ok(runtime.environment.clone());
    }
    let variable = std::env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()).map(PathBuf::from);
    let (builder, path) = match (CHOSEN.get(), variable) {
        (Some(chosen), _) => load_named("--onnx-runtime ", chosen)?,
        (None, Some(named)) => load_named("ORT_DYLIB_PATH=", &named)?,
        (None, None) => load_first()?,
    };
    let environment =
        builder.with_name("macrl").with_telemetry(false).build().map_err(|e| RuntimeError::Start(one_line(&e)))?;
    *slot = Some(Runtime { environment: environment.clone(), path });
    Ok(environment)
}

/// Path of the library that [`load`] loaded; `None` before that.
pub fn library_path() -> Option<PathBuf> {
    RUNTIME.lock().unwrap_or_else(|e| e.into_inner()).as_ref().map(|r| r.path.clone())
}

type Found = (ort::environment::EnvironmentBuilder, PathBuf);

fn load_named(by: &str, named: &Path) -> Result<Found, RuntimeError> {
    let fault = |cause: String| RuntimeError::Named { by: format!("{by}{}", named.display()), cause };
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

/// Candidate paths in the order that [`load`] documents; Python is asked only if all others fail.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let places = near_program().into_iter();
    // Libraries lie somewhere below `.deps`; below the program's folder, which may be any, only the folder itself counts.
    let found =
        places.filter_map(|place| if place.ends_with(".deps") { find_below(&place, 5) } else { library_in(&place) });
    found.chain(std::iter::once_with(python_library).flatten())
}

fn is_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("libonnxruntime.so") || name == "libonnxruntime.dylib" || name == "onnxruntime.dll"
}

/// The library directly in `dir`.  Of several names the shortest is chosen: the one without a version.
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

/// Asks Python for the folder of its `onnxruntime` package, without importing the package.
///
/// Isolated (`-I`) and in the root folder: Python would otherwise import modules of the working directory, of the user's
/// folder, and of what `PYTHONPATH` names.
fn python_library() -> Option<PathBuf> {
    let script = "import importlib.util as u; s = u.find_spec('onnxruntime'); print(s.submodule_search_locations[0] if s else '')";
    // Programs that pip installed lie beside the Python that has the package, whichever is on the PATH.
    let program = std::env::current_exe().ok();
    let beside = program.map(|program| program.with_file_name("python3")).filter(|python| python.exists());
    let mut python = Command::new(beside.unwrap_or_else(|| "python3".into()));
    let output = python.args(["-I", "-c", script]).current_dir("/").output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    let folder = folder.trim();
    if folder.is_empty() { None } else { library_in(&Path::new(folder).join("capi")) }
}
