//! The rows of several views in one matrix.

/// (images, tokens per image) of each view, in the order of their rows.
pub type Spans = Vec<(usize, usize)>;

/// Number of rows of all views.
pub fn rows_of(spans: &[(usize, usize)]) -> usize {
    spans.iter().map(|(images, tokens)| images * tokens).sum()
}
