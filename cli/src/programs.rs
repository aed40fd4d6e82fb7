//! The three programs, and a folder for what lies between two of them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// A mistake in the arguments: exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A program ended with this exit code, and has said why.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) u8);

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "exit code {}", self.0)
    }
}

impl std::error::Error for Ended {}

/// A program of ours: the one beside this one, or on the PATH.
pub(crate) fn program(name: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().map(|this| this.with_file_name(name));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| name.into())
}

/// Runs a program until it ends; its output is ours.
///
/// # Errors
/// [`Ended`] with its exit code, or a program that cannot be started.
pub(crate) fn run<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    wait(name, Command::new(program(name)).args(arguments))
}

/// The same without the program's results on stdout; what it says on stderr stays.
///
/// # Errors
/// As [`run`].
pub(crate) fn quietly<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    wait(name, Command::new(program(name)).args(arguments).stdout(Stdio::null()))
}

fn wait(name: &str, command: &mut Command) -> Result<()> {
    let status = command.status();
    let status =
        status.with_context(|| format!("cannot start {name}; it belongs beside this program or on the PATH"))?;
    match status.success() {
        true => Ok(()),
        false => Err(Ended(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)).into()),
    }
}

/// A folder for temporary files, removed at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new folder in the system's place for such.
    ///
    /// # Errors
    /// It cannot be created.
    pub(crate) fn new() -> Result<Self> {
        let stem = std::env::temp_dir().join(format!("macrl-{}", std::process::id()));
        let path = (0..100).map(|i| stem.with_extension(i.to_string())).find(|path| std::fs::create_dir(path).is_ok());
        let path = path.with_context(|| format!("cannot create a folder in {}", std::env::temp_dir().display()))?;
        Ok(Scratch(path))
    }

    /// Path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
