//! `macrl-serve ingest`: a folder of images -> items of a running server.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

use crate::cli::UsageError;
use crate::client::{Client, pictures};

/// Puts a folder of images into an index; ids are paths below the folder, `metadata.label` is the first sub-folder.
#[derive(Debug, Args)]
pub struct IngestArgs {
    /// A running server, for instance http://127.0.0.1:8080.
    #[arg(long)]
    url: Option<String>,
    /// Folder written by `macrl-export bundle`; needed with --index.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// A durable index to write without a server.
    #[arg(long, value_name = "DIR|postgres://")]
    index: Option<String>,
    /// Images; sub-folders are labels.
    folder: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A folder without images, a server that does not answer, or images that it refused.
pub fn run(args: &IngestArgs) -> Result<()> {
    let Some(url) = &args.url else {
        let message = "ingest needs --url of a running server: this build keeps items in the server's memory only";
        return Err(UsageError(message.into()).into());
    };
    if args.bundle.is_some() || args.index.is_some() {
        return Err(UsageError("--url goes without --bundle and --index: the server has its own".into()).into());
    }
    let found = pictures(&args.folder)?;
    let client = Client::new(url);
    client.wait_until_ready(Duration::from_secs(30))?;
    let since = Instant::now();
    let failed = client.upload(&found)?;
    for (id, cause) in &failed {
        eprintln!("{id}: {cause}");
    }
    let seconds = since.elapsed().as_secs_f64();
    let stored = found.len() - failed.len();
    println!(
        "{stored} of {} images stored in {seconds:.1} s ({:.0}/s)",
        found.len(),
        stored as f64 / seconds.max(1e-9)
    );
    if !failed.is_empty() {
        bail!("{} images were refused", failed.len());
    }
    Ok(())
}
