//! Records and verifies the SHA-256 of a bundle's weights and graphs.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::BundleError;
use super::model::Provenance;
use super::names::{HASHED, WEIGHTS};
use crate::owned::digest;

/// The SHA-256 of those of [`HASHED`] that a bundle's folder holds, by name: what `config.json` records.
///
/// # Errors
/// [`BundleError::Read`].
pub fn hashes(dir: &Path) -> Result<BTreeMap<String, String>, BundleError> {
    let mut found = BTreeMap::new();
    for name in HASHED {
        if let Some(hash) = hash_of(&dir.join(name))? {
            found.insert(name.to_string(), hash);
        }
    }
    Ok(found)
}

/// Checks every file whose SHA-256 is recorded.  Returns the names of those of which none is, as in bundles of earlier versions.
pub(super) fn verify(dir: &Path, recorded: &Provenance) -> Result<Vec<String>, BundleError> {
    let mut unverified = Vec::new();
    for name in [WEIGHTS].into_iter().chain(HASHED) {
        let path = dir.join(name);
        let weights = Some(&recorded.weights_sha256).filter(|_| name == WEIGHTS);
        let expected = recorded.files_sha256.get(name).or(weights).filter(|hash| is_hash(hash));
        let Some(found) = hash_of(&path)? else { continue };
        match expected {
            None => unverified.push(name.to_string()),
            Some(expected) if !expected.eq_ignore_ascii_case(&found) => {
                return Err(BundleError::Changed { path, expected: expected.clone(), found });
            }
            Some(_) => {}
        }
    }
    Ok(unverified)
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn hash_of(path: &Path) -> Result<Option<String>, BundleError> {
    digest(path).map_err(|cause| BundleError::Read { path: path.into(), cause })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::names::{ONNX, ONNX_INT8, PROBE};
    use super::*;

    #[test]
    fn a_changed_file_is_named_and_one_without_a_record_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("onnx")).unwrap();
        for name in [WEIGHTS, ONNX, PROBE] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let files_sha256 = hashes(dir.path()).unwrap();
        assert_eq!(files_sha256.keys().collect::<Vec<_>>(), [ONNX, PROBE]);
        let weights_sha256 = digest(&dir.path().join(WEIGHTS)).unwrap().unwrap();
        let recorded = Provenance { weights_sha256, files_sha256, ..Provenance::default() };
        assert_eq!(verify(dir.path(), &recorded).unwrap(), [""; 0]);
        let early = Provenance { weights_sha256: "none".into(), ..Provenance::default() };
        assert_eq!(verify(dir.path(), &early).unwrap(), [WEIGHTS, ONNX, PROBE]);
        // A file that was added later, by hand.
        fs::write(dir.path().join(ONNX_INT8), "x").unwrap();
        assert_eq!(verify(dir.path(), &recorded).unwrap(), [ONNX_INT8]);
        for name in [ONNX, PROBE, WEIGHTS] {
            fs::write(dir.path().join(name), "other").unwrap();
            let error = verify(dir.path(), &recorded).unwrap_err();
            assert!(matches!(&error, BundleError::Changed { path, .. } if path.ends_with(name)), "{error}");
            fs::write(dir.path().join(name), name).unwrap();
        }
    }
}
