//! The marker file `.macrl.json`: says which folders, and which files in them, macrl wrote.
//!
//! macrl replaces and removes only files that a marker covers.  All other files belong to the user.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{atomic, regular};

/// Name of the marker file.
pub const MARKER: &str = ".macrl.json";
/// Kind of a training run's folder.
pub const RUN: &str = "run";
/// Kind of a bundle's folder.
pub const BUNDLE: &str = "bundle";
/// Kind of the fine-tuning folder within a run's.
pub const FINETUNING: &str = "fine-tuning";

/// Kind of a folder of exported features.
pub const FEATURES: &str = "features";

/// The kind of a folder and which of its files macrl wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// `run`, `bundle`, `fine-tuning` or `features`.
    pub kind: String,
    /// Name and version of the program.
    pub written_by: String,
    /// SHA-256 (hexadecimal) of each file when it was written, by its path in the folder.  Files with fixed names are
    /// not listed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

impl Marker {
    /// A marker of this kind without listed files; `program` is the name of the writing program.
    pub fn new(kind: &str, program: &str) -> Self {
        let written_by = format!("{program} {}", env!("CARGO_PKG_VERSION"));
        Marker { kind: kind.into(), written_by, files: BTreeMap::new() }
    }

    /// The marker of a folder; `None` if the folder or the marker does not exist, or the file is not a valid marker.
    ///
    /// # Errors
    /// The I/O error of a marker file that exists but cannot be read.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        match regular::read(&dir.join(MARKER)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok().filter(Marker::stays_inside)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether every listed path stays inside the folder.
    fn stays_inside(&self) -> bool {
        let normal = |name: &String| Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
        self.files.keys().all(normal)
    }

    /// Writes the marker into the folder.
    ///
    /// # Errors
    /// The I/O error; an existing marker is then unchanged.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        atomic::write_file(&dir.join(MARKER), (text + "\n").as_bytes())
    }
}

/// The SHA-256 of a file, hexadecimal; `None` if the file does not exist.
///
/// # Errors
/// The I/O error of a file that exists but cannot be read.
pub fn digest(path: &Path) -> io::Result<Option<String>> {
    let mut file = match regular::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e),
    };
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Some(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Paths of all files below a folder, relative to it, sorted; links are listed and not followed.
///
/// # Errors
/// The I/O error of a folder that cannot be listed.
pub fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path().strip_prefix(dir).unwrap_or(&entry.path()).to_path_buf()),
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_round_trip_and_other_files_are_no_markers() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Marker::read(&dir.path().join("gone")).unwrap(), None);
        let mut marker = Marker::new(BUNDLE, "macrl-export");
        std::fs::create_dir(dir.path().join("onnx")).unwrap();
        std::fs::write(dir.path().join("onnx/a"), "abc").unwrap();
        // sha256sum of "abc"
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(&dir.path().join("onnx/a")).unwrap().as_deref(), Some(sha));
        assert_eq!(digest(&dir.path().join("b")).unwrap(), None);
        marker.files.insert("onnx/a".into(), sha.into());
        marker.write(dir.path()).unwrap();
        assert_eq!(Marker::read(dir.path()).unwrap(), Some(marker.clone()));
        assert_eq!(files_below(dir.path()).unwrap(), [Path::new(MARKER), Path::new("onnx/a")]);
        for outside in ["../a", "/etc/passwd", "a/../../b"] {
            let files = BTreeMap::from([(outside.to_string(), sha.to_string())]);
            Marker { files, ..marker.clone() }.write(dir.path()).unwrap();
            assert_eq!(Marker::read(dir.path()).unwrap(), None, "{outside}");
        }
        std::fs::write(dir.path().join(MARKER), "somebody's notes").unwrap();
        assert_eq!(Marker::read(dir.path()).unwrap(), None);
    }
}
