//! Counts what a directory walk skipped, by reason, and describes it in one line.

use std::collections::BTreeMap;
use std::fmt;

use super::Format;

/// Number of example names that are kept for each reason.
const SHOWN: usize = 3;
/// Largest length of an example name in characters; of a longer name the end is kept.
const LENGTH: usize = 100;

/// Why the walk skipped a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// An image or video in an unsupported format.
    NotRead(Format),
    /// An image file without content, or a folder without files.
    Empty,
    /// An image file or folder that cannot be read; the example name includes the cause.
    Unreadable,
    /// A symbolic or hard link to a file or folder that was found already.
    Duplicate,
    /// A symbolic link to the walked folder or one of its parents.
    AncestorLink,
    /// A symbolic link whose target does not exist.
    Broken,
    /// A socket, pipe or device.
    Special,
    /// A hidden image, or a hidden or system folder (`._x.jpg`, `.git`, `@eaDir`, `__MACOSX`, `lost+found`).
    Hidden,
    /// A file that is not an image.
    Other,
}

/// Number of skipped entries for each reason, with the first names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    left_out: BTreeMap<Reason, (usize, Vec<String>)>,
}

impl Summary {
    /// Counts one more entry; `name` is kept if it is among the first.
    pub fn add(&mut self, reason: Reason, name: String) {
        let (count, names) = self.left_out.entry(reason).or_default();
        *count += 1;
        if names.len() < SHOWN {
            names.push(shortened(name));
        }
    }

    /// Removes a reason, for files that turned out to be useful.
    pub fn forget(&mut self, reason: Reason) {
        self.left_out.remove(&reason);
    }

    /// Number of entries that were skipped for this reason.
    pub fn count(&self, reason: Reason) -> usize {
        self.left_out.get(&reason).map_or(0, |(count, _)| *count)
    }

    /// Reasons with their counts and first names, in the order of the message.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, usize, &[String])> {
        self.left_out.iter().map(|(reason, (count, names))| (*reason, *count, &names[..]))
    }

    /// Whether nothing was skipped.
    pub fn is_empty(&self) -> bool {
        self.left_out.is_empty()
    }
}

fn shortened(name: String) -> String {
    match name.char_indices().rev().nth(LENGTH) {
        Some((at, _)) => format!("...{}", &name[at..]),
        None => name,
    }
}

/// For example: `40 HEIC files (not read: IMG_1.HEIC, IMG_2.HEIC, ...), 2 empty files or folders (a.png, b.png)`.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (reason, count, names)) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            let dots = if count > names.len() { ", ..." } else { "" };
            let names = format!("{}{dots}", names.join(", "));
            let s = if count == 1 { "" } else { "s" };
            match reason {
                Reason::NotRead(format) => write!(f, "{count} {} file{s} (not read: {names})", format.name())?,
                Reason::Empty => write!(f, "{count} empty file{s} or folder{s} ({names})")?,
                Reason::Unreadable => write!(f, "{count} folder{s} or file{s} that cannot be read ({names})")?,
                Reason::Duplicate => write!(f, "{count} link{s} to files or folders read already ({names})")?,
                Reason::AncestorLink => write!(f, "{count} link{s} to a parent folder ({names})")?,
                Reason::Broken => write!(f, "{count} broken link{s} ({names})")?,
                Reason::Special => write!(f, "{count} socket{s}, pipe{s} or device{s} ({names})")?,
                Reason::Hidden => write!(f, "{count} hidden ({names})")?,
                Reason::Other => write!(f, "{count} other file{s} ({names})")?,
            }
        }
        Ok(())
    }
}
