//! Files of a run that a report can do without.

use std::path::Path;

use anyhow::{Context, Result};

/// The file's text, or nothing where there is no file.
pub(super) fn optional(path: &Path) -> Result<Option<String>> {
    match std::fs::read(path) {
        // A cut-off last character must not hide the rest.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}
