//! `macrl-serve export`: writes an index to a file.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use macrl_bundle::answer;
use macrl_bundle::output::elapsed;
use tokio::runtime::Runtime;

use super::format::Format;
use super::row::{BLOCK, Row, RowWriter};
use super::{npy, parquet};
use crate::index::{Index, Item, ListQuery, Location, open_read_only};

/// Thumbnails that are read at the same time.
const CONCURRENT_READS: usize = 8;

/// Write an index to a file, also while a server is using it.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Index to export: a folder, or a PostgreSQL database.
    #[arg(long, value_name = "DIR|postgres://...")]
    index: Location,
    /// Leave out the thumbnails, which may take a hundred times the space of the vectors.
    #[arg(long)]
    no_pictures: bool,
    /// FILE.parquet, which holds everything; or FILE.npy, with FILE.jsonl beside it, which hold no thumbnails.
    file: PathBuf,
}

/// Runs `macrl-serve export`.
///
/// # Errors
/// An index that cannot be read, or a file that cannot be written.
pub fn export(args: &ExportArgs) -> Result<()> {
    let format = Format::of(&args.file)?;
    format.check_output(&args.file)?;
    let since = Instant::now();
    let runtime = Runtime::new()?;
    let (index, encoder) = open_read_only(&args.index)?;
    let mut writer: Box<dyn RowWriter> = match format {
        Format::Npy => Box::new(npy::Writer::create(&args.file, encoder.dim)?),
        Format::Parquet => Box::new(parquet::Writer::create(&args.file, &encoder)?),
    };
    let thumbnails = matches!(format, Format::Parquet) && !args.no_pictures;
    let written = runtime.block_on(write_all(index.as_ref(), writer.as_mut(), thumbnails))?;
    writer.finish()?;
    answer!("{written} items in {} ({})", args.file.display(), elapsed(since.elapsed()));
    Ok(())
}

async fn write_all(index: &dyn Index, writer: &mut dyn RowWriter, thumbnails: bool) -> Result<usize> {
    let (mut cursor, mut written) = (None, 0);
    loop {
        let query = ListQuery { cursor, limit: BLOCK, vectors: true, skip_total: true, ..ListQuery::default() };
        let page = index.list(query).await?;
        let rows = page.items.into_iter().map(|item| row(index, item, thumbnails));
        let rows: Vec<Option<Row>> = stream::iter(rows).buffered(CONCURRENT_READS).try_collect().await?;
        let rows: Vec<Row> = rows.into_iter().flatten().collect();
        written += rows.len();
        writer.write(rows)?;
        cursor = page.next;
        if cursor.is_none() {
            return Ok(written);
        }
    }
}

/// The row of a listed item.  An item with a thumbnail is read again as a whole, because it may have changed meanwhile; `None`
/// if it was deleted.
async fn row(index: &dyn Index, item: Item, thumbnails: bool) -> Result<Option<Row>> {
    let item = if thumbnails && item.has_image { index.get(&item.id).await? } else { Some(item) };
    let row = |Item { id, vector, metadata, image, hash, .. }| Row { id, vector, metadata, image, hash };
    Ok(item.map(row))
}
