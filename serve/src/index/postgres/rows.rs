//! Reads items and hits from rows.

use std::sync::Arc;

use serde_json::value::RawValue;
use tokio_postgres::{Error, Row};

use super::super::error::IndexError;
use super::super::item::{ContentHash, Hit, Item, Metadata};
use super::error::QueryError;

/// The columns that [`item`] reads, without the vector.
pub(super) const ITEM: &str = "id, metadata, pictured, hash";
/// The column of the vector, in pgvector's binary form.
pub(super) const VECTOR: &str = ", vector_send(vector)";

/// The item in a row of [`ITEM`], with or without [`VECTOR`].
pub(super) fn item(row: &Row) -> Result<Item, QueryError> {
    let id: String = row.try_get(0)?;
    let hash = row.try_get::<_, Option<&[u8]>>(3)?.and_then(|bytes| ContentHash::try_from(bytes).ok());
    let vector = if row.len() > 4 { self::vector(row.try_get(4)?) } else { Vec::new() };
    let metadata = metadata(&id, row.try_get(1)?)?;
    Ok(Item { vector, metadata, image: None, has_image: row.try_get(2)?, hash, id })
}

/// The hit in a row of `id, score, metadata, pictured`.
pub(super) fn hit(row: &Row) -> Result<Hit, QueryError> {
    let id: String = row.try_get(0)?;
    // Rounding can carry a cosine past 1.
    let score = row.try_get::<_, f32>(1)?.clamp(-1.0, 1.0);
    let metadata = metadata(&id, row.try_get(2)?)?;
    Ok(Hit { id, score, metadata, has_image: row.try_get(3)? })
}

/// The thumbnail, or `None` if an outer join found none.
pub(super) fn thumbnail(row: &Row, column: usize) -> Result<Option<Arc<[u8]>>, Error> {
    Ok(row.try_get::<_, Option<&[u8]>>(column)?.map(Arc::from))
}

fn metadata(id: &str, text: &str) -> Result<Metadata, IndexError> {
    // Another program may have written it.
    let fault = |cause: &dyn std::fmt::Display| {
        IndexError::Storage(format!("item `{id}`: expected metadata as a JSON object, found otherwise: {cause}"))
    };
    let value = serde_json::from_str::<&RawValue>(text).map_err(|e| fault(&e))?;
    if value.get().starts_with('{') { Ok(Metadata::from_stored(value.get())) } else { Err(fault(&"another value")) }
}

/// Reads pgvector's binary form: D and a reserved number of two bytes each, then D floats, all big-endian.
fn vector(bytes: &[u8]) -> Vec<f32> {
    let floats = bytes.get(4..).unwrap_or_default().chunks_exact(4);
    floats.map(|b| f32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect()
}
