//! How views share one matrix.

/// (images, tokens of each) of the views whose rows lie behind each other.
pub type Spans = Vec<(usize, usize)>;

/// Rows of all views together.
pub fn rows_of(spans: &[(usize, usize)]) -> usize {
    spans.iter().map(|(images, tokens)| images * tokens).sum()
}
