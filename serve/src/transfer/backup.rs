//! `macrl-serve backup`: copies an index, also while a server is using it.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use macrl_bundle::answer;
use macrl_bundle::output::elapsed;

use crate::arguments::UsageError;
use crate::index::{EmbeddedIndex, Location};
use crate::labels;

/// Copy an index in a folder as it is at one moment, also while a server is using it.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The folder of the index.
    #[arg(long, value_name = "DIR")]
    index: Location,
    /// An empty or new folder for the copy, which is an index that can be served.
    to: PathBuf,
}

/// Runs `macrl-serve backup`.
///
/// # Errors
/// An index that cannot be read, or a folder that cannot be written or is not empty.
pub fn backup(args: &BackupArgs) -> Result<()> {
    let since = Instant::now();
    let Location::Folder(dir) = &args.index else {
        let message = "backup copies an index in a folder; of one in PostgreSQL, pg_dump makes copies (docs/backup.md)";
        return Err(UsageError(message.into()).into());
    };
    let items = EmbeddedIndex::back_up(dir, &args.to)?;
    labels::back_up(dir, &args.to)?;
    answer!("{items} items in {} ({})", args.to.display(), elapsed(since.elapsed()));
    Ok(())
}
