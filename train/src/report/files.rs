//! Reads files that a run need not have.

use std::path::Path;

use anyhow::{Context, Result};

/// The file's text, or nothing where there is no file.
pub(super) fn optional(path: &Path) -> Result<Option<String>> {
    match std::fs::read(path) {
        // A last character that was cut off must not make the rest unreadable.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}
