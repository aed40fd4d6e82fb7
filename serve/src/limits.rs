//! The limits of one request and of all requests together.

use std::time::Duration;

use macrl_bundle::decode::DecodeLimits;

use crate::index::OpenOptions;

/// The limits of requests; `/info` and the API document show them.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Bytes of one body.
    pub body_bytes: usize,
    /// Bytes of all bodies in memory.
    pub buffered_bytes: usize,
    /// Images of one request.
    pub images: usize,
    /// Inputs of one `/v1/embeddings` request; more than [`Limits::images`] are embedded in several steps.
    pub inputs: usize,
    /// Images that are admitted at once: those being decoded, in the queue or in a batch.
    pub queue: usize,
    /// Pixels and memory of one image.
    pub decode: DecodeLimits,
    /// Hits of one search.
    pub hits: usize,
    /// Bytes of one item's metadata, as JSON.
    pub metadata_bytes: usize,
    /// Bytes of a filter, as JSON.
    pub filter_bytes: usize,
    /// Bytes of all large responses that are being sent.
    pub response_bytes: usize,
    /// Bytes of memory that the items of an index may take.
    pub index_bytes: usize,
    /// With more items than this, searches are approximate unless they ask to be exact.
    pub exact_up_to: usize,
    /// Time for which an idle connection stays open.
    pub keep_alive: Duration,
    /// Time for a request's header to arrive, from its first byte.
    pub header_timeout: Duration,
    /// Time for a body to arrive.
    pub body_timeout: Duration,
    /// Time in which a client must read the next 64 KiB of a large response.
    pub send_timeout: Duration,
    /// Time from the body's arrival to the response.
    pub request_timeout: Duration,
    /// Bytes of everything that clients can cause, if it was limited; see [`MemoryParts`](crate::memory::MemoryParts).
    pub memory: Option<u64>,
    /// Threads that decode ordinary images; half as many decode large ones.  `None`: one per core.
    pub decoders: Option<usize>,
    /// Connections at once; for a further one, the one that has been idle longest is closed.
    pub connections: usize,
    /// Time after SIGTERM during which connections are accepted: load balancers poll `/ready`.
    pub drain_delay: Duration,
    /// Time for accepted requests to finish after that.
    pub grace: Duration,
}

/// Most inputs of one `/v1/embeddings` request, as at OpenAI.
pub const MAX_INPUTS: usize = 2048;

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
            filter_bytes: 256 << 10,
            response_bytes: 256 << 20,
            index_bytes: OpenOptions::default().max_bytes,
            exact_up_to: OpenOptions::default().exact_up_to,
            // Longer than the 60 s of most proxies: see connection.rs.
            keep_alive: Duration::from_secs(75),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            send_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            memory: None,
            decoders: None,
            connections: 1024,
            drain_delay: Duration::ZERO,
            grace: Duration::from_secs(20),
        }
    }
}
