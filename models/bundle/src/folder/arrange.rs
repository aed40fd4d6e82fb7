//! Assigns images to splits and classes by their paths; training and the server use the same rule.
//!
//! 1. **A wrapper folder around everything is skipped** if class folders or splits are below it.
//! 2. **A level whose folders are splits** (see [`Node::level`]) divides the images.  Folders beside the splits are
//!    excluded.  Without such a level the images have no splits; a class may then be called "train" or "test".
//! 3. **The class is the first folder below**, at any depth of the image.  A single folder whose name is not a class
//!    (`images`, `unknown`) or repeats the split (`seg_train/seg_train`) is skipped.  Images beside class folders have
//!    no class.  `masks` beside `images` are excluded.
//! 4. **A class folder may contain the splits** (`cat/train`, `cat/test`).
//! 5. A class of a held-out split whose name differs from a training class only in capitals is that class.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tree::{Level, Node, folders_of, is_plain};
use super::{Image, Split, class_name, escape};

/// Which folder name becomes the label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LabelFrom {
    /// The first folder below the splits, as in training.
    #[default]
    First,
    /// The folder that contains the image: `Rome trip` for `2019/Rome trip/x.jpg`.
    Parent,
    /// None: images get no labels.
    Nothing,
}

/// Split and class of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// `None` if the images are not divided into splits.
    pub split: Option<Split>,
    /// Beside the splits: used neither for training nor for evaluation.
    pub excluded: bool,
    /// Index into [`Arrangement::classes`]; `None` without a class.
    pub class: Option<u32>,
}

/// Images that were excluded because they are beside the splits or the classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excluded {
    /// Name of the folder; `None` for images that are in no sub-folder.
    pub folder: Option<String>,
    /// Number of images.
    pub images: usize,
}

/// Splits and classes of all images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrangement {
    /// One assignment for each image, in the order of the images.
    pub assignments: Vec<Assignment>,
    /// Class names, sorted by folder name.
    pub classes: Vec<String>,
    /// The excluded folders and loose images.
    pub excluded: Vec<Excluded>,
}

impl Arrangement {
    /// The class name of image `number`.
    pub fn label(&self, number: usize) -> Option<&str> {
        let class = self.assignments.get(number)?.class?;
        self.classes.get(class as usize).map(String::as_str)
    }
}

/// Assigns the images of a walk to splits and classes.
pub fn arrange(images: &[Image], from: LabelFrom) -> Arrangement {
    let paths: Vec<&Path> = images.iter().map(Image::relative).collect();
    of_paths(&paths, from)
}

/// [`arrange`] for paths relative to the root.
pub(super) fn of_paths(paths: &[&Path], from: LabelFrom) -> Arrangement {
    let root = Node::of(paths.iter().copied());
    let nowhere = Found { split: None, excluded: false, class: None, depth: 0 };
    let mut arranger = Arranger { found: vec![nowhere; paths.len()], excluded: Vec::new() };
    arranger.top(&root);
    let Arranger { mut found, excluded } = arranger;
    for (found, path) in found.iter_mut().zip(paths) {
        match from {
            LabelFrom::First => {}
            LabelFrom::Nothing => found.class = None,
            LabelFrom::Parent if found.excluded => {}
            LabelFrom::Parent => {
                let folders: Vec<&[u8]> = folders_of(path).skip(found.depth).collect();
                found.class = folders.into_iter().rfind(|name| !is_plain(name));
            }
        }
    }
    if found.iter().any(|f| f.split.is_some()) {
        found.iter_mut().filter(|f| !f.excluded && f.split.is_none()).for_each(|f| f.split = Some(Split::Train));
    }
    merge_capitals(&mut found);
    named(found, excluded)
}

/// An assignment in progress: the class is still a folder name.
#[derive(Clone, Copy)]
struct Found<'a> {
    split: Option<Split>,
    excluded: bool,
    class: Option<&'a [u8]>,
    /// Number of leading path components that are wrappers or splits.
    depth: usize,
}

struct Arranger<'a> {
    found: Vec<Found<'a>>,
    excluded: Vec<Excluded>,
}

impl<'a> Arranger<'a> {
    fn top(&mut self, root: &Node<'a>) {
        let (node, depth, beside) = skip_wrappers(root);
        match node.level() {
            Some(level) => {
                self.exclude(None, &beside);
                self.splits(node, &level, depth);
            }
            None => self.classes(node, None, depth),
        }
    }

    fn splits(&mut self, node: &Node<'a>, level: &Level<'a>, depth: usize) {
        let inside = |name: &&[u8]| node.children.get(*name).filter(|n| n.children.len() > 1);
        let classes: BTreeSet<&[u8]> =
            level.splits.keys().filter_map(inside).flat_map(|n| n.children.keys().copied()).collect();
        for (name, child) in &node.children {
            match level.splits.get(name) {
                Some(split) => self.split(child, *split, depth + 1, &classes),
                None => self.exclude(Some(name), &child.all()),
            }
        }
        self.exclude(None, &node.loose);
    }

