//! The folders that contain images, as a tree of names.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::split::Split;

/// Folder names that do not describe what the images show.
const PLAIN: [&str; 20] = [
    "image",
    "images",
    "img",
    "imgs",
    "photo",
    "photos",
    "pic",
    "pics",
    "picture",
    "pictures",
    "jpeg",
    "jpegs",
    "jpg",
    "jpegimages",
    "png",
    "data",
    "unknown",
    "unlabeled",
    "unlabelled",
    "all",
];
/// Names of folders whose pictures annotate the images beside them.
const ANNOTATIONS: [&str; 12] = [
    "annotation",
    "annotations",
    "label",
    "labels",
    "mask",
    "masks",
    "segmentation",
    "segmentations",
    "gt",
    "groundtruth",
    "ground_truth",
    "trimaps",
];

/// A folder that contains images, directly or in sub-folders.
#[derive(Debug, Default)]
pub(super) struct Node<'a> {
    /// Sub-folders by name.
    pub(super) children: BTreeMap<&'a [u8], Node<'a>>,
    /// Indexes of the images in the folder itself.
    pub(super) loose: Vec<usize>,
    /// Number of images in the folder and below.
    pub(super) count: usize,
}

/// The sub-folders of one level that are splits.
pub(super) struct Level<'a> {
    pub(super) splits: BTreeMap<&'a [u8], Split>,
}

impl Level<'_> {
    /// Whether the level has both training and held-out images.
    pub(super) fn is_whole(&self) -> bool {
        let train = self.splits.values().filter(|split| **split == Split::Train).count();
        train > 0 && train < self.splits.len()
    }
}

impl<'a> Node<'a> {
    pub(super) fn of(paths: impl Iterator<Item = &'a Path>) -> Self {
        let mut root = Node::default();
        for (number, path) in paths.enumerate() {
            let mut node = &mut root;
            node.count += 1;
            for folder in folders_of(path) {
                node = node.children.entry(folder).or_default();
                node.count += 1;
            }
            node.loose.push(number);
        }
        root
    }

    /// Indexes of all images in the folder and below.
    pub(super) fn all(&self) -> Vec<usize> {
        let (mut numbers, mut open) = (Vec::with_capacity(self.count), vec![self]);
        while let Some(node) = open.pop() {
            numbers.extend(&node.loose);
            open.extend(node.children.values());
        }
        numbers
    }

    /// The only sub-folder, if the folder contains nothing else.
    pub(super) fn only(&self) -> Option<(&'a [u8], &Node<'a>)> {
        match (self.loose.is_empty(), self.children.len()) {
            (true, 1) => self.children.iter().next().map(|(name, node)| (*name, node)),
            _ => None,
        }
    }

    /// The sub-folders that are splits, if one of these holds:
    ///
    /// - all sub-folders have names of splits (`train`, `Test_Set`), or
    /// - a training split is beside a validation or test split; either both are named as splits only (other folders are
    ///   then excluded), or the rest of both names is the same (`seg_train`, `seg_test`), or
    /// - the training split is the only sub-folder that contains class folders.
    pub(super) fn level(&self) -> Option<Level<'a>> {
        let exact: BTreeMap<&[u8], Split> = self
            .children
            .keys()
            .filter_map(|name| Some((*name, Split::of_name(str::from_utf8(name).ok()?)?)))
            .collect();
        let has = |split: Split| exact.values().any(|s| *s == split);
        let held = has(Split::Validation) || has(Split::Test);
        let all = !exact.is_empty() && exact.len() == self.children.len();
        if all || (has(Split::Train) && (held || self.only_training_has_classes(&exact))) {
            return Some(Level { splits: exact });
        }
        self.sharing_the_rest()
    }

    fn only_training_has_classes(&self, exact: &BTreeMap<&[u8], Split>) -> bool {
        self.children.iter().all(|(name, node)| match exact.get(name) {
            Some(Split::Train) => node.loose.is_empty() && node.children.len() > 1,
            _ => node.children.is_empty(),
        })
    }

    fn sharing_the_rest(&self) -> Option<Level<'a>> {
        let mut by_rest: BTreeMap<String, BTreeMap<&'a [u8], Split>> = BTreeMap::new();
        for name in self.children.keys() {
            if let Some((split, rest)) = str::from_utf8(name).ok().and_then(Split::within) {
                by_rest.entry(rest).or_default().insert(name, split);
            }
        }
        by_rest.into_values().map(|splits| Level { splits }).find(Level::is_whole)
    }

    /// Sub-folders with annotations of the images in a plain folder beside them (`images/` and `masks/`).
    pub(super) fn annotations(&self) -> Vec<&'a [u8]> {
        if !self.children.keys().any(|name| is_plain(name)) {
            return Vec::new();
        }
        self.children.keys().copied().filter(|name| is_one_of(name, &ANNOTATIONS)).collect()
    }
}

/// The names of the folders in a file's path.
pub(super) fn folders_of(path: &Path) -> impl Iterator<Item = &[u8]> {
    let parts = path.parent().unwrap_or(Path::new("")).components();
    parts.filter_map(|part| match part {
        Component::Normal(name) => Some(OsStr::as_bytes(name)),
        _ => None,
    })
}

/// Whether a folder's name does not describe what its images show.
pub(super) fn is_plain(name: &[u8]) -> bool {
    is_one_of(name, &PLAIN)
}

fn is_one_of(name: &[u8], names: &[&str]) -> bool {
    let lower = name.to_ascii_lowercase();
    names.iter().any(|known| known.as_bytes() == lower)
}
