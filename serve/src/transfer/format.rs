//! The file formats, and which files may be replaced.

use std::path::Path;

use anyhow::Result;

use super::{npy, parquet};
use crate::arguments::UsageError;

/// A file format.
#[derive(Clone, Copy)]
pub(super) enum Format {
    Npy,
    Parquet,
}

impl Format {
    /// The format that a file's name says.
    pub(super) fn of(file: &Path) -> Result<Self> {
        match file.extension().and_then(|e| e.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("parquet") => Ok(Self::Parquet),
            _ => Err(UsageError(format!("expected FILE.parquet or FILE.npy, found {}", file.display())).into()),
        }
    }

    /// Checks that no file would be replaced that an export did not write.
    pub(super) fn check_output(self, file: &Path) -> Result<()> {
        let (existing, is_own) = match self {
            Self::Npy => (npy::existing(file), npy::is_own(file)),
            Self::Parquet => (file.symlink_metadata().is_ok().then(|| file.to_path_buf()), parquet::is_own(file)),
        };
        match existing.filter(|_| !is_own) {
            None => Ok(()),
            Some(existing) => {
                let said = "is there and `macrl-serve export` did not write it: name another file, or move it away";
                Err(UsageError(format!("{} {said}", existing.display())).into())
            }
        }
    }
}
