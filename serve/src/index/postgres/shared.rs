//! The state that requests and graph maintenance share.

use std::sync::atomic::AtomicBool;
use std::sync::{PoisonError, RwLock};

use tokio::sync::Notify;

use super::super::item::EncoderIdentity;
use super::connector::Connector;
use super::statement::VectorTypes;

/// The connections, and what this process knows about the index.
pub(super) struct Shared {
    pub(super) connector: Connector,
    pub(super) types: VectorTypes,
    pub(super) encoder: RwLock<EncoderIdentity>,
    /// With more items than this, searches are approximate unless they ask to be exact.
    pub(super) exact_up_to: usize,
    /// Whether there was a graph at the last look.
    pub(super) has_graph: AtomicBool,
    /// Notified after items were stored.
    pub(super) written: Notify,
    pub(super) read_only: bool,
}

impl Shared {
    pub(super) fn encoder(&self) -> EncoderIdentity {
        self.encoder.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
