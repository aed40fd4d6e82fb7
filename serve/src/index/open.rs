//! Opens the index at a [`Location`].

use std::sync::Arc;

use super::embedded::EmbeddedIndex;
use super::error::IndexError;
use super::interface::Index;
use super::item::EncoderIdentity;
use super::location::Location;
use super::options::OpenOptions;
use super::postgres::PostgresIndex;

/// Opens an index for this encoder, or creates it.
///
/// # Errors
/// [`IndexError::Open`] if another process has it open or it is damaged, [`IndexError::EncoderMismatch`].
pub fn open(
    location: &Location,
    encoder: &EncoderIdentity,
    options: &OpenOptions,
) -> Result<Arc<dyn Index>, IndexError> {
    Ok(match location {
        Location::Memory => Arc::new(EmbeddedIndex::in_memory(encoder.clone(), options)?),
        Location::Folder(dir) => Arc::new(EmbeddedIndex::open(dir, encoder, options)?),
        Location::Postgres(address) => Arc::new(PostgresIndex::open(address, encoder, options)?),
    })
}

/// Opens an existing index read-only, beside the process that writes it; also returns the encoder of its vectors.
///
/// # Errors
/// [`IndexError::Open`].
pub fn open_read_only(location: &Location) -> Result<(Arc<dyn Index>, EncoderIdentity), IndexError> {
    match location {
        Location::Memory => Err(IndexError::Open("an index in memory ends with its process".into())),
        Location::Folder(dir) => {
            let (index, encoder) = EmbeddedIndex::open_read_only(dir)?;
            Ok((Arc::new(index), encoder))
        }
        Location::Postgres(address) => {
            let (index, encoder) = PostgresIndex::open_read_only(address)?;
            Ok((Arc::new(index), encoder))
        }
    }
}
