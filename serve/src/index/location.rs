//! The value of `--index`: where items are stored.

use std::path::PathBuf;
use std::str::FromStr;

use super::postgres::address::Address;

/// Where items are stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Location {
    /// In memory, until the process ends.
    #[default]
    Memory,
    /// In a folder of this machine.
    Folder(PathBuf),
    /// In a PostgreSQL database, which other servers may use, too.
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
