//! Options for opening an index.

use std::time::Duration;

/// Options for opening an index.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenOptions {
    /// Bytes of memory that the items of an embedded index may take; PostgreSQL has limits of its own.
    pub max_bytes: usize,
    /// With more items than this, searches are approximate unless they ask to be exact.
    pub exact_up_to: usize,
    /// How long opening waits for a PostgreSQL server that does not answer yet.
    pub patience: Duration,
}

impl Default for OpenOptions {
    /// 2 GiB hold about a million items; 50,000 vectors are compared within 10 ms.
    fn default() -> Self {
        Self { max_bytes: 2 << 30, exact_up_to: 50_000, patience: Duration::ZERO }
    }
}
