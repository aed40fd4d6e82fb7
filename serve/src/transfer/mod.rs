//! `macrl-serve export` and `import`: an index as one file that other tools read, and back; and `backup`.
//!
//! Parquet (`.parquet`) carries everything: `id`, `vector` as a list of floats, `metadata` as JSON, `image` as it is
//! stored (PNG), `sha256` of the file that the item was made from, and the encoder in the file's own metadata.  NumPy
//! (`.npy`) carries the vectors (n, D); ids and metadata lie beside it, a line of JSON for each row, in a file of the
//! same name that ends in `.jsonl`; it carries no pictures.

mod backup;
mod npy;
mod parquet;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use macrl_bundle::answer;
use macrl_bundle::bundle::Bundle;
use macrl_bundle::output::elapsed;
use tokio::runtime::Runtime;

use crate::cli::UsageError;
use crate::index::{
    self, ContentHash, Encoder, Index, Item, Listing, Location, Metadata, OpenOptions, check_id, normalized,
    open_to_read,
};
pub use backup::{BackupArgs, backup};

/// Rows read, written and committed at a time; with pictures they take some 30 MB.
const BLOCK: usize = 1024;
/// How a picture begins.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Pictures that are read at the same time.
const PICTURES: usize = 8;

/// Writes an index to a file; beside a server that is running, too.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The index.
    #[arg(long, value_name = "DIR|postgres://...")]
    index: Location,
    /// Leaves the pictures out: an index of them may be a hundred times larger than one of vectors.
    #[arg(long)]
    no_pictures: bool,
    /// FILE.parquet, which holds everything; or FILE.npy with FILE.jsonl beside it, which have no pictures.
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
    /// FILE.parquet with columns id, vector and, optionally, metadata (JSON); an export's image (PNG) and sha256, too.  Or
    /// FILE.npy (n, D), with FILE.jsonl (`{"id", "metadata"}` a line) beside it, else rows are named by their numbers.
    file: PathBuf,
}

/// One item of a file.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    id: String,
    vector: Vec<f32>,
    metadata: Metadata,
    /// As the index keeps it.
    image: Option<Arc<[u8]>>,
    hash: Option<ContentHash>,
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
    let pictures = matches!(kind, Kind::Parquet) && !args.no_pictures;
    let written = runtime.block_on(write_all(index.as_ref(), sink.as_mut(), pictures))?;
    sink.finish()?;
    answer!("{written} items in {} ({})", args.file.display(), elapsed(since.elapsed()));
    Ok(())
}

async fn write_all(index: &dyn Index, sink: &mut dyn Sink, pictures: bool) -> Result<usize> {
    let (mut cursor, mut written) = (None, 0);
    loop {
        let listing = Listing { cursor, limit: BLOCK, vectors: true, uncounted: true, ..Listing::default() };
        let page = index.list(listing).await?;
        let rows = page.items.into_iter().map(|item| with_picture(index, item, pictures));
        let rows: Vec<Option<Row>> = stream::iter(rows).buffered(PICTURES).try_collect().await?;
        let rows: Vec<Row> = rows.into_iter().flatten().collect();
        written += rows.len();
        sink.write(rows)?;
        cursor = page.next;
        if cursor.is_none() {
            return Ok(written);
        }
    }
}

/// A listed item with its picture, where it has one: read again as a whole, since it may have changed meanwhile.
async fn with_picture(index: &dyn Index, item: Item, pictures: bool) -> Result<Option<Row>> {
    let item = if pictures && item.pictured { index.get(&item.id).await? } else { Some(item) };
    let row = |Item { id, vector, metadata, image, hash, .. }| Row { id, vector, metadata, image, hash };
    Ok(item.map(row))
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
    let Row { id, vector, metadata, image, hash } = row;
    let fault = |cause: String| anyhow::anyhow!("row {number}: {cause}");
    check_id(&id).map_err(fault)?;
    if vector.len() != dim {
        bail!(fault(format!("expected a vector of {dim} numbers, found {}", vector.len())));
    }
    if image.as_ref().is_some_and(|image| !image.starts_with(PNG)) {
        bail!(fault("its image is not PNG".into()));
    }
    Ok(Item { id, vector: unit(vector).map_err(fault)?, metadata, pictured: image.is_some(), image, hash })
}

/// Of length 1; what is already stays as it is, to the bit.
fn unit(vector: Vec<f32>) -> Result<Vec<f32>, String> {
    let square: f64 = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    if (square - 1.0).abs() < 1e-6 { Ok(vector) } else { normalized(vector) }
}
