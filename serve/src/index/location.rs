//! `--index`: where items are kept, and how that is opened.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::postgres::Address;
use super::{EmbeddedIndex, Encoder, Index, IndexError, PostgresIndex};

/// Where items are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Location {
    /// In memory, for the life of the process.
    #[default]
    Memory,
    /// In a folder of this machine.
    Folder(PathBuf),
    /// In a PostgreSQL that others may share.
    Postgres(Box<Address>),
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            None if text.is_empty() => Err("expected a folder or postgres://…, found nothing".into()),
            None => Ok(Self::Folder(text.into())),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(Box::new(text.parse()?))),
            Some((scheme, _)) => Err(format!("expected a folder or postgres://…, found {scheme}://…")),
        }
    }
}

/// How an index is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenOptions {
    /// Bytes of memory that its items may take; a data base across the network has limits of its own.
    pub max_bytes: usize,
    /// With more items than this, searches are approximate unless they ask to be exact.
    pub exact_up_to: usize,
    /// How long opening waits for a data base that does not answer yet.
    pub patience: Duration,
}

impl Default for OpenOptions {
    /// 2 GiB hold about a million items; 50,000 vectors are compared within 10 ms.
    fn default() -> Self {
        Self { max_bytes: 2 << 30, exact_up_to: 50_000, patience: Duration::ZERO }
    }
}

/// Opens or creates an index for this encoder.
///
/// # Errors
/// [`IndexError::Open`] where another process has it or it is damaged, [`IndexError::Encoder`].
pub fn open(location: &Location, encoder: &Encoder, options: &OpenOptions) -> Result<Arc<dyn Index>, IndexError> {
    Ok(match location {
        Location::Memory => Arc::new(EmbeddedIndex::in_memory(encoder.clone(), options)?),
        Location::Folder(dir) => Arc::new(EmbeddedIndex::open(dir, encoder, options)?),
        Location::Postgres(address) => Arc::new(PostgresIndex::open(address, encoder, options)?),
    })
}

/// Opens an index to be read only, beside the process that writes it; also whose vectors it holds.
///
/// # Errors
/// [`IndexError::Open`].
pub fn open_to_read(location: &Location) -> Result<(Arc<dyn Index>, Encoder), IndexError> {
    match location {
        Location::Memory => Err(IndexError::Open("an index in memory ends with its process".into())),
        Location::Folder(dir) => {
            let (index, encoder) = EmbeddedIndex::open_to_read(dir)?;
            Ok((Arc::new(index), encoder))
        }
        Location::Postgres(address) => {
            let (index, encoder) = PostgresIndex::open_to_read(address)?;
            Ok((Arc::new(index), encoder))
        }
    }
}
