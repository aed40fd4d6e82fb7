//! A data set: two splits behind one trait.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::Result;
use image::RgbImage;

/// One split of a data set.
pub trait Dataset: Send + Sync {
    /// Number of images in the split.
    fn len(&self) -> usize;

    /// Whether the split has no image.
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

    /// Name of image `index` for messages: its file, or `train[17]`.
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
    /// Name of the format, for messages.
    pub format: &'static str,
    /// Files that could not be read, and why.
    pub skipped: Vec<(String, String)>,
    /// Sentences for the user about how the splits were chosen.
    pub notes: Vec<String>,
    /// What the folder holds and is not used, with counts and reasons.
    pub left_out: Vec<String>,
}

impl Data {
    /// A training split alone: no classes, nothing held out.
    pub fn unlabelled(train: Arc<dyn Dataset>, format: &'static str) -> Self {
        let (skipped, notes, left_out) = (Vec::new(), Vec::new(), Vec::new());
        Self { train, test: None, classes: Vec::new(), format, skipped, notes, left_out }
    }
}
