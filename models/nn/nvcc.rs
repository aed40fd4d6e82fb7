//! Compiles a crate's CUDA kernels (`kernels.cu`) to one fatbin with nvcc.  The build scripts of all crates that have
//! kernels share this file.
//!
//! The kernels are compiled when the crate is built, not by NVRTC at run time.  So ptxas checks every kernel even on
//! machines without a GPU, and the binary needs no compiler library.  The fatbin contains machine code for sm_80 and
//! sm_90, and PTX that the driver compiles for newer GPUs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The newest toolkit whose PTX is accepted by the drivers of CUDA 13.0 (580).  A driver refuses PTX that is newer than
/// itself, and Candle's kernels are PTX on every GPU.
const NEWEST: (u32, u32) = (13, 0);
const TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"];
/// Environment variable that allows an nvcc newer than [`NEWEST`].
const ANY_NVCC: &str = "MACRL_ANY_NVCC";

/// Compiles `kernels.cu` of the first folder to `kernels.fatbin` in cargo's OUT_DIR; included files may be in any of
/// the folders.  Does nothing without the feature `cuda`.
pub(crate) fn compile(folders: &[&str]) -> Result<(), String> {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    for entry in folders.iter().flat_map(std::fs::read_dir).flatten().flatten() {
        println!("cargo:rerun-if-changed={}", entry.path().display());
    }
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", ANY_NVCC] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if std::env::var_os(ANY_NVCC).is_none()
        && let Some((major, minor)) = version(&nvcc())
        && (major, minor) > NEWEST
    {
        return Err(format!(
            "the feature `cuda` expects nvcc {}.{}, found {major}.{minor}, whose PTX driver 580 refuses; name \
             another by NVCC or CUDA_HOME, or set {ANY_NVCC}=1 to build for newer drivers only",
            NEWEST.0, NEWEST.1
        ));
    }
    let source = Path::new(folders[0]).join("kernels.cu");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("kernels.fatbin");
    let mut nvcc = Command::new(nvcc());
    nvcc.args(["-std=c++17", "-O3", "-fatbin", "-o"]).arg(&out).arg(&source);
    for target in TARGETS {
        nvcc.args(["-gencode", target]);
    }
    for folder in folders {
        nvcc.arg("-I").arg(folder);
    }
    match nvcc.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("nvcc could not compile {}: {status}", source.display())),
        Err(why) => Err(format!("the feature `cuda` needs nvcc (NVCC, CUDA_HOME or PATH): {why}")),
    }
}

/// Parses (13, 0) from nvcc's "Cuda compilation tools, release 13.0, V13.0.88".
fn version(nvcc: &Path) -> Option<(u32, u32)> {
    let said = Command::new(nvcc).arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let (major, rest) = said.split_once("release ")?.1.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn nvcc() -> PathBuf {
    let home =
        || Some(PathBuf::from(std::env::var_os("CUDA_HOME").or(std::env::var_os("CUDA_PATH"))?).join("bin/nvcc"));
    std::env::var_os("NVCC").map(PathBuf::from).or_else(home).unwrap_or_else(|| "nvcc".into())
}
