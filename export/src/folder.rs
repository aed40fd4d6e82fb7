//! A bundle's folder: checks that it is ours, and replaces an old bundle by a new one.
//!
//! A new folder is created complete, by one rename.  In an existing folder (a mounted one, or one with notes or `.git` in it)
//! the files are moved one by one, within its file system: everything is written and checked in [`NEW`], then [`NEW`] is renamed
//! to [`COMMIT`], and its files are moved out of it.  A kill before that rename leaves the old bundle.  After a later kill, readers
//! refuse the folder until the next export has finished the moves.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use macrl_bundle::atomic;
use macrl_bundle::bundle::{self, COMMIT, FILES, ModelConfig};
use macrl_bundle::lock::{Lock, LockError};
use macrl_bundle::owned::{BUNDLE, MARKER, Marker, digest, files_below};

use crate::error::Failure;

/// Sub-folder in which a bundle is written.
const NEW: &str = ".macrl-new";
/// File in [`COMMIT`] that lists the old bundle's files that the new one does not have.
const STALE: &str = ".macrl-stale.json";
/// Files of every bundle of earlier versions, which wrote no marker.
const ALWAYS: [&str; 5] = [bundle::CONFIG, bundle::WEIGHTS, bundle::PREPROCESSOR, bundle::ONNX, bundle::PARITY];

/// Paths of files in the folder, and their digests.
type Files = BTreeMap<String, String>;

/// The folder that a bundle is written to.
pub struct BundleFolder {
    dir: PathBuf,
    /// The old bundle; `None` where the folder does not exist yet.
    old: Option<Old>,
}

struct Old {
    files: Files,
    _lock: Lock,
}

impl BundleFolder {
    /// Checks a destination before any work is done.
    ///
    /// # Errors
    /// [`Failure::Usage`] where files that we did not write would be lost, or another export is writing there.
    pub fn claim(dir: &Path) -> Result<Self, Failure> {
        let dir = dir.to_path_buf();
        match std::fs::metadata(&dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return refuse(&dir, "a file"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BundleFolder { dir, old: None }),
            Err(e) => return Err(anyhow::Error::from(e).context(format!("cannot read {}", dir.display())).into()),
        }
        let lock = Lock::take(&dir, "macrl-export bundle").map_err(|why| match why {
            LockError::Held { .. } => Failure::Usage(why.to_string()),
            LockError::Io(..) => Failure::Work(why.into()),
        })?;
        finish(&dir).with_context(|| format!("cannot finish the export that was interrupted in {}", dir.display()))?;
        let swept = atomic::sweep_of(&dir, MARKER);
        swept.with_context(|| format!("cannot clear what a killed export left in {}", dir.display()))?;
        let files = old_files(&dir)?;
        Ok(BundleFolder { old: Some(Old { files, _lock: lock }), dir })
    }

    /// Lets `fill` write a bundle into an empty folder, and moves it to its place.
    ///
    /// # Errors
    /// An error of `fill` or of the file system; the old bundle is then unchanged.
    pub fn fill<T>(self, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let BundleFolder { dir, old } = self;
        let made = |at: &Path| -> Result<T> {
            let done = fill(at)?;
            marker(at)?.write(at).with_context(|| format!("cannot write {MARKER}"))?;
            Ok(done)
        };
        match old {
            None => atomic::create_dir(&dir, made),
            Some(old) => {
                let new = dir.join(NEW);
                remove(&new)?; // left by an export that was killed
                std::fs::create_dir(&new).with_context(|| format!("cannot create {}", new.display()))?;
                let done = made(&new).and_then(|done| {
                    commit(&dir, &old.files)?;
                    Ok(done)
                });
                if done.is_err() {
                    let _ = remove(&new);
                }
                let done = done?;
                finish(&dir).with_context(|| {
                    format!("{} is half replaced: the same command again finishes it", dir.display())
                })?;
                Ok(done)
            }
        }
    }
}

fn refuse<T>(dir: &Path, found: &str) -> Result<T, Failure> {
    Err(Failure::Usage(format!(
        "expected a new or empty folder, or a bundle that macrl-export wrote, at {}, found {found}; nothing was \
         changed: name another folder, or move what is yours",
        dir.display()
    )))
}

