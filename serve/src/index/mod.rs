//! Indexes: where items are stored and searched.
//!
//! [`Index`] is the trait that the routes use.  [`EmbeddedIndex`] is the default backend: everything that a search reads is
//! in memory, and with a folder every change is in a database on disk before it is acknowledged.  [`PostgresIndex`] is
//! shared by several servers.

pub mod duplicates;
pub mod embedded;
mod error;
mod filter;
mod interface;
mod item;
mod location;
mod open;
mod options;
pub mod postgres;
mod query;

pub use embedded::EmbeddedIndex;
pub use error::IndexError;
pub use filter::{Condition, Filter, Range};
pub use interface::Index;
pub use item::{ContentHash, EncoderIdentity, Hit, Item, JsonMap, Metadata, ScoredId, check_id, normalized};
pub use location::Location;
pub use open::{open, open_read_only};
pub use options::OpenOptions;
pub use postgres::PostgresIndex;
pub use query::{ListQuery, Page, Query, Status};