    /// `classes` are the known class names, if a split has class folders.
    fn split(&mut self, node: &Node<'a>, split: Split, mut depth: usize, classes: &BTreeSet<&[u8]>) {
        if split == Split::Train
            && let Some(level) = node.level().filter(Level::is_whole)
        {
            return self.splits(node, &level, depth);
        }
        let mut node = node;
        while let Some((name, child)) = node.only() {
            let repeats = str::from_utf8(name).is_ok_and(|n| Split::within(n).is_some());
            let around = classes.is_empty() && !child.children.is_empty() && skip_wrappers(node).1 > 0;
            if classes.contains(name) || !(is_plain(name) || repeats || around) {
                break;
            }
            (node, depth) = (child, depth + 1);
        }
        self.classes(node, Some(split), depth);
    }

    fn classes(&mut self, node: &Node<'a>, split: Option<Split>, depth: usize) {
        let annotations = node.annotations();
        for name in &annotations {
            node.children.get(name).into_iter().for_each(|child| self.exclude(Some(name), &child.all()));
        }
        let children = node.children.iter().filter(|(name, _)| !annotations.contains(name));
        let children: Vec<_> = children.collect();
        self.assign(&node.loose, split, None, depth);
        match children[..] {
            [(name, child)] if is_plain(name) && !annotations.is_empty() => self.classes(child, split, depth + 1),
            _ => children.into_iter().for_each(|(name, child)| self.class(name, child, split, depth)),
        }
    }

    fn class(&mut self, name: &'a [u8], node: &Node<'a>, split: Option<Split>, depth: usize) {
        match node.level().filter(|level| split.is_none() && level.is_whole()) {
            Some(level) => {
                for (inner, child) in &node.children {
                    match level.splits.get(inner) {
                        Some(split) => self.assign(&child.all(), Some(*split), Some(name), depth),
                        None => self.exclude(Some(inner), &child.all()),
                    }
                }
                self.assign(&node.loose, Some(Split::Train), Some(name), depth);
            }
            None => self.assign(&node.all(), split, Some(name), depth),
        }
    }

    fn assign(&mut self, images: &[usize], split: Option<Split>, class: Option<&'a [u8]>, depth: usize) {
        images.iter().for_each(|i| self.found[*i] = Found { split, excluded: false, class, depth });
    }

    fn exclude(&mut self, folder: Option<&[u8]>, images: &[usize]) {
        if images.is_empty() {
            return;
        }
        images.iter().for_each(|i| self.found[*i].excluded = true);
        self.excluded.push(Excluded { folder: folder.map(escape), images: images.len() });
    }
}

/// Skips wrapper folders: returns the first folder that is not one, the number of skipped folders, and the images
/// beside them.
fn skip_wrappers<'n, 'a>(root: &'n Node<'a>) -> (&'n Node<'a>, usize, Vec<usize>) {
    let (mut node, mut depth, mut beside, mut plain) = (root, 0, Vec::new(), false);
    while let Some((name, child)) = node.children.iter().next().filter(|_| node.children.len() == 1) {
        // A single `train` folder ends the search, unless it contains the splits.
        let goes_on = node.level().is_none() || child.level().is_some_and(|level| level.is_whole());
        if !goes_on {
            break;
        }
        beside.extend(&node.loose);
        (node, depth, plain) = (child, depth + 1, is_plain(name));
    }
    let classes = beside.is_empty() && (plain || (node.loose.is_empty() && node.children.len() > 1));
    match node.level().is_some() || classes {
        true => (node, depth, beside),
        false => (root, 0, Vec::new()),
    }
}

/// Gives held-out images the training class whose name differs only in capitals, if there is exactly one.
fn merge_capitals(found: &mut [Found]) {
    let mut training: BTreeMap<Vec<u8>, BTreeSet<&[u8]>> = BTreeMap::new();
    for class in found.iter().filter(|f| f.split == Some(Split::Train)).filter_map(|f| f.class) {
        training.entry(lower_case(class)).or_default().insert(class);
    }
    for held in found.iter_mut().filter(|f| matches!(f.split, Some(Split::Validation | Split::Test))) {
        let Some(class) = held.class else { continue };
        let Some(alike) = training.get(&lower_case(class)) else { continue };
        if let (Some(only), 1) = (alike.first(), alike.len()) {
            held.class = Some(only);
        }
    }
}

/// The name in lower case.
fn lower_case(name: &[u8]) -> Vec<u8> {
    str::from_utf8(name).map_or_else(|_| name.to_ascii_lowercase(), |name| name.to_lowercase().into_bytes())
}

fn named(found: Vec<Found>, excluded: Vec<Excluded>) -> Arrangement {
    let names: BTreeSet<&[u8]> = found.iter().filter_map(|f| f.class).collect();
    let numbers: BTreeMap<&[u8], u32> = names.iter().copied().zip(0..).collect();
    let assignment = |f: Found| Assignment {
        split: f.split,
        excluded: f.excluded,
        class: f.class.and_then(|c| numbers.get(c).copied()),
    };
    let classes = names.iter().map(|name| class_name(&escape(name))).collect();
    Arrangement { assignments: found.into_iter().map(assignment).collect(), classes, excluded }
}
