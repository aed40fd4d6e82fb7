//! Folders of images: one directory walk and one rule for splits and labels, shared by training and serving.
//!
//! [`walk`] finds the image files below a folder and reports what it skipped and why.  [`arrange`] assigns each image
//! to a split and a class by its path alone (the rule is in `arrange.rs` and docs/data.md).  File names are bytes:
//! [`text`] maps each path to a distinct text, for messages and ids.

mod arrange;
mod formats;
mod names;
mod split;
mod summary;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use arrange::{Arrangement, Assignment, Excluded, LabelFrom, arrange};
pub use formats::{Format, READ};
pub use names::class_name;
pub use split::Split;
pub use summary::{Reason, Summary};
pub use walk::{Image, Walk, is_system, walk};

/// A path as text, distinct for distinct paths: bytes that are not UTF-8 become `\xE9`, control characters `\n` or
/// `\u{7}`, and a backslash `\\`.
pub fn text(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}

fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() => out.extend(c.escape_default()),
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| out.push_str(&format!("\\x{byte:02X}")));
    }
    out
}
