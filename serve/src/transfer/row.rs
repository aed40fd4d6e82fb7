//! A row of a file, and the traits of readers and writers.

use std::sync::Arc;

use anyhow::Result;

use crate::index::{ContentHash, Metadata};

/// Rows that are read, written and committed at a time; with thumbnails they take some 30 MB.
pub(super) const BLOCK: usize = 1024;

/// One item of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) vector: Vec<f32>,
    pub(super) metadata: Metadata,
    /// Encoded thumbnail, where the item has one.
    pub(super) image: Option<Arc<[u8]>>,
    pub(super) hash: Option<ContentHash>,
}

/// Writes a file.
pub(super) trait RowWriter {
    /// Writes rows after those that were written before.
    fn write(&mut self, rows: Vec<Row>) -> Result<()>;
    /// Completes the file and gives it its name.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Reads a file.
pub(super) trait RowReader {
    /// The next block of rows; empty at the end.
    fn next(&mut self) -> Result<Vec<Row>>;
    /// SHA-256 of the encoder of the vectors, if the file names it.
    fn encoder(&self) -> Option<String>;
}
