//! Finds and loads the ONNX Runtime library.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use ort::environment::Environment;

use crate::error::{RuntimeError, one_line};

struct Runtime {
    environment: Environment,
    path: PathBuf,
}

/// Kept until the process ends: `ort` holds only a weak reference and allows one environment.
static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

/// Finds and loads ONNX Runtime once; later calls return the same environment.
///
/// Searched in this order: the environment variable `ORT_DYLIB_PATH` (a file, or a folder that contains one); the
/// executable's folder; `.deps/` in the working directory, the executable's folder, or a parent of either; a Python package
/// `onnxruntime`, of the `python3` beside the executable or on the PATH.
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

/// Path of the library that [`load`] loaded; `None` before that.
pub fn library_path() -> Option<PathBuf> {
    RUNTIME.lock().unwrap_or_else(|e| e.into_inner()).as_ref().map(|r| r.path.clone())
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

/// Candidate paths in the order that [`load`] documents; Python is asked only if all others fail.
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
fn python_library() -> Option<PathBuf> {
    let script = "import importlib.util as u; s = u.find_spec('onnxruntime'); print(s.submodule_search_locations[0] if s else '')";
    // Programs that pip installed lie beside the Python that has the package, whichever is on the PATH.
    let executable = std::env::current_exe().ok();
    let beside = executable.map(|program| program.with_file_name("python3")).filter(|python| python.exists());
    let output = Command::new(beside.unwrap_or_else(|| "python3".into())).args(["-c", script]).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    let folder = folder.trim();
    if folder.is_empty() { None } else { library_in(&Path::new(folder).join("capi")) }
}
