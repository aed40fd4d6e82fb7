//! A data set: two splits behind one trait.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::Result;
use image::RgbImage;

/// One split of a data set.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class of image `index`, an index into [`Data::classes`]; `None` where the data has no label.
    fn label(&self, index: usize) -> Option<u32>;

    /// Pixels of image `index`: u8, row-major, R G B interleaved, any size.
    ///
    /// # Errors
    /// When its file cannot be read or decoded.
    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>>;

    /// What messages call image `index`: its file, or `train[17]`.
    fn name(&self, index: usize) -> String;
}

/// A data set, ready to train on.
pub struct Data {
    /// The training split, cut to `data.limit`.
    pub train: Arc<dyn Dataset>,
    /// The split that evaluation uses; `None` where there is nothing to hold out (a single image).
    pub test: Option<Arc<dyn Dataset>>,
    /// Class names by label; empty where nothing is labelled.
    pub classes: Vec<String>,
    /// What was recognised, for messages.
    pub format: &'static str,
    /// Files left out and why.
    pub skipped: Vec<(String, String)>,
    /// What a user should know about how the splits came about; one sentence each.
    pub notes: Vec<String>,
    /// What lies in the folder and is not used, with counts and reasons.
    pub left_out: Vec<String>,
}
