//! Why an index did not do what it was asked.

use super::item::EncoderIdentity;

/// Errors of every index backend.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum IndexError {
    /// A vector whose length is not the index's.
    #[error("expected a vector of {expected} numbers, found {found}")]
    Dimension {
        /// Length of the index's vectors, D.
        expected: usize,
        /// Length of the given vector.
        found: usize,
    },
    /// A vector that another encoder made.
    #[error(
        "the index holds {items} items of encoder {holds}, found encoder {given}: use another index, or embed anew"
    )]
    EncoderMismatch {
        /// The encoder recorded in the index.
        holds: EncoderIdentity,
        /// Number of items that it made.
        items: usize,
        /// Identity of the encoder that the caller uses.
        given: EncoderIdentity,
    },
    /// The item does not fit into the memory that the index may use.
    #[error("the index is full: its items may take {limit} bytes")]
    Full {
        /// Bytes that all items may take.
        limit: usize,
    },
    /// The index cannot be opened; one sentence that names it.
    #[error("{0}")]
    Open(String),
    /// The storage does not answer now and may do so later.
    #[error("{0}")]
    Unavailable(String),
    /// The storage failed.
    #[error("{0}")]
    Storage(String),
}
