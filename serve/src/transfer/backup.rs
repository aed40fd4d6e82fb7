//! `macrl-serve backup`: a copy of an index, made beside the server that writes it.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use macrl_bundle::answer;
use macrl_bundle::output::elapsed;

use crate::cli::UsageError;
use crate::index::{EmbeddedIndex, Location};

/// Copies an index in a folder as it is at one moment; beside a server that is running, too.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The index, a folder.
    #[arg(long, value_name = "DIR")]
    index: Location,
    /// An empty folder or a new one: an index that can be served as it is.
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
    answer!("{items} items in {} ({})", args.to.display(), elapsed(since.elapsed()));
    Ok(())
}
