//! A lock that gives a folder one writer at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Name of the lock file: hidden, and removed when the holder ends normally.
pub const LOCK: &str = ".macrl.lock";

/// Why a folder was not locked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message shows its fields")]
pub enum LockError {
    /// Another process holds the lock.
    #[error("{dir} is being written by {holder}")]
    Held {
        dir: PathBuf,
        /// The holder's process, machine and command.
        holder: String,
    },
    /// The lock file cannot be created.
    #[error("cannot write {0}: {1}")]
    Io(PathBuf, io::Error),
}

/// A lock on a folder; the operating system releases it when the process ends, normally or not.
#[derive(Debug)]
pub struct Lock {
    /// `None` on a file system that has no locks.
    file: Option<File>,
    path: PathBuf,
}

impl Lock {
    /// Locks a folder for `command`, or returns an error that names the holder; never waits.
    ///
    /// # Errors
    /// [`LockError::Held`], or [`LockError::Io`] if the folder cannot be written.
    pub fn take(dir: &Path, command: &str) -> Result<Self, LockError> {
        let path = dir.join(LOCK);
        let io = |why| LockError::Io(path.clone(), why);
        loop {
            let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = options.map_err(io)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held { dir: dir.to_path_buf(), holder: holder(&mut file) });
                }
                // Some network file systems have no locks.  A run without a lock is better than no run.
                Err(TryLockError::Error(_)) => return Ok(Lock { file: None, path }),
            }
            // The former holder may have removed the file after it was opened here and before it was locked.
            if is_at(&file, &path) {
                sign(&mut file, command).map_err(io)?;
                return Ok(Lock { file: Some(file), path });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file is removed while the lock is still held; closing the file releases the lock.
        if self.file.is_some() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let id = |m: &std::fs::Metadata| (m.dev(), m.ino());
    matches!((file.metadata(), std::fs::metadata(path)), (Ok(a), Ok(b)) if id(&a) == id(&b))
}

fn sign(file: &mut File, command: &str) -> io::Result<()> {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let machine = if machine.trim().is_empty() { String::new() } else { format!(" on {}", machine.trim()) };
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(format!("process {}{machine} ({command})\n", std::process::id()).as_bytes())
}

/// The holder's description of itself, read from the lock file.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(1000).read_to_string(&mut text);
    match (read, text.trim()) {
        (Ok(_), said) if !said.is_empty() => said.to_string(),
        _ => "another process".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_of_the_first_and_a_lock_ends_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path(), "macrl-train pretrain").unwrap();
        let said = Lock::take(dir.path(), "another").unwrap_err().to_string();
        let expected = format!("is being written by process {}", std::process::id());
        assert!(said.contains(&expected) && said.ends_with("(macrl-train pretrain)"), "{said}");
        drop(lock);
        assert!(!dir.path().join(LOCK).exists());
        // A lock file that a killed process left is not a lock.
        std::fs::write(dir.path().join(LOCK), "process 1 (killed), and a longer line than the next holder's").unwrap();
        let again = Lock::take(dir.path(), "x").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join(LOCK)).unwrap().lines().count(), 1);
        drop(again);
        assert!(matches!(Lock::take(&dir.path().join("none"), "x"), Err(LockError::Io(..))));
    }
}
