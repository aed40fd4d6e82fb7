//! From the paths of images to splits and classes; one rule for training and for the server.
//!
//! 1. **One folder around everything is passed through** where class folders or splits lie below it.
//! 2. **A level whose folders are splits** (see [`Node::level`]) divides the images.  Folders beside the splits are left
//!    aside.  Without such a level all images are one whole; a class may be called "train" or "test" then.
//! 3. **A class is the first folder below**, whatever lies deeper.  A single folder that says nothing (`images`,
//!    `unknown`) or repeats the split (`seg_train/seg_train`) is passed through; images beside class folders have no
//!    class; `masks` beside `images` are left aside.
//! 4. **A class folder may hold the splits itself** (`cat/train`, `cat/test`).
//! 5. A class of a held-out split that differs from a training class in capitals only is that class.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tree::{Level, Node, folders_of, is_plain};
use super::{Image, Split, escape, of_folder};

/// Which folder's name becomes the label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LabelFrom {
    /// The first folder below the splits: the rule that training uses.
    #[default]
    First,
    /// The folder that holds the image: `Rome trip` of `2019/Rome trip/x.jpg`.
    Parent,
    /// No labels.
    Nothing,
}

/// Where one image belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// `None` where the images are not divided into splits.
    pub split: Option<Split>,
    /// Beside the splits: neither trained on nor judged with.
    pub aside: bool,
    /// Index into [`Layout::classes`].
    pub class: Option<u32>,
}

/// Images that lie beside the splits or the classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// The folder, or `None` for images in no folder of their own.
    pub folder: Option<String>,
    /// How many.
    pub images: usize,
}

/// What the paths say about all images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// In the order of the images.
    pub places: Vec<Place>,
    /// Names of the classes, sorted by their folders' names.
    pub classes: Vec<String>,
    /// What is left aside.
    pub asides: Vec<Aside>,
}

impl Layout {
    /// Name of image `number`'s class.
    pub fn label(&self, number: usize) -> Option<&str> {
        let class = self.places.get(number)?.class?;
        self.classes.get(class as usize).map(String::as_str)
    }
}

/// Divides the images of a walk.
pub fn arrange(images: &[Image], from: LabelFrom) -> Layout {
    let paths: Vec<&Path> = images.iter().map(Image::relative).collect();
    of_paths(&paths, from)
}

/// [`arrange`] of paths below the folder.
pub(super) fn of_paths(paths: &[&Path], from: LabelFrom) -> Layout {
    let root = Node::of(paths.iter().copied());
    let nowhere = Found { split: None, aside: false, class: None, depth: 0 };
    let mut arranger = Arranger { found: vec![nowhere; paths.len()], asides: Vec::new() };
    arranger.top(&root);
    let Arranger { mut found, asides } = arranger;
    for (found, path) in found.iter_mut().zip(paths) {
        match from {
            LabelFrom::First => {}
            LabelFrom::Nothing => found.class = None,
            LabelFrom::Parent if found.aside => {}
            LabelFrom::Parent => {
                let folders: Vec<&[u8]> = folders_of(path).skip(found.depth).collect();
                found.class = folders.into_iter().rfind(|name| !is_plain(name));
            }
        }
    }
    if found.iter().any(|f| f.split.is_some()) {
        found.iter_mut().filter(|f| !f.aside && f.split.is_none()).for_each(|f| f.split = Some(Split::Train));
    }
    merge_capitals(&mut found);
    named(found, asides)
}

/// A place while it is sought: the class by its folder's name.
#[derive(Clone, Copy)]
struct Found<'a> {
    split: Option<Split>,
    aside: bool,
    class: Option<&'a [u8]>,
    /// Folders of the path that are around the splits, or splits.
    depth: usize,
}

struct Arranger<'a> {
    found: Vec<Found<'a>>,
    asides: Vec<Aside>,
}

