//! Rows as items.

use std::sync::Arc;

use tokio_postgres::{Error, Row};

use super::super::{ContentHash, Hit, IndexError, Item, Metadata};
use super::fault::Fault;

/// Columns of [`item`], without the vector.
pub(super) const ITEM: &str = "id, metadata, pictured, hash";
/// One more column, with it: PostgreSQL's own form of a vector.
pub(super) const VECTOR: &str = ", vector_send(vector)";

/// From [`ITEM`], with or without [`VECTOR`].
pub(super) fn item(row: &Row) -> Result<Item, Fault> {
    let id: String = row.try_get(0)?;
    let hash = row.try_get::<_, Option<&[u8]>>(3)?.and_then(|bytes| ContentHash::try_from(bytes).ok());
    let vector = if row.len() > 4 { numbers(row.try_get(4)?) } else { Vec::new() };
    let metadata = metadata(&id, row.try_get(1)?)?;
    Ok(Item { vector, metadata, image: None, pictured: row.try_get(2)?, hash, id })
}

/// From `id, score, metadata, pictured`.
pub(super) fn hit(row: &Row) -> Result<Hit, Fault> {
    let id: String = row.try_get(0)?;
    // Rounding can carry a cosine past 1.
    let score = row.try_get::<_, f32>(1)?.clamp(-1.0, 1.0);
    let metadata = metadata(&id, row.try_get(2)?)?;
    Ok(Hit { id, score, metadata, image: row.try_get(3)? })
}

/// A picture that an outer join may have found.
pub(super) fn picture(row: &Row, column: usize) -> Result<Option<Arc<[u8]>>, Error> {
    Ok(row.try_get::<_, Option<&[u8]>>(column)?.map(Arc::from))
}

fn metadata(id: &str, text: &str) -> Result<Metadata, IndexError> {
    // Somebody else may have written into the table.
    serde_json::from_str(text).map_err(|e| {
        IndexError::Storage(format!("item `{id}`: expected metadata as a JSON object, found otherwise: {e}"))
    })
}

/// pgvector's form: D and a spare number of two bytes each, then D floats, all big-endian.
fn numbers(bytes: &[u8]) -> Vec<f32> {
    let floats = bytes.get(4..).unwrap_or_default().chunks_exact(4);
    floats.map(|b| f32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect()
}
