//! Finds all image files below a folder.
//!
//! Links are followed, and no file or folder is read twice: each is identified by device and inode.  The tree itself is
//! walked before link targets, so that an image inside the tree keeps its own path.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::summary::{Reason, Summary};
use super::{Format, text};

/// Folders that operating systems and programs create; names that start with a dot are hidden anyway.
const SYSTEM: [&str; 6] = ["@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "lost+found"];

/// An image file that the walk found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Path to open: the root joined with the path below it.
    pub path: PathBuf,
    /// Format by the file extension.
    pub format: Format,
    /// Length in bytes of the root's part of `path`.
    above: usize,
}

impl Image {
    /// Path relative to the root of the walk.
    pub fn relative(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.path.as_os_str().as_bytes().get(self.above..).unwrap_or_default()))
    }
}

/// The result of a walk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walk {
    /// Files in supported formats, sorted by path.
    pub images: Vec<Image>,
    /// What was skipped and why.
    pub summary: Summary,
}

/// Finds the images below `root`, at any depth.
///
/// # Errors
/// The I/O error if `root` cannot be listed; other folders that cannot be listed are part of the summary.
pub fn walk(root: &Path) -> io::Result<Walk> {
    let mut walker = Walker::new(root)?;
    walker.list(root)?;
    loop {
        if let Some(folder) = walker.folders.pop() {
            if let Err(why) = walker.list(&folder) {
                walker.unreadable(&folder, &why);
            }
        } else if let Some(link) = walker.links.pop_first() {
            walker.follow(link);
        } else {
            break;
        }
    }
    walker.found.images.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(walker.found)
}

/// Whether a file or folder name is hidden or belongs to the operating system.
pub fn is_system(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let lower = bytes.to_ascii_lowercase();
    bytes.starts_with(b".") || lower == b"system volume information" || SYSTEM.iter().any(|s| s.as_bytes() == lower)
}

/// Device and inode: the identity of a file or folder.
type Id = (u64, u64);

fn id(metadata: &Metadata) -> Id {
    (metadata.dev(), metadata.ino())
}

struct Walker {
    above: usize,
    /// The root and its parents.
    ancestors: HashSet<Id>,
    seen_folders: HashSet<Id>,
    seen_files: HashSet<Id>,
    /// Folders still to be listed.
    folders: Vec<PathBuf>,
    /// Links still to be followed.
    links: BTreeSet<PathBuf>,
    found: Walk,
}

impl Walker {
    fn new(root: &Path) -> io::Result<Self> {
        let full = root.canonicalize()?;
        let ancestors: HashSet<Id> =
            full.ancestors().filter_map(|dir| fs::metadata(dir).ok()).map(|m| id(&m)).collect();
        Ok(Walker {
            above: root.join("x").as_os_str().len() - 1,
            seen_folders: HashSet::from([id(&fs::metadata(&full)?)]),
            ancestors,
            seen_files: HashSet::new(),
            folders: Vec::new(),
            links: BTreeSet::new(),
            found: Walk::default(),
        })
    }

    /// Processes the entries of a folder; sub-folders are pushed in reverse, so the alphabetically first is next.
    fn list(&mut self, folder: &Path) -> io::Result<()> {
        let mut entries: Vec<(OsString, PathBuf, io::Result<Metadata>)> = Vec::new();
        let mut broken = None;
        for entry in fs::read_dir(folder)? {
            match entry {
                Ok(entry) => entries.push((entry.file_name(), entry.path(), entry.metadata())),
                // The entries that were listed before the error are still used.
                Err(why) => broken = Some(why),
            }
        }
        if entries.is_empty() && broken.is_none() {
            self.skip(Reason::Empty, folder);
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        let at = self.folders.len();
        for (name, path, metadata) in entries {
            match metadata {
                Ok(metadata) => self.take(&name, path, &metadata),
                Err(why) => self.unreadable(&path, &why),
            }
        }
        self.folders[at..].reverse();
        broken.map_or(Ok(()), Err)
    }

    fn take(&mut self, name: &OsStr, path: PathBuf, metadata: &Metadata) {
        let kind = metadata.file_type();
        if is_system(name) {
            // Hidden files of programs (.DS_Store) need no mention.
            if kind.is_dir() || Format::of(&path).is_some() {
                self.skip(Reason::Hidden, &path);
            }
        } else if kind.is_symlink() {
            self.links.insert(path);
        } else if kind.is_dir() {
            self.folder(path, metadata);
        } else if kind.is_file() {
            // Without links, only a file with several hard links can be found twice.
            let again = metadata.nlink() > 1 && self.seen_files.contains(&id(metadata));
            self.file(path, metadata, again);
        } else {
            self.skip(Reason::Special, &path);
        }
    }

    fn folder(&mut self, path: PathBuf, metadata: &Metadata) {
        if self.seen_folders.insert(id(metadata)) {
            self.folders.push(path);
        } else {
            self.skip(Reason::Duplicate, &path);
        }
    }

    fn file(&mut self, path: PathBuf, metadata: &Metadata, again: bool) {
        match Format::of(&path) {
            None => self.skip(Reason::Other, &path),
            Some(format) if !format.is_read() => self.skip(Reason::NotRead(format), &path),
            Some(_) if again => self.skip(Reason::Duplicate, &path),
            Some(_) if metadata.len() == 0 => self.skip(Reason::Empty, &path),
            Some(format) => {
                self.seen_files.insert(id(metadata));
                self.found.images.push(Image { path, format, above: self.above });
            }
        }
    }

    fn follow(&mut self, path: PathBuf) {
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(why) if why.kind() == io::ErrorKind::PermissionDenied => return self.unreadable(&path, &why),
            Err(_) => return self.skip(Reason::Broken, &path),
        };
        if metadata.is_dir() {
            match self.ancestors.contains(&id(&metadata)) {
                true => self.skip(Reason::AncestorLink, &path),
                false => self.folder(path, &metadata),
            }
        } else if metadata.is_file() {
            let again = self.seen_files.contains(&id(&metadata));
            self.file(path, &metadata, again);
        } else {
            self.skip(Reason::Special, &path);
        }
    }

    fn skip(&mut self, reason: Reason, path: &Path) {
        let name = self.name(path);
        self.found.summary.add(reason, name);
    }

    fn unreadable(&mut self, path: &Path, why: &io::Error) {
        let (name, why) = (self.name(path), why.to_string());
        let why = why.split(" (os error").next().unwrap_or_default().to_lowercase();
        self.found.summary.add(Reason::Unreadable, format!("{name}: {why}"));
    }

    fn name(&self, path: &Path) -> String {
        text(Path::new(OsStr::from_bytes(path.as_os_str().as_bytes().get(self.above..).unwrap_or_default())))
    }
}
