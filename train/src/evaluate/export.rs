//! Features as NumPy files, for other tools.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use macrl_bundle::atomic::Temporary;
use macrl_bundle::npy;

use super::features::{Features, Split};

const PARTS: [&str; 2] = ["train", "test"];
const KINDS: [&str; 2] = ["features", "labels"];

/// Files in `folder` that [`write_features`] would replace.
pub fn in_the_way(folder: &Path, names: &[&str]) -> Vec<PathBuf> {
    let names = names.iter().flat_map(|name| PARTS.map(|part| KINDS.map(|kind| file_name(name, part, kind))));
    names.flatten().map(|name| folder.join(name)).filter(|path| path.symlink_metadata().is_ok()).collect()
}

fn file_name(name: &str, part: &str, kind: &str) -> String {
    format!("{name}-{part}-{kind}.npy")
}

/// Writes `NAME-{train,test}-{features,labels}.npy` into `folder`: features (n, D) f32, labels (n) u32.
///
/// # Errors
/// The folder or a file cannot be written.
pub fn write_features(folder: &Path, name: &str, split: &Split) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for (part, features) in PARTS.into_iter().zip([&split.train, &split.test]) {
        let file = |kind: &str| folder.join(file_name(name, part, kind));
        let Features { values, labels, dim } = features;
        let n = features.len();
        write_npy(&file(KINDS[0]), npy::header("<f4", &[n, *dim]), values.iter().map(|x| x.to_le_bytes()))?;
        write_npy(&file(KINDS[1]), npy::header("<u4", &[n]), labels.iter().map(|x| x.to_le_bytes()))?;
    }
    Ok(())
}

fn write_npy(path: &Path, header: Vec<u8>, values: impl Iterator<Item = [u8; 4]>) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let temporary = Temporary::beside(path);
        let mut file = BufWriter::new(temporary.create()?);
        file.write_all(&header)?;
        for value in values {
            file.write_all(&value)?;
        }
        file.flush()?;
        temporary.persist()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    // buffer = io.BytesIO(); np.save(buffer, np.array([[1.5, -2.0]], np.float32)); buffer.getvalue().hex()
    #[test]
    fn bytes_equal_numpy() {
        let folder = tempfile::tempdir().unwrap();
        let features = Features { values: vec![1.5, -2.0], labels: vec![3], dim: 2 };
        let split = Split { train: features.clone(), test: features };
        write_features(folder.path(), "macrl", &split).unwrap();
        let bytes = std::fs::read(folder.path().join("macrl-test-features.npy")).unwrap();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, EXPECTED);
        assert!(folder.path().join("macrl-train-labels.npy").exists());
    }
    const EXPECTED: &str = "934e554d5059010076007b276465736372273a20273c6634272c2027666f727472616e5f6f72646572273a2046616c73652c20277368617065273a2028312c2032292c207d202020202020202020202020202020202020202020202020202020202020202020202020202020202020202020202020202020202020202020200a0000c03f000000c0";
}
