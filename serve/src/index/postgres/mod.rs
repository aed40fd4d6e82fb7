//! An index in PostgreSQL with pgvector: several servers share it, and it may be larger than a machine's memory.
//!
//! This process holds nothing but connections: every answer comes from the database.  [`address`] parses where it is,
//! [`connector`] keeps connections to it, [`schema`] creates its tables, [`filter_sql`] turns filters into SQL, and
//! [`graph_maintenance`] builds its graph.  [`backend`] implements the trait by [`search`], [`reads`] and [`writes`].

pub mod address;
mod backend;
mod connector;
mod error;
mod filter_sql;
mod graph_maintenance;
mod reads;
mod rows;
mod schema;
mod search;
mod shared;
mod statement;
mod tls;
mod writes;

pub use address::Address;
pub use backend::PostgresIndex;
