//! `macrl-serve import`: stores the items of a file in an index.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use macrl_bundle::answer;
use macrl_bundle::bundle::Bundle;
use macrl_bundle::output::elapsed;
use tokio::runtime::Runtime;

use super::format::Format;
use super::row::{Row, RowReader};
use super::{npy, parquet};
use crate::index::{self, EncoderIdentity, Item, Location, OpenOptions, check_id, normalized};

/// The signature of a PNG file.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Store the items of a file in an index.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The index; created if there is none.
    #[arg(long, value_name = "DIR|postgres://...")]
    index: Location,
    /// Folder written by `macrl-export bundle`, whose encoder made the vectors.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// FILE.parquet with columns id, vector and, optionally, metadata (JSON); image (PNG) and sha256 of an export are read, too.
    /// Or FILE.npy (n, D) with FILE.jsonl beside it (a line `{"id", "metadata"}` for each row); without it, row numbers are ids.
    file: PathBuf,
    /// Bytes of memory that the items of the index may take.
    #[arg(long, default_value_t = OpenOptions::default().max_bytes, value_name = "BYTES")]
    max_index: usize,
}

/// Runs `macrl-serve import`.
///
/// # Errors
/// A file that is not what it should be, or an index that cannot be written; what was stored until then stays.
pub fn import(args: &ImportArgs) -> Result<()> {
    let format = Format::of(&args.file)?;
    let since = Instant::now();
    let encoder = EncoderIdentity::of(&Bundle::open(&args.bundle)?);
    let mut reader: Box<dyn RowReader> = match format {
        Format::Npy => Box::new(npy::Reader::open(&args.file)?),
        Format::Parquet => Box::new(parquet::Reader::open(&args.file)?),
    };
    if let Some(other) = reader.encoder().filter(|e| *e != encoder.sha256) {
        let (file, given) = (args.file.display(), EncoderIdentity { sha256: other, dim: encoder.dim });
        bail!("{file} holds vectors of encoder {given}, the bundle's is {encoder}");
    }
    let runtime = Runtime::new()?;
    let options = OpenOptions { max_bytes: args.max_index, ..OpenOptions::default() };
    let index = index::open(&args.index, &encoder, &options)?;
    let mut stored = 0;
    loop {
        let rows = reader.next().with_context(|| format!("after {stored} items"))?;
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
    Ok(Item { id, vector: unit(vector).map_err(fault)?, metadata, has_image: image.is_some(), image, hash })
}

/// The vector scaled to length 1.  One that has this length already is not changed, so that a copy is exact.
fn unit(vector: Vec<f32>) -> Result<Vec<f32>, String> {
    let square: f64 = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    if (square - 1.0).abs() < 1e-6 { Ok(vector) } else { normalized(vector) }
}
