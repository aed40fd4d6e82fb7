//! The images of a folder as items: their ids, labels and metadata.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use macrl_bundle::folder::{self, LabelFrom, READ, Reason, Split, Summary, arrange, walk};
use serde_json::Value;

use crate::index::Metadata;

/// Where a picture's label comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Labels {
    /// The rule of training: the first folder below train/, val/ and the like, or below the folder itself.
    #[default]
    First,
    /// The folder that holds the file.
    Parent,
    /// No labels.
    None,
}

/// One image file.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Path below the source's folder, with `/`, behind the source's prefix where it has one.
    pub id: String,
    /// Its class, where the folders say so.
    pub label: Option<String>,
    /// Where it lies.
    pub path: PathBuf,
    /// Training, validation or test, where the folders say so.
    pub split: Option<Split>,
}

impl Picture {
    /// What its item knows about it: `{"label", "split", "file"}`, as far as there are any.
    pub fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
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

/// What a folder holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Pictures {
    /// In the order of their paths.
    pub list: Vec<Picture>,
    /// What is not among them.
    pub left_out: Summary,
}

impl Pictures {
    /// Whether all files were seen: no folder that cannot be read, no link to a disk that is not mounted.
    pub fn complete(&self) -> bool {
        [Reason::Unreadable, Reason::Broken].iter().all(|reason| self.left_out.count(*reason) == 0)
    }
}

/// The image files below `folder`.  Ids and labels are those that they have as part of `root`, which is `folder` itself
/// or a folder around it.
///
/// # Errors
/// A folder that cannot be read, or holds no image; the message names what it holds instead.
pub fn pictures(folder: &Path, root: &Path, labels: Labels) -> Result<Pictures> {
    let found = walk(root).with_context(|| format!("cannot read the folder {}", root.display()))?;
    let from = match labels {
        Labels::First => LabelFrom::First,
        Labels::Parent => LabelFrom::Parent,
        Labels::None => LabelFrom::Nothing,
    };
    let layout = arrange(&found.images, from);
    let all = found.images.iter().enumerate().filter(|(_, image)| image.path.starts_with(folder));
    let list: Vec<Picture> = all
        .map(|(number, image)| Picture {
            id: folder::text(image.relative()),
            label: layout.label(number).map(str::to_string),
            path: image.path.clone(),
            split: layout.places[number].split,
        })
        .collect();
    if list.is_empty() {
        let left_out = if found.summary.is_empty() { String::new() } else { format!("; it holds {}", found.summary) };
        bail!("{} holds no images ({READ}){left_out}", folder.display());
    }
    Ok(Pictures { list, left_out: found.summary })
}
