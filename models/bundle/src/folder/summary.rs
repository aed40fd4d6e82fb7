//! What a walk left out, and why, in one line.

use std::collections::BTreeMap;
use std::fmt;

use super::Format;

/// Names that are kept for each reason.
const SHOWN: usize = 3;
/// Characters that are kept of a name; of a longer one the end.
const LENGTH: usize = 100;

/// Why something below the folder is not among the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// An image or video in a format that is not read.
    NotRead(Format),
    /// An image file of no bytes, or a folder of no files.
    Empty,
    /// An image file or folder that cannot be looked at; the cause is in the example.
    Unreadable,
    /// A link, or a second name (hard link), of something that is read already.
    Twice,
    /// A link to a folder that holds the one walked.
    Upwards,
    /// A link that leads nowhere.
    Broken,
    /// A socket, pipe or device.
    Special,
    /// A hidden image, or a hidden or system folder (`._x.jpg`, `.git`, `@eaDir`, `__MACOSX`, `lost+found`).
    Hidden,
    /// A file that is no image.
    Other,
}

/// How many of each, with the first names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    left_out: BTreeMap<Reason, (usize, Vec<String>)>,
}

impl Summary {
    /// Counts one more; `name` is kept if it is among the first.
    pub fn add(&mut self, reason: Reason, name: String) {
        let (count, names) = self.left_out.entry(reason).or_default();
        *count += 1;
        if names.len() < SHOWN {
            names.push(shortened(name));
        }
    }

    /// Leaves a reason out of the account, where its files were of use after all.
    pub fn forget(&mut self, reason: Reason) {
        self.left_out.remove(&reason);
    }

    /// How many were left out for this reason.
    pub fn count(&self, reason: Reason) -> usize {
        self.left_out.get(&reason).map_or(0, |(count, _)| *count)
    }

    /// Reason, count and the first names, in the order in which they are shown.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, usize, &[String])> {
        self.left_out.iter().map(|(reason, (count, names))| (*reason, *count, &names[..]))
    }

    /// Whether nothing was left out.
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

/// `40 HEIC files (not read: IMG_1.HEIC, IMG_2.HEIC, ...), 1 folder or file that cannot be read (private: permission denied)`.
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
                Reason::Twice => write!(f, "{count} link{s} to what is read already ({names})")?,
                Reason::Upwards => write!(f, "{count} link{s} to a folder around this one ({names})")?,
                Reason::Broken => write!(f, "{count} broken link{s} ({names})")?,
                Reason::Special => write!(f, "{count} socket{s}, pipe{s} or device{s} ({names})")?,
                Reason::Hidden => write!(f, "{count} hidden ({names})")?,
                Reason::Other => write!(f, "{count} other file{s} ({names})")?,
            }
        }
        Ok(())
    }
}