/// The files of the bundle in a folder; empty where there is none.
fn old_files(dir: &Path) -> Result<Files, Failure> {
    let work =
        |why: io::Error| Failure::Work(anyhow::Error::from(why).context(format!("cannot read {}", dir.display())));
    let files = match Marker::read(dir).map_err(work)? {
        Some(marker) if marker.kind == BUNDLE => marker.files,
        Some(marker) => return refuse(dir, &format!("the folder of a {}", marker.kind)),
        None => unmarked(dir)?,
    };
    for (name, written) in &files {
        let now = digest(&dir.join(name)).map_err(work)?;
        if now.is_some_and(|now| now != *written) {
            return refuse(dir, &format!("that {name} was changed since macrl-export wrote it"));
        }
    }
    let clash = FILES.iter().find(|name| !files.contains_key(**name) && dir.join(name).symlink_metadata().is_ok());
    match clash {
        Some(name) => refuse(dir, &format!("a {name} that macrl-export did not write")),
        None => Ok(files),
    }
}

/// The same for a folder without a marker, as earlier versions left it.
fn unmarked(dir: &Path) -> Result<Files, Failure> {
    let work =
        |why: io::Error| Failure::Work(anyhow::Error::from(why).context(format!("cannot read {}", dir.display())));
    if dir.join(MARKER).symlink_metadata().is_ok() {
        return refuse(dir, &format!("a {MARKER} that macrl did not write"));
    }
    let mut visible = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(work)? {
        let name = entry.map_err(work)?.file_name();
        // Folders of the file system itself, and names that no bundle has (`.git`), are ignored.
        if name != "lost+found" && !name.as_encoded_bytes().starts_with(b".") {
            visible.push(name);
        }
    }
    if visible.is_empty() {
        return Ok(Files::new());
    }
    match earlier(dir).map_err(work)? {
        Some(files) => Ok(files),
        None => refuse(dir, "a folder with something else in it"),
    }
}

/// The files of a bundle of an earlier version: exactly the names that an export writes, and a configuration with provenance.
fn earlier(dir: &Path) -> io::Result<Option<Files>> {
    let mut files = Files::new();
    for path in files_below(dir)? {
        let Some(name) = path.to_str().filter(|name| FILES.contains(name)) else {
            if path == Path::new(macrl_bundle::lock::LOCK) {
                continue;
            }
            return Ok(None);
        };
        let Some(sha) = digest(&dir.join(name))? else { return Ok(None) };
        files.insert(name.to_string(), sha);
    }
    let all = ALWAYS.iter().all(|name| files.contains_key(*name));
    let ours = || bundle::read_json::<ModelConfig>(&dir.join(bundle::CONFIG)).is_ok();
    Ok((all && ours()).then_some(files))
}

/// What a folder that was filled holds.
fn marker(dir: &Path) -> Result<Marker> {
    let mut marker = Marker::new(BUNDLE, "macrl-export");
    for path in files_below(dir)? {
        let name = path.to_str().context("a name of the bundle is not UTF-8")?;
        marker.files.insert(name.to_string(), digest(&dir.join(name))?.with_context(|| format!("{name} is gone"))?);
    }
    Ok(marker)
}

/// From here on the new bundle counts.
fn commit(dir: &Path, old: &Files) -> Result<()> {
    let new = dir.join(NEW);
    let names = Marker::read(&new)?.context("the new bundle has no marker")?.files;
    let stale: Files =
        old.iter().filter(|(name, _)| !names.contains_key(*name)).map(|(n, s)| (n.clone(), s.clone())).collect();
    atomic::write_file(&new.join(STALE), serde_json::to_string(&stale)?.as_bytes())?;
    std::fs::rename(&new, dir.join(COMMIT))?;
    atomic::sync_dir(dir)?;
    Ok(())
}

/// Moves what was committed to its place.  Every part of it may be done twice: a kill anywhere leaves it to the next.
fn finish(dir: &Path) -> Result<()> {
    let from = dir.join(COMMIT);
    let Some(marker) = Marker::read(&from)? else { return remove(&from) };
    for name in marker.files.keys() {
        let (staged, place) = (from.join(name), dir.join(name));
        if let Some(folder) = place.parent() {
            std::fs::create_dir_all(folder)?;
        }
        match std::fs::rename(&staged, &place) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {} // moved before the kill
            moved => moved.with_context(|| format!("cannot write {}", place.display()))?,
        }
    }
    let stale = std::fs::read(from.join(STALE)).ok().and_then(|bytes| serde_json::from_slice::<Files>(&bytes).ok());
    for (name, sha) in stale.unwrap_or_default() {
        let path = dir.join(&name);
        if digest(&path)?.as_deref() == Some(&sha) {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    marker.write(dir).with_context(|| format!("cannot write {}", dir.join(MARKER).display()))?;
    atomic::sync_dir(dir)?;
    // The marker there is what makes it a commit: it goes before the rest.
    std::fs::remove_file(from.join(MARKER))?;
    remove(&from)
}

/// Removes a folder of ours, where there is one.
fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
