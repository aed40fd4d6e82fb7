//! What one request and all of them together may cost.

use std::time::Duration;

use macrl_bundle::decode::DecodeLimits;

use crate::index::OpenOptions;

/// Bounds that every route keeps; shown by `/info`.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Bytes of one body.
    pub body_bytes: usize,
    /// Bytes of all bodies that are being received.
    pub buffered_bytes: usize,
    /// Images of one request.
    pub images: usize,
    /// Inputs of one `/v1/embeddings` request; more than [`Limits::images`] are embedded in several steps.
    pub inputs: usize,
    /// Images admitted at once: decoding, waiting or in a batch.
    pub queue: usize,
    /// Pixels and memory of one image.
    pub decode: DecodeLimits,
    /// Hits of one search.
    pub hits: usize,
    /// Bytes of one item's metadata, as JSON.
    pub metadata_bytes: usize,
    /// Bytes of memory that the items of an index may take.
    pub index_bytes: usize,
    /// With more items than this, searches are approximate unless they ask to be exact.
    pub exact_up_to: usize,
    /// For which an idle connection stays open.
    pub keep_alive: Duration,
    /// For a whole request header to arrive, from its first byte.
    pub header_timeout: Duration,
    /// For a whole body to arrive.
    pub body_timeout: Duration,
    /// From the body's arrival to the answer.
    pub request_timeout: Duration,
    /// Connections at once; a further one takes the place of the one that has been idle longest.
    pub connections: usize,
    /// Between SIGTERM and the last accepted connection: load balancers look at `/ready` now and then.
    pub drain_delay: Duration,
    /// For accepted requests to finish after that.
    pub grace: Duration,
}

/// Inputs of one `/v1/embeddings` request at most, as at OpenAI.
pub const MOST_INPUTS: usize = 2048;

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 32 << 20,
            buffered_bytes: 512 << 20,
            images: 64,
            inputs: 64,
            queue: 256,
            decode: DecodeLimits::default(),
            hits: 1000,
            metadata_bytes: 16 << 10,
            index_bytes: OpenOptions::default().max_bytes,
            exact_up_to: OpenOptions::default().exact_up_to,
            // Above the 60 s of most proxies: whoever closes first loses no request.
            keep_alive: Duration::from_secs(75),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            connections: 1024,
            drain_delay: Duration::ZERO,
            grace: Duration::from_secs(20),
        }
    }
}
