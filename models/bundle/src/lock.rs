//! One writer at a time in a folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// File in the folder that is locked; hidden, and gone when its holder ends in order.
pub const LOCK: &str = ".macrl.lock";

/// Why a folder cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else writes there.
    #[error("{dir} is being written by {holder}")]
    Held {
        /// The folder.
        dir: PathBuf,
        /// Process, machine and command.
        holder: String,
    },
    /// The lock's file cannot be made.
    #[error("cannot write {0}: {1}")]
    Io(PathBuf, io::Error),
}

/// A folder's lock; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    /// `None` on a file system without locks.
    file: Option<File>,
    path: PathBuf,
}

impl Lock {
    /// Locks a folder for `command` or says who holds it; never waits.
    ///
    /// # Errors
    /// [`LockError`].
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
                // Some network file systems have no locks: better a run without one than none.
                Err(TryLockError::Error(_)) => return Ok(Lock { file: None, path }),
            }
            // Its former holder may have removed the file between our opening and locking it.
            if is_at(&file, &path) {
                sign(&mut file, command).map_err(io)?;
                return Ok(Lock { file: Some(file), path });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is still held; it is let go when the file is closed.
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

/// What the holder has written of itself.
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
        // What a killed holder left is no lock.
        std::fs::write(dir.path().join(LOCK), "process 1 (killed), and a longer line than the next holder's").unwrap();
        let again = Lock::take(dir.path(), "x").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join(LOCK)).unwrap().lines().count(), 1);
        drop(again);
        assert!(matches!(Lock::take(&dir.path().join("none"), "x"), Err(LockError::Io(..))));
    }
}
