//! Files and folders that appear whole or not at all: written beside their place, synced, renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A name beside `path` that no other writer uses.
fn sibling(path: &Path, role: &str) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{role}-{}-{number}", std::process::id()))
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// A rename is durable once the folder that holds the name is.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes `bytes` to `path`, replacing what is there; a reader sees the old content or the new one, never a part.
///
/// # Errors
/// What the system says; the temporary file is removed and `path` is untouched.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = sibling(path, "tmp");
    let written = (|| {
        let mut file = File::create_new(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_dir(parent(path))
}

/// Removes what killed writers have left in `dir`; nobody may be writing there.
///
/// # Errors
/// What the system says.
pub fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() && is_leftover(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Whether a file's name is one that [`write_file`] gives before it renames.
fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') && name.contains(".tmp-")
}

/// Lets `fill` write into an empty folder beside `dir` (on the same file system), then puts that folder in `dir`'s
/// place.  The folder that was there is removed afterwards.
///
/// Two renames: between them `dir` does not exist, but at no time does it hold a part of the new content.
///
/// # Errors
/// `fill`'s error, or what the system says; in both cases the old folder stays.
pub fn replace_dir<T, E: From<io::Error>>(dir: &Path, fill: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E> {
    fs::create_dir_all(parent(dir))?;
    let temporary = sibling(dir, "tmp");
    fs::create_dir(&temporary)?;
    let result = fill(&temporary).and_then(|value| {
        swap_in(&temporary, dir)?;
        Ok(value)
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    result
}

fn swap_in(temporary: &Path, dir: &Path) -> io::Result<()> {
    sync_dir(temporary)?;
    let old = sibling(dir, "old");
    let had_one = match fs::rename(dir, &old) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(e),
    };
    if let Err(e) = fs::rename(temporary, dir) {
        if had_one {
            let _ = fs::rename(&old, dir);
        }
        return Err(e);
    }
    sync_dir(parent(dir))?;
    if had_one {
        let _ = fs::remove_dir_all(&old);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(dir.path()), ["a.json"]);
        assert!(write_file(&dir.path().join("missing/a"), b"x").is_err());
    }

    #[test]
    fn what_killed_writers_left_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_file(&path, b"one").unwrap();
        fs::write(sibling(&path, "tmp"), b"tw").unwrap();
        fs::write(dir.path().join(".hidden"), b"").unwrap();
        sweep(dir.path()).unwrap();
        assert_eq!(names(dir.path()), [".hidden", "a.json"]);
    }

    #[test]
    fn a_folder_is_replaced_whole_or_kept() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("bundle");
        replace_dir(&target, |tmp| fs::write(tmp.join("old"), b"1")).unwrap();
        let failed: io::Result<()> = replace_dir(&target, |tmp| {
            fs::write(tmp.join("half"), b"2")?;
            Err(io::Error::other("stop"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "stop");
        assert_eq!(names(&target), ["old"]);
        replace_dir(&target, |tmp| fs::write(tmp.join("new"), b"3")).unwrap();
        assert_eq!(names(&target), ["new"]);
        assert_eq!(names(dir.path()), ["bundle"]);
    }
}
