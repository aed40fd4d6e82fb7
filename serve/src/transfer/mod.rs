//! `macrl-serve export` and `import`: an index as one file that other tools read, and back.
//!
//! Parquet (`.parquet`) carries everything: `id`, `vector` as a list of floats, `metadata` as JSON, and the encoder in
//! the file's own metadata.  NumPy (`.npy`) carries the vectors (n, D); ids and metadata lie beside it, a line of JSON
//! for each row, in a file of the same name that ends in `.jsonl`.  Pictures stay behind.

mod npy;
mod parquet;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use macrl_models::answer;
use macrl_models::bundle::Bundle;
use macrl_models::output::elapsed;
use tokio::runtime::Runtime;

use crate::cli::UsageError;
use crate::index::{
    self, Encoder, Index, Item, Listing, Location, Metadata, OpenOptions, check_id, normalized, open_to_read,
};

/// Rows read, written and committed at a time.
const BLOCK: usize = 4096;

/// Writes an index to a file; beside a server that is running, too.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The index.
    #[arg(long, value_name = "DIR|postgres://...")]
    index: Location,
    /// FILE.parquet, or FILE.npy with FILE.jsonl beside it.
    file: PathBuf,
}

/// Puts the items of a file into an index.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The index; made where there is none.
    #[arg(long, value_name = "DIR|postgres://...")]
    index: Location,
    /// Folder written by `macrl-export bundle`: its encoder made the vectors.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// FILE.parquet with columns id, vector and, optionally, metadata (JSON); or FILE.npy (n, D), with FILE.jsonl
    /// (`{"id", "metadata"}` a line) beside it, else rows are named by their numbers.
    file: PathBuf,
}

/// One item of a file.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    id: String,
    vector: Vec<f32>,
    metadata: Metadata,
}

/// What a kind of file can do.
trait Sink {
    fn write(&mut self, rows: Vec<Row>) -> Result<()>;
    /// The file is complete and in its place.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Rows, block by block; an empty one is the end.
trait Source {
    fn next(&mut self) -> Result<Vec<Row>>;
    /// Whose vectors they are, where the file says so.
    fn encoder(&self) -> Option<String>;
}

#[derive(Clone, Copy)]
enum Kind {
    Npy,
    Parquet,
}

fn kind(file: &Path) -> Result<Kind> {
    match file.extension().and_then(|e| e.to_str()) {
        Some("npy") => Ok(Kind::Npy),
        Some("parquet") => Ok(Kind::Parquet),
        _ => Err(UsageError(format!("expected FILE.parquet or FILE.npy, found {}", file.display())).into()),
    }
}

/// Only what an export wrote is replaced.
fn check_place(kind: Kind, file: &Path) -> Result<()> {
    let (there, own) = match kind {
        Kind::Npy => (npy::there(file), npy::is_own(file)),
        Kind::Parquet => (file.symlink_metadata().is_ok().then(|| file.to_path_buf()), parquet::is_own(file)),
    };
    match there.filter(|_| !own) {
        None => Ok(()),
        Some(there) => {
            let said = "is there and `macrl-serve export` did not write it: name another file, or move it away";
            Err(UsageError(format!("{} {said}", there.display())).into())
        }
    }
}

/// Runs `macrl-serve export`.
///
/// # Errors
/// An index that cannot be read, or a file that cannot be written.
pub fn export(args: &ExportArgs) -> Result<()> {
    let kind = kind(&args.file)?;
    check_place(kind, &args.file)?;
    let since = Instant::now();
    let runtime = Runtime::new()?;
    let (index, encoder) = open_to_read(&args.index)?;
    let mut sink: Box<dyn Sink> = match kind {
        Kind::Npy => Box::new(npy::Writer::create(&args.file, encoder.dim)?),
        Kind::Parquet => Box::new(parquet::Writer::create(&args.file, &encoder)?),
    };
    let written = runtime.block_on(write_all(index.as_ref(), sink.as_mut()))?;
    sink.finish()?;
    answer!("{written} items in {} ({})", args.file.display(), elapsed(since.elapsed()));
    Ok(())
}

async fn write_all(index: &dyn Index, sink: &mut dyn Sink) -> Result<usize> {
    let (mut cursor, mut written) = (None, 0);
    loop {
        let listing = Listing { cursor, limit: BLOCK, vectors: true, uncounted: true, ..Listing::default() };
        let page = index.list(listing).await?;
        written += page.items.len();
        let row = |item: Item| Row { id: item.id, vector: item.vector, metadata: item.metadata };
        sink.write(page.items.into_iter().map(row).collect())?;
        cursor = page.next;
        if cursor.is_none() {
            return Ok(written);
        }
    }
}

/// Runs `macrl-serve import`.
///
/// # Errors
/// A file that is not what it should be, or an index that cannot be written; what was stored until then stays.
pub fn import(args: &ImportArgs) -> Result<()> {
    let kind = kind(&args.file)?;
    let since = Instant::now();
    let encoder = Encoder::of(&Bundle::open(&args.bundle)?);
    let mut source: Box<dyn Source> = match kind {
        Kind::Npy => Box::new(npy::Reader::open(&args.file)?),
        Kind::Parquet => Box::new(parquet::Reader::open(&args.file)?),
    };
    if let Some(other) = source.encoder().filter(|e| *e != encoder.sha256) {
        let (file, given) = (args.file.display(), Encoder { sha256: other, dim: encoder.dim });
        bail!("{file} holds vectors of encoder {given}, the bundle's is {encoder}");
    }
    let runtime = Runtime::new()?;
    let index = index::open(&args.index, &encoder, &OpenOptions::default())?;
    let mut stored = 0;
    loop {
        let rows = source.next().with_context(|| format!("after {stored} items"))?;
        if rows.is_empty() {
            break;
        }
        let first = stored;
        let items = rows.into_iter().enumerate().map(|(i, row)| item(row, first + i, encoder.dim));
        let items = items.collect::<Result<Vec<Item>>>()?;
        stored += items.len();
        for outcome in runtime.block_on(index.put(&encoder, items))? {
            outcome?;
        }
    }
    answer!("{stored} items of {} stored in {}", args.file.display(), elapsed(since.elapsed()));
    Ok(())
}

fn item(row: Row, number: usize, dim: usize) -> Result<Item> {
    let Row { id, vector, metadata } = row;
    let fault = |cause: String| anyhow::anyhow!("row {number}: {cause}");
    check_id(&id).map_err(fault)?;
    if vector.len() != dim {
        bail!(fault(format!("expected a vector of {dim} numbers, found {}", vector.len())));
    }
    let vector = normalized(vector).map_err(fault)?;
    Ok(Item { id, vector, metadata, image: None, pictured: false, hash: None })
}
