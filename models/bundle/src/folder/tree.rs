//! The folders that hold images, as a tree of names.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::split::Split;

/// Folders that say where the images are, and not what they show.
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
/// Pictures that annotate the images beside them.
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

/// One folder with images in it or below it.
#[derive(Debug, Default)]
pub(super) struct Node<'a> {
    /// By name.
    pub(super) children: BTreeMap<&'a [u8], Node<'a>>,
    /// Numbers of the images in the folder itself.
    pub(super) loose: Vec<usize>,
    /// Images in it and below it.
    pub(super) count: usize,
}

/// Folders of one level that are splits.
pub(super) struct Level<'a> {
    pub(super) splits: BTreeMap<&'a [u8], Split>,
}

impl Level<'_> {
    /// Whether there are images to train on and images to judge with.
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

    /// Numbers of all images in it and below it.
    pub(super) fn all(&self) -> Vec<usize> {
        let (mut numbers, mut open) = (Vec::with_capacity(self.count), vec![self]);
        while let Some(node) = open.pop() {
            numbers.extend(&node.loose);
            open.extend(node.children.values());
        }
        numbers
    }

    /// Its only sub-folder, where it holds nothing else.
    pub(super) fn only(&self) -> Option<(&'a [u8], &Node<'a>)> {
        match (self.loose.is_empty(), self.children.len()) {
            (true, 1) => self.children.iter().next().map(|(name, node)| (*name, node)),
            _ => None,
        }
    }

    /// Which sub-folders are splits, where they are:
    ///
    /// - all of them are named so and nothing else (`train`, `Test_Set`), or
    /// - a training split is beside a validation or test split, by names that say nothing else (the other folders are
    ///   left aside) or that share the rest (`seg_train`, `seg_test`), or
    /// - the training split is the only folder with class folders in it.
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

    /// Sub-folders that annotate the images in a plain folder beside them (`images/` and `masks/`).
    pub(super) fn annotations(&self) -> Vec<&'a [u8]> {
        if !self.children.keys().any(|name| is_plain(name)) {
            return Vec::new();
        }
        self.children.keys().copied().filter(|name| is_one_of(name, &ANNOTATIONS)).collect()
    }
}

/// The names of the folders above a file.
pub(super) fn folders_of(path: &Path) -> impl Iterator<Item = &[u8]> {
    let parts = path.parent().unwrap_or(Path::new("")).components();
    parts.filter_map(|part| match part {
        Component::Normal(name) => Some(OsStr::as_bytes(name)),
        _ => None,
    })
}

/// Whether a folder's name says nothing about what its images show.
pub(super) fn is_plain(name: &[u8]) -> bool {
    is_one_of(name, &PLAIN)
}

fn is_one_of(name: &[u8], names: &[&str]) -> bool {
    let lower = name.to_ascii_lowercase();
    names.iter().any(|known| known.as_bytes() == lower)
}
