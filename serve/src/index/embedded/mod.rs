//! The default index: everything that a search reads is in memory; with a folder, every change is on disk.
//!
//! An index in memory runs the same code as one in a folder; only the [`store`] is missing.  One [`writer`] thread makes all
//! changes.  The [`item_table`] holds the items, [`postings`] answer filters, [`scan`] compares vectors exactly, the
//! [`graph`] finds neighbours approximately, [`nodes`] relate its nodes to items, and [`graph_maintenance`] keeps it up to
//! date.  [`backend`] puts the parts together.

mod backend;
mod change;
mod folder;
mod graph;
mod graph_maintenance;
mod item_table;
mod nodes;
mod postings;
mod scan;
mod search;
mod shared;
mod slot_set;
mod store;
mod vacuum;
mod writer;

pub use backend::EmbeddedIndex;
