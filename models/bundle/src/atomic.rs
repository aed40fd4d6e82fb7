//! Atomic writing of files and folders: written under a temporary name, synced, then renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A temporary name in the folder of `path` that no other writer uses.
fn sibling(path: &Path, role: &str) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{role}-{}-{number}", std::process::id()))
}

/// A file that is written under a temporary name; removed on drop unless it is [persisted].
///
/// [persisted]: Temporary::persist
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    place: PathBuf,
}

impl Temporary {
    /// A temporary name for a file at `place`; no file is created yet.
    pub fn beside(place: &Path) -> Self {
        Temporary { path: sibling(place, "tmp"), place: place.to_path_buf() }
    }

    /// The temporary path to write to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the file, empty.
    ///
    /// # Errors
    /// The I/O error; for example a missing folder.
    pub fn create(&self) -> io::Result<File> {
        File::create_new(&self.path)
    }

    /// Creates the file, empty, so that only its owner can read it; for a library that then opens it by its name.
    ///
    /// # Errors
    /// As for [`Temporary::create`].
    pub fn create_private(&self) -> io::Result<()> {
        create_private(&self.path)
    }

    /// Renames the file to its final path, replacing an existing file.
    ///
    /// # Errors
    /// The I/O error; an existing file is then unchanged.
    pub fn persist(self) -> io::Result<()> {
        fs::rename(&self.path, &self.place)?;
        sync_dir(parent(&self.place))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // fails after `persist`, when the file has its final name
    }
}

/// Creates an empty file that only its owner can read.
///
/// # Errors
/// The I/O error; `AlreadyExists` for a file or a link that exists.
pub fn create_private(path: &Path) -> io::Result<()> {
    File::options().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Makes renames in `dir` durable, where the file system can sync folders.
///
/// # Errors
/// The I/O error, unless the file system cannot sync folders at all.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        // Some network and user-space file systems cannot sync folders.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}

/// Writes `bytes` to `path`, replacing an existing file; a reader sees the old or the new content, never a part.
///
/// ```
/// let dir = tempfile::tempdir()?;
/// let file = dir.path().join("numbers.json");
/// macrl_bundle::atomic::write_file(&file, b"[1, 2]")?;
/// assert_eq!(std::fs::read(&file)?, b"[1, 2]");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// The I/O error; the temporary file is then removed, and `path` is unchanged.
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

/// Makes `to` a hard link to `from`, replacing an existing file; a copy on file systems without hard links.  `from`
/// must only ever be replaced, never modified in place.
///
/// # Errors
/// The I/O error; `to` is then unchanged.
pub fn link_file(from: &Path, to: &Path) -> io::Result<()> {
    let temporary = sibling(to, "tmp");
    // Not `fs::copy`, which follows a link that somebody put there.
    let copy = || io::copy(&mut File::open(from)?, &mut File::create_new(&temporary)?).map(|_| ());
    let linked = fs::hard_link(from, &temporary).or_else(|_| copy());
    let moved = linked.and_then(|()| fs::rename(&temporary, to));
    if moved.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    moved
}

/// Removes the temporary files that killed writers left in `dir`.  No writer may be active there.
///
/// # Errors
/// The I/O error of the folder or of a file that cannot be removed.
pub fn sweep(dir: &Path) -> io::Result<()> {
    sweep_those(dir, |_| true)
}

/// Removes the temporary files that killed writers of the file `name` left in `dir`; other files are kept.
///
/// # Errors
/// The I/O error of the folder or of a file that cannot be removed.
pub fn sweep_of(dir: &Path, name: &str) -> io::Result<()> {
    let beginning = format!(".{name}.tmp-");
    sweep_those(dir, |leftover| leftover.strip_prefix(&beginning).is_some_and(|end| !end.contains('.')))
}

fn sweep_those(dir: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_file() && is_leftover(&name) && wanted(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a name is exactly one that [`write_file`] uses before it renames: `.NAME.tmp-PROCESS-NUMBER`.
fn is_leftover(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let numbers = name.strip_prefix('.').and_then(|n| n.rsplit_once(".tmp-")).and_then(|(_, n)| n.split_once('-'));
    numbers.is_some_and(|(process, count)| number(process) && number(count))
}

/// Runs `fill` on an empty temporary folder beside `dir` (on the same file system), then renames the folder to `dir`.
///
/// # Errors
/// `fill`'s error, or the I/O error, for example if `dir` exists and is not empty.  The temporary folder is removed.
pub fn create_dir<T, E: From<io::Error>>(dir: &Path, fill: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E> {
    fs::create_dir_all(parent(dir))?;
    let temporary = sibling(dir, "tmp");
    fs::create_dir(&temporary)?;
    let result = fill(&temporary).and_then(|value| {
        sync_dir(&temporary)?;
        fs::rename(&temporary, dir)?;
        sync_dir(parent(dir))?;
        Ok(value)
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    result
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
    fn sweeping_removes_only_what_killed_writers_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_file(&path, b"one").unwrap();
        fs::write(sibling(&path, "tmp"), b"tw").unwrap();
        let others = [".a.tmp-1", ".a.tmp-b-1", ".hidden", ".notes.tmp-today", "a.tmp-1-2"];
        others.iter().for_each(|name| fs::write(dir.path().join(name), b"").unwrap());
        sweep_of(dir.path(), "b.json").unwrap();
        assert_eq!(names(dir.path()).len(), others.len() + 2);
        sweep_of(dir.path(), "a.json").unwrap();
        assert_eq!(names(dir.path()).len(), others.len() + 1);
        fs::write(sibling(&path, "tmp"), b"tw").unwrap();
        sweep(dir.path()).unwrap();
        assert_eq!(
            names(dir.path()),
            [&others[..], &["a.json"]]
                .concat()
                .into_iter()
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_second_name_keeps_the_content_when_the_first_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (path, second) = (dir.path().join("a"), dir.path().join("b"));
        write_file(&path, b"one").unwrap();
        fs::write(&second, b"old").unwrap();
        link_file(&path, &second).unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!((fs::read(&second).unwrap(), names(dir.path())), (b"one".to_vec(), vec!["a".into(), "b".into()]));
        assert!(link_file(&dir.path().join("gone"), &second).is_err());
        assert_eq!(names(dir.path()), ["a", "b"]);
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("bundle");
        let failed: io::Result<()> = create_dir(&target, |tmp| {
            fs::write(tmp.join("half"), b"2")?;
            Err(io::Error::other("stop"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "stop");
        assert_eq!(names(dir.path()), [""; 0]);
        create_dir(&target, |tmp| fs::write(tmp.join("new"), b"1")).unwrap();
        assert_eq!((names(dir.path()), names(&target)), (vec!["bundle".to_string()], vec!["new".to_string()]));
        assert!(create_dir(&target, |tmp| fs::write(tmp.join("other"), b"2")).is_err());
        assert_eq!((names(dir.path()), names(&target)), (vec!["bundle".to_string()], vec!["new".to_string()]));
    }
}