impl<'a> Arranger<'a> {
    fn top(&mut self, root: &Node<'a>) {
        let (node, depth, beside) = enter(root);
        match node.level() {
            Some(level) => {
                self.aside(None, &beside);
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
                None => self.aside(Some(name), &child.all()),
            }
        }
        self.aside(None, &node.loose);
    }

    /// `classes`: names of the classes, where a split shows them.
    fn split(&mut self, node: &Node<'a>, split: Split, mut depth: usize, classes: &BTreeSet<&[u8]>) {
        if split == Split::Train
            && let Some(level) = node.level().filter(Level::is_whole)
        {
            return self.splits(node, &level, depth);
        }
        let mut node = node;
        while let Some((name, child)) = node.only() {
            let repeats = str::from_utf8(name).is_ok_and(|n| Split::within(n).is_some());
            let around = classes.is_empty() && !child.children.is_empty() && enter(node).1 > 0;
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
            node.children.get(name).into_iter().for_each(|child| self.aside(Some(name), &child.all()));
        }
        let children = node.children.iter().filter(|(name, _)| !annotations.contains(name));
        let children: Vec<_> = children.collect();
        self.put(&node.loose, split, None, depth);
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
                        Some(split) => self.put(&child.all(), Some(*split), Some(name), depth),
                        None => self.aside(Some(inner), &child.all()),
                    }
                }
                self.put(&node.loose, Some(Split::Train), Some(name), depth);
            }
            None => self.put(&node.all(), split, Some(name), depth),
        }
    }

    fn put(&mut self, images: &[usize], split: Option<Split>, class: Option<&'a [u8]>, depth: usize) {
        images.iter().for_each(|i| self.found[*i] = Found { split, aside: false, class, depth });
    }

    fn aside(&mut self, folder: Option<&[u8]>, images: &[usize]) {
        if images.is_empty() {
            return;
        }
        images.iter().for_each(|i| self.found[*i].aside = true);
        self.asides.push(Aside { folder: folder.map(escape), images: images.len() });
    }
}

/// Passes through the folders around everything: the folder to begin with, how many were passed, and the images that
/// lie beside them.
fn enter<'n, 'a>(root: &'n Node<'a>) -> (&'n Node<'a>, usize, Vec<usize>) {
    let (mut node, mut depth, mut beside, mut plain) = (root, 0, Vec::new(), false);
    while let Some((name, child)) = node.children.iter().next().filter(|_| node.children.len() == 1) {
        // A lone `train` ends the search, unless the splits lie in it.
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

/// Gives held-out images the training class that differs in capitals only, where there is just one.
fn merge_capitals(found: &mut [Found]) {
    let mut training: BTreeMap<Vec<u8>, BTreeSet<&[u8]>> = BTreeMap::new();
    for class in found.iter().filter(|f| f.split == Some(Split::Train)).filter_map(|f| f.class) {
        training.entry(small(class)).or_default().insert(class);
    }
    for held in found.iter_mut().filter(|f| matches!(f.split, Some(Split::Validation | Split::Test))) {
        let Some(class) = held.class else { continue };
        let Some(alike) = training.get(&small(class)) else { continue };
        if let (Some(only), 1) = (alike.first(), alike.len()) {
            held.class = Some(only);
        }
    }
}

/// In small letters.
fn small(name: &[u8]) -> Vec<u8> {
    str::from_utf8(name).map_or_else(|_| name.to_ascii_lowercase(), |name| name.to_lowercase().into_bytes())
}

fn named(found: Vec<Found>, asides: Vec<Aside>) -> Layout {
    let names: BTreeSet<&[u8]> = found.iter().filter_map(|f| f.class).collect();
    let numbers: BTreeMap<&[u8], u32> = names.iter().copied().zip(0..).collect();
    let place =
        |f: Found| Place { split: f.split, aside: f.aside, class: f.class.and_then(|c| numbers.get(c).copied()) };
    let classes = names.iter().map(|name| of_folder(&escape(name))).collect();
    Layout { places: found.into_iter().map(place).collect(), classes, asides }
}
