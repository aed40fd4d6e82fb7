//! All image files below a folder.
//!
//! Links are followed, and nothing is read twice: files and folders are known by device and inode.  What lies in the
//! tree itself is found first, then what links lead to, so that an image keeps its own name where it has one.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::summary::{Reason, Summary};
use super::{Format, text};

/// Folders that programs leave behind; what begins with a dot is hidden anyway.
const SYSTEM: [&str; 6] = ["@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "lost+found"];

/// An image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// What its ending says.
    pub format: Format,
    /// Bytes of the walked folder's part of `path`.
    above: usize,
}

impl Image {
    /// Path below the folder that was walked.
    pub fn relative(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.path.as_os_str().as_bytes().get(self.above..).unwrap_or_default()))
    }
}

/// What a walk found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walk {
    /// Files in formats that are read, sorted by path.
    pub images: Vec<Image>,
    /// What was left out and why.
    pub summary: Summary,
}

/// Finds the images below `root`, at any depth.
///
/// # Errors
/// When `root` itself cannot be listed; a folder below it that cannot be is part of the summary.
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

/// Whether a name is hidden or a system's own: not part of anybody's images.
pub fn is_system(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let lower = bytes.to_ascii_lowercase();
    bytes.starts_with(b".") || lower == b"system volume information" || SYSTEM.iter().any(|s| s.as_bytes() == lower)
}

/// Device and inode.
type Id = (u64, u64);

fn id(metadata: &Metadata) -> Id {
    (metadata.dev(), metadata.ino())
}

struct Walker {
    above: usize,
    /// The folders around the root, and the root.
    around: HashSet<Id>,
    seen_folders: HashSet<Id>,
    seen_files: HashSet<Id>,
    /// Still to be listed.
    folders: Vec<PathBuf>,
    /// Still to be followed.
    links: BTreeSet<PathBuf>,
    found: Walk,
}

impl Walker {
    fn new(root: &Path) -> io::Result<Self> {
        let full = root.canonicalize()?;
        let around: HashSet<Id> = full.ancestors().filter_map(|dir| fs::metadata(dir).ok()).map(|m| id(&m)).collect();
        Ok(Walker {
            above: root.join("x").as_os_str().len() - 1,
            seen_folders: HashSet::from([id(&fs::metadata(&full)?)]),
            around,
            seen_files: HashSet::new(),
            folders: Vec::new(),
            links: BTreeSet::new(),
            found: Walk::default(),
        })
    }

    /// Takes what a folder holds; sub-folders are put on the list, the first in the alphabet to be taken next.
    fn list(&mut self, folder: &Path) -> io::Result<()> {
        let mut entries: Vec<(OsString, PathBuf, io::Result<Metadata>)> = Vec::new();
        let mut broken = None;
        for entry in fs::read_dir(folder)? {
            match entry {
                Ok(entry) => entries.push((entry.file_name(), entry.path(), entry.metadata())),
                // What was listed until here is taken.
                Err(why) => broken = Some(why),
            }
        }
        if entries.is_empty() && broken.is_none() {
            self.leave(Reason::Empty, folder);
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
            // Small files of programs (.DS_Store) are nobody's loss.
            if kind.is_dir() || Format::of(&path).is_some() {
                self.leave(Reason::Hidden, &path);
            }
        } else if kind.is_symlink() {
            self.links.insert(path);
        } else if kind.is_dir() {
            self.folder(path, metadata);
        } else if kind.is_file() {
            // Only a file with several names can be met again without a link.
            let again = metadata.nlink() > 1 && self.seen_files.contains(&id(metadata));
            self.file(path, metadata, again);
        } else {
            self.leave(Reason::Special, &path);
        }
    }

    fn folder(&mut self, path: PathBuf, metadata: &Metadata) {
        if self.seen_folders.insert(id(metadata)) {
            self.folders.push(path);
        } else {
            self.leave(Reason::Twice, &path);
        }
    }

    fn file(&mut self, path: PathBuf, metadata: &Metadata, again: bool) {
        match Format::of(&path) {
            None => self.leave(Reason::Other, &path),
            Some(format) if !format.is_read() => self.leave(Reason::NotRead(format), &path),
            Some(_) if again => self.leave(Reason::Twice, &path),
            Some(_) if metadata.len() == 0 => self.leave(Reason::Empty, &path),
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
            Err(_) => return self.leave(Reason::Broken, &path),
        };
        if metadata.is_dir() {
            match self.around.contains(&id(&metadata)) {
                true => self.leave(Reason::Upwards, &path),
                false => self.folder(path, &metadata),
            }
        } else if metadata.is_file() {
            let again = self.seen_files.contains(&id(&metadata));
            self.file(path, &metadata, again);
        } else {
            self.leave(Reason::Special, &path);
        }
    }

    fn leave(&mut self, reason: Reason, path: &Path) {
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
