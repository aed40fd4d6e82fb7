//! Reads and writes a bundle's files.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::BundleError;
use crate::{atomic, regular};

/// Writes one of the bundle's JSON files, indented and atomically.
///
/// # Errors
/// [`BundleError::Write`] or [`BundleError::Json`] (a number that JSON cannot hold).
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), BundleError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| BundleError::Json { path: path.into(), cause: e.to_string() })?;
    atomic::write_file(path, (text + "\n").as_bytes()).map_err(|cause| BundleError::Write { path: path.into(), cause })
}

/// Reads one of the bundle's JSON files.
///
/// # Errors
/// [`BundleError::Missing`], [`BundleError::Read`] or [`BundleError::Json`].
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, BundleError> {
    serde_json::from_slice(&read(path)?).map_err(|e| BundleError::Json { path: path.into(), cause: e.to_string() })
}

/// Reads a file; one that does not exist is [`BundleError::Missing`].
pub(super) fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    regular::read(path).map_err(|cause| match cause.kind() {
        std::io::ErrorKind::NotFound => BundleError::Missing(path.into()),
        _ => BundleError::Read { path: path.into(), cause },
    })
}
