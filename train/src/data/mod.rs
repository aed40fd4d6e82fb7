//! Images on disk -> two splits behind one trait, whatever the format.
//!
//! One file per format; [`open`] recognises which one a folder holds.  Small sets are decoded once and kept as u8
//! ([`memory`]), large ones are decoded each time an image is used ([`folder`]).

pub mod cifar;
mod dataset;
mod files;
pub mod folder;
pub mod identity;
pub mod idx;
pub mod memory;
pub mod names;
mod open;
pub mod parquet;
mod reading;
pub mod split;
pub mod tiny;
pub mod unpack;

pub use dataset::{Data, Dataset};
pub use open::{open, open_with};
pub use reading::{Columns, Reading, Splits, Unclear};
