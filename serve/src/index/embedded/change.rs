//! One change of an item, as the writer hands it to the store and then to the item table.

use std::sync::Arc;

use super::item_table::Record;

/// One change of an item.
#[derive(Debug)]
pub(super) enum Change {
    /// Adds an item or replaces the one with its id.
    Put {
        /// Sequence number of the write.
        seq: u64,
        /// What the item table keeps.
        record: Record,
        /// The thumbnail, which the store keeps.
        image: Option<Arc<[u8]>>,
    },
    /// Removes an item.
    Delete {
        /// Id of the item that is deleted.
        id: Arc<str>,
    },
}

impl Change {
    pub(super) fn id(&self) -> &Arc<str> {
        match self {
            Self::Put { record, .. } => &record.id,
            Self::Delete { id } => id,
        }
    }
}
