//! A split -> PNG files in class sub-folders, for looking at and for programs that want files.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::Dataset;

/// Sub-folder of images without a label.
const UNLABELLED: &str = "unlabelled";

/// Writes up to `limit_per_class` images of each class (0: all) to `out/CLASS/INDEX.png`; returns how many, and which
/// could not be read and why.
///
/// # Errors
/// When a file cannot be written.
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
        let file = folder.join(format!("{index:06}.png"));
        image.save(&file).with_context(|| format!("cannot write {}", file.display()))?;
        *count += 1;
        written += 1;
    }
    Ok((written, unreadable))
}

/// A class name as the name of one folder.
fn folder_name(label: Option<u32>, classes: &[String]) -> String {
    let Some(label) = label else { return UNLABELLED.into() };
    let name = classes.get(label as usize).cloned().unwrap_or_else(|| label.to_string());
    let safe: String = name.chars().map(|c| if c == '/' || c == '\\' || c.is_control() { '_' } else { c }).collect();
    if safe.starts_with('.') { format!("_{safe}") } else { safe }
}
