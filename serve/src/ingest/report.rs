//! The result of an ingestion.

use std::time::Duration;

use anyhow::{Result, bail};
use macrl_bundle::output::elapsed;
use macrl_bundle::{answer, say};

/// What became of the images.
#[derive(Default)]
pub(super) struct Report {
    /// Number of items that were stored.
    pub(super) stored: usize,
    /// Number of stored items that replaced another one.
    pub(super) replaced: usize,
    /// Number of images that the index had already, with the same content.
    pub(super) unchanged: usize,
    /// Number of items that were removed because their files are gone.
    pub(super) removed: usize,
    /// Id and cause of each image that was refused.
    pub(super) failed: Vec<(String, String)>,
}

impl Report {
    /// Prints the report.
    ///
    /// # Errors
    /// If images were refused.
    pub(super) fn print(self, took: Duration) -> Result<()> {
        for (id, cause) in &self.failed {
            say!("{id}: {cause}");
        }
        let (seconds, total) = (took.as_secs_f64(), self.stored + self.unchanged + self.failed.len());
        let pace = self.stored as f64 / seconds.max(1e-9);
        let more = [(self.replaced, "replaced an item"), (self.unchanged, "were there"), (self.removed, "removed")];
        let more = more.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!(", {count} {what}"));
        let more: String = more.collect();
        answer!("{} of {total} images stored in {} ({pace:.0}/s){more}", self.stored, elapsed(took));
        match self.failed.len() {
            0 => Ok(()),
            1 => bail!("1 image was refused"),
            failed => bail!("{failed} images were refused"),
        }
    }
}
