//! A folder that training writes into: it is locked while training writes, and files that we did not write are refused.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use macrl_bundle::lock::{Lock, LockError};
use macrl_bundle::owned::{MARKER, Marker};

use super::shared::Usage;

/// Names that a message lists at most.
const NAMED: usize = 3;

/// The right to write into a folder; the folder is locked while this value lives.
pub(super) struct Claim {
    dir: PathBuf,
    kind: &'static str,
    marked: bool,
    lock: Option<Lock>,
    /// The outermost folder that was created for it.  It is removed again if nothing is written.
    made: Option<PathBuf>,
}

impl Claim {
    /// Creates the folder where it is missing, and locks it.
    ///
    /// # Errors
    /// [`Usage`] where another process writes there, or the folder is marked as one of another kind.
    pub(super) fn take(dir: &Path, kind: &'static str, command: &str) -> Result<Self> {
        let missing = dir.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists()).last();
        let made = missing.map(Path::to_path_buf);
        let cannot = || format!("cannot write into {}", dir.display());
        std::fs::create_dir_all(dir).with_context(cannot)?;
        let mut claim = Claim { dir: dir.to_path_buf(), kind, marked: false, lock: None, made };
        claim.lock = Some(Lock::take(dir, command).map_err(|why| match why {
            LockError::Held { .. } => Usage(format!("{why}: wait until it has ended, or name another folder")).into(),
            LockError::Io(..) => anyhow::Error::from(why),
        })?);
        claim.marked = match Marker::read(dir).with_context(cannot)? {
            Some(marker) if marker.kind == kind => true,
            Some(marker) => {
                let said = format!("{} is the folder of a {}: name another one", dir.display(), marker.kind);
                return Err(Usage(said).into());
            }
            None if dir.join(MARKER).symlink_metadata().is_ok() => return Err(claim.foreign(&[dir.join(MARKER)])),
            None => false,
        };
        Ok(claim)
    }

    /// Whether the folder carries our marker: an earlier command has written there.
    pub(super) fn is_ours(&self) -> bool {
        self.marked
    }

    /// Puts our marker into the folder.
    ///
    /// # Errors
    /// The marker cannot be written.
    pub(super) fn mark(&mut self) -> Result<()> {
        if !self.marked {
            let marker = Marker::new(self.kind, "macrl-train");
            marker.write(&self.dir).with_context(|| format!("cannot write {}", self.dir.join(MARKER).display()))?;
            self.marked = true;
        }
        Ok(())
    }

    /// The error for files that we did not write and would overwrite.
    pub(super) fn foreign(&self, files: &[PathBuf]) -> anyhow::Error {
        let name = |path: &PathBuf| path.strip_prefix(&self.dir).unwrap_or(path).display().to_string();
        let mut named = files.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
        if files.len() > NAMED {
            named += &format!(" and {} more", files.len() - NAMED);
        }
        let dir = self.dir.display();
        let said = format!(
            "{dir} holds files that macrl-train did not write and would overwrite ({named}): move them away, or name \
             another folder"
        );
        Usage(said).into()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.lock = None;
        let Some(made) = self.made.take().filter(|_| !self.marked) else { return };
        for dir in self.dir.ancestors().take_while(|dir| dir.starts_with(&made)) {
            // Only empty folders are removed.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// Checks that a file to be replaced was written by us; `recognised` looks into it.
///
/// # Errors
/// [`Usage`] where it was not.
pub(super) fn check_file(path: &Path, recognised: impl FnOnce(&Path) -> bool) -> Result<()> {
    if path.symlink_metadata().is_err() || recognised(path) {
        return Ok(());
    }
    let said = format!("{} exists and was not written by macrl-train: move it away", path.display());
    Err(Usage(said).into())
}

#[cfg(test)]
mod tests {
    use macrl_bundle::owned::{BUNDLE, RUN};

    use super::*;

    #[test]
    fn a_folder_that_never_became_ours_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (outer, inner) = (dir.path().join("a"), dir.path().join("a/b"));
        drop(Claim::take(&inner, RUN, "test").unwrap());
        assert!(!outer.exists());
        let mut claim = Claim::take(&inner, RUN, "test").unwrap();
        assert!(!claim.is_ours());
        let said = Claim::take(&inner, RUN, "test").err().unwrap();
        assert!(said.is::<Usage>() && said.to_string().contains("is being written by process"), "{said}");
        claim.mark().unwrap();
        drop(claim);
        assert!(Claim::take(&inner, RUN, "test").unwrap().is_ours());
        assert!(Claim::take(&inner, BUNDLE, "test").err().unwrap().to_string().contains("the folder of a run"));
        std::fs::write(outer.join(MARKER), "my notes").unwrap();
        assert!(Claim::take(&outer, RUN, "test").err().unwrap().to_string().contains("(.macrl.json)"));
        assert_eq!(std::fs::read_to_string(outer.join(MARKER)).unwrap(), "my notes");
    }
}
