//! Lists the image files of a folder with the ids, labels and metadata of their items.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use macrl_bundle::folder::{self, LabelFrom, READ, Reason, Split, Summary, arrange, walk};
use serde_json::Value;

use crate::index::JsonMap;

/// Which folder gives an image its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Labels {
    /// The rule of training: the first folder below train/, val/ and the like, or below the folder itself
    #[default]
    First,
    /// The folder that holds the file
    Parent,
    /// No labels
    None,
}

/// An image file.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFile {
    /// Its item's id: the path below the source's folder, after the source's prefix if it has one.
    pub id: String,
    /// Its class, if the folders tell it.
    pub label: Option<String>,
    /// Path of the file on disk.
    pub path: PathBuf,
    /// Training, validation or test, if the folders tell it.
    pub split: Option<Split>,
}

impl ImageFile {
    /// Its item's metadata: `label` and `split`, if they are known, and `file`.
    pub fn metadata(&self) -> JsonMap {
        let mut metadata = JsonMap::new();
        if let Some(label) = &self.label {
            metadata.insert("label".into(), label.clone().into());
        }
        if let Some(split) = self.split {
            metadata.insert("split".into(), split.name().into());
        }
        let file = folder::text(Path::new(self.path.file_name().unwrap_or(OsStr::new(""))));
        metadata.insert("file".into(), Value::String(file));
        metadata
    }
}

/// The images of a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFolder {
    /// In the order of their paths.
    pub images: Vec<ImageFile>,
    /// Files and folders that were left out.
    pub left_out: Summary,
}

impl ImageFolder {
    /// Whether all files were found: no folder was unreadable and no link was broken, as on a disk that is not mounted.
    pub fn complete(&self) -> bool {
        [Reason::Unreadable, Reason::Broken].iter().all(|reason| self.left_out.count(*reason) == 0)
    }
}

/// Lists the image files below `folder`.  Ids and labels are relative to `root`, which is `folder` or a folder around it.
///
/// # Errors
/// A folder that cannot be read or that holds no image; the message says what it holds instead.
pub fn read_image_folder(folder: &Path, root: &Path, labels: Labels) -> Result<ImageFolder> {
    let found = walk(root).with_context(|| format!("cannot read the folder {}", root.display()))?;
    let from = match labels {
        Labels::First => LabelFrom::First,
        Labels::Parent => LabelFrom::Parent,
        Labels::None => LabelFrom::Nothing,
    };
    let layout = arrange(&found.images, from);
    let all = found.images.iter().enumerate().filter(|(_, image)| image.path.starts_with(folder));
    let images: Vec<ImageFile> = all
        .map(|(number, image)| ImageFile {
            id: folder::text(image.relative()),
            label: layout.label(number).map(str::to_string),
            path: image.path.clone(),
            split: layout.assignments[number].split,
        })
        .collect();
    if images.is_empty() {
        let left_out = if found.summary.is_empty() { String::new() } else { format!("; it holds {}", found.summary) };
        bail!("{} holds no images ({READ}){left_out}", folder.display());
    }
    Ok(ImageFolder { images, left_out: found.summary })
}
