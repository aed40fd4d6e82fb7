//! `macrl-serve export`, `import` and `backup`: an index as one file that other tools read, and back.
//!
//! Parquet (`.parquet`) holds everything: `id`, `vector` as a list of floats, `metadata` as JSON in plain text, `image` as the stored
//! thumbnail (PNG), `sha256` of the file that the item was made from, and the encoder's identity in the file's own metadata.
//! NumPy (`.npy`) holds the vectors (n, D).  A file of the same name that ends in `.jsonl` holds ids and metadata, a line of
//! JSON for each row.  There are no thumbnails.

mod backup;
mod export;
mod format;
mod import;
mod label_folders;
mod npy;
mod parquet;
mod row;

pub use backup::{BackupArgs, backup};
pub use export::{ExportArgs, export};
pub use import::{ImportArgs, import};
pub use label_folders::{LabelFoldersArgs, label_folders};
