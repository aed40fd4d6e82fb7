//! Writes a split as PNG files in class sub-folders.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use macrl_bundle::atomic::Temporary;
use macrl_bundle::regular;

use super::dataset::Dataset;

/// Sub-folder of images without a label.
const UNLABELLED: &str = "unlabelled";

/// Writes up to `limit_per_class` images of each class (0: all) to `out/CLASS/INDEX.png`; returns how many, and which
/// could not be read and why.
///
/// # Errors
/// When a file cannot be written, or there is another one in its place.
pub fn unpack(
    split: &dyn Dataset,
    classes: &[String],
    limit_per_class: usize,
    out: &Path,
) -> Result<(usize, Vec<String>)> {
    let mut taken: HashMap<Option<u32>, usize> = HashMap::new();
    let (mut written, mut unreadable) = (0, Vec::new());
    for index in 0..split.len() {
        let label = split.label(index);
        let count = taken.entry(label).or_default();
        if limit_per_class > 0 && *count >= limit_per_class {
            continue;
        }
        let image = match split.image(index) {
            Ok(image) => image,
            Err(why) => {
                unreadable.push(format!("{}: {why:#}", split.name(index)));
                continue;
            }
        };
        let folder = out.join(folder_name(label, classes));
        if *count == 0 {
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut png = Vec::new();
        image.write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png)?;
        let file = folder.join(format!("{index:06}.png"));
        put(&file, &png)?;
        *count += 1;
        written += 1;
    }
    Ok((written, unreadable))
}

/// Writes a new file, or accepts one with the same content.  Any other file may be the user's.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    match regular::read(path) {
        Ok(there) if there == bytes => return Ok(()),
        Ok(_) => bail!("{} exists with other content: name a new folder, or move it", path.display()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(cannot),
    }
    // Not `fs::write`, which follows a link that somebody put there.
    let temporary = Temporary::beside(path);
    let written = temporary.create().and_then(|mut file| file.write_all(bytes));
    written.and_then(|()| std::fs::rename(temporary.path(), path)).with_context(cannot)
}

/// A class name as the name of one folder.
fn folder_name(label: Option<u32>, classes: &[String]) -> String {
    let Some(label) = label else { return UNLABELLED.into() };
    let name = classes.get(label as usize).cloned().unwrap_or_else(|| label.to_string());
    let safe: String = name.chars().map(|c| if c == '/' || c == '\\' || c.is_control() { '_' } else { c }).collect();
    if safe.starts_with('.') { format!("_{safe}") } else { safe }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_at_a_temporary_name_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, theirs) = (dir.path().join("000001.png"), dir.path().join("theirs"));
        std::fs::write(&theirs, "kept").unwrap();
        std::os::unix::fs::symlink(&theirs, file.with_extension("png.tmp")).unwrap();
        put(&file, b"image").unwrap();
        assert_eq!(
            (std::fs::read(&file).unwrap(), std::fs::read(&theirs).unwrap()),
            (b"image".to_vec(), b"kept".to_vec())
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        put(&file, b"image").unwrap();
        assert!(put(&file, b"other").is_err());
    }
}
