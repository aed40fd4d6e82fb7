//! `macrl-serve ingest`: a folder of images -> an index, or a running server.
//!
//! Into an index: one thread per core reads, hashes and decodes what the index does not have yet, the engine's workers
//! embed full batches, and what is embedded is committed in order, a few hundred at a time.  What is committed stays;
//! the same command again goes on where it was ended.

mod places;
mod prune;
mod source;
mod work;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use macrl_bundle::bundle::Bundle;
use macrl_bundle::decode::DecodeLimits;
use macrl_bundle::device::Device;
use macrl_bundle::output::elapsed;
use macrl_bundle::progress::Progress;
use macrl_bundle::{answer, say};
use tokio::runtime::Runtime;

use self::places::{Local, Remote};
use self::source::{Source, Stored};
use self::work::{Collector, Work, check_source};
use crate::cli::{UsageError, parse_device};
use crate::client::Client;
use crate::engine::{Engine, EngineOptions};
use crate::index::{self, ContentHash, Encoder, Index, Location, Metadata, OpenOptions};
use crate::pictures::{Labels, Picture, Pictures, pictures};

/// Ids whose hashes are looked up together.
const LOOKUP: usize = 1024;

/// Puts a folder of images into an index.
///
/// An item's id is the file's path below the folder; from the second folder on it stands behind the folder's name.  A folder
/// within one that was ingested before belongs to it.  The label is found by the rule of training (docs/data.md).
#[derive(Debug, Args)]
pub struct IngestArgs {
    /// A running server, for instance http://127.0.0.1:8080, instead of --bundle and --index.
    #[arg(long, conflicts_with_all = ["bundle", "index"])]
    url: Option<String>,
    /// The server's key [or environment MACRL_API_KEY, which does not show in `ps`].
    #[arg(long, value_name = "KEY", requires = "url")]
    api_key: Option<String>,
    /// Folder written by `macrl-export bundle`.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// The index; made where there is none.
    #[arg(long, value_name = "DIR|postgres://...")]
    index: Option<Location>,
    /// Where inference runs: auto, cpu or cuda.
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    device: Device,
    /// Images of a batch [default: 8, which stay in a core's cache; 64 on CUDA].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_batch: Option<u16>,
    /// Pixels (width x height) above which an image is refused.
    #[arg(long, default_value_t = DecodeLimits::DEFAULT.max_pixels, value_name = "PIXELS")]
    max_pixels: u64,
    /// Where labels come from.
    #[arg(long, value_enum, default_value_t)]
    label_from: Labels,
    /// A name for where the images come from, instead of the folder's path: for a folder that is not always mounted at the
    /// same place.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Removes the items of this folder whose files are gone.
    #[arg(long)]
    prune: bool,
    /// Images.
    folder: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A folder without images, an index or server that does not answer, or images that were refused.
pub fn run(args: &IngestArgs) -> Result<()> {
    let since = Instant::now();
    let folder =
        args.folder.canonicalize().with_context(|| format!("cannot read the folder {}", args.folder.display()))?;
    let report = match (&args.url, &args.bundle, &args.index) {
        (Some(url), ..) => {
            let client = Client::new(url, args.api_key.clone());
            client.wait_until_ready(Duration::from_secs(30), false)?;
            let remote = Remote(&client);
            let job = Job::new(args, &folder, &remote)?;
            job.finish(to_server(&job, &client)?)?
        }
        (None, Some(bundle), Some(location)) => {
            let bundle = Bundle::open(bundle)?;
            let encoder = Encoder::of(&bundle);
            let index = index::open(location, &encoder, &OpenOptions::default())?;
            let runtime = Runtime::new()?;
            let local = Local { index: index.as_ref(), runtime: &runtime };
            let job = Job::new(args, &folder, &local)?;
            job.finish(into_index(&job, &bundle, &encoder, &local)?)?
        }
        _ => {
            let message = "ingest needs --bundle DIR and --index DIR|postgres://..., or --url of a running server";
            return Err(UsageError(message.into()).into());
        }
    };
    report.print(since.elapsed())
}

/// What is to be ingested.
struct Job<'a> {
    args: &'a IngestArgs,
    /// Full path.
    folder: &'a Path,
    stored: &'a dyn Stored,
    source: Source,
    found: Pictures,
}

impl<'a> Job<'a> {
    fn new(args: &'a IngestArgs, folder: &'a Path, stored: &'a dyn Stored) -> Result<Self> {
        let source = Source::find(stored, folder, args.source.as_deref())?;
        let found = pictures(folder, &source.root, args.label_from)?;
        if !found.left_out.is_empty() {
            say!("left out: {}", found.left_out);
        }
        Ok(Self { args, folder, stored, source, found })
    }

    fn items(&self) -> Vec<(Picture, Metadata)> {
        self.found.list.iter().map(|picture| self.source.item(picture.clone())).collect()
    }

    /// Removes what is gone, if that was asked for.
    fn finish(&self, report: Report) -> Result<Report> {
        if !self.args.prune {
            return Ok(report);
        }
        if !self.found.complete() {
            bail!(
                "what was found is stored, but nothing was removed, since a file, folder or link could not be read (see above)"
            );
        }
        let items = self.items();
        let ids: HashSet<&str> = items.iter().map(|(picture, _)| picture.id.as_str()).collect();
        Ok(Report { removed: prune::prune(self.stored, &self.source, self.folder, &ids)?, ..report })
    }
}

/// What became of the images.
#[derive(Default)]
struct Report {
    stored: usize,
    /// Of those stored, how many took the place of an item.
    replaced: usize,
    /// In the index already, with the same content.
    there: usize,
    /// Items whose files are gone.
    removed: usize,
    /// Id and cause.
    failed: Vec<(String, String)>,
}

impl Report {
    fn print(self, took: Duration) -> Result<()> {
        for (id, cause) in &self.failed {
            say!("{id}: {cause}");
        }
        let (seconds, total) = (took.as_secs_f64(), self.stored + self.there + self.failed.len());
        let pace = self.stored as f64 / seconds.max(1e-9);
        let more = [(self.replaced, "replaced an item"), (self.there, "were there"), (self.removed, "removed")];
        let more = more.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!(", {count} {what}"));
        let more: String = more.collect();
        answer!("{} of {total} images stored in {} ({pace:.0}/s){more}", self.stored, elapsed(took));
        match self.failed.len() {
            0 => Ok(()),
            1 => bail!("1 image was refused"),
            failed => bail!("{failed} images were refused"),
        }
    }
}

fn to_server(job: &Job, client: &Client) -> Result<Report> {
    let (mut items, mut refused) = (Vec::new(), Vec::new());
    for (picture, metadata) in job.items() {
        match check_source(job.stored, &job.source, &picture.id) {
            Ok(()) => items.push((picture, metadata)),
            Err(cause) => refused.push((picture.id, cause.to_string())),
        }
    }
    let uploaded = client.upload(&items)?;
    let stored = items.len() - uploaded.failed.len();
    refused.extend(uploaded.failed);
    Ok(Report { stored, replaced: uploaded.replaced, failed: refused, ..Report::default() })
}

fn into_index(job: &Job, bundle: &Bundle, encoder: &Encoder, local: &Local) -> Result<Report> {
    let found = job.items();
    let known = local.runtime.block_on(hashes(local.index, &found))?;
    let options = EngineOptions {
        device: job.args.device,
        max_batch: job.args.max_batch.map(usize::from),
        // Nobody waits for one image: every batch but the last is full.
        batch_wait: Duration::from_millis(500),
        ..EngineOptions::default()
    };
    let engine = Engine::start(bundle, &options, &Arc::default())?;
    let in_flight = 4 * engine.max_batch() * engine.devices().len();
    let (source, stored, next) = (&job.source, job.stored, AtomicUsize::new(0));
    let limits = DecodeLimits::of_pixels(job.args.max_pixels);
    let work = Work { found, known, source, stored, bundle, engine: &engine, limits, next };
    let progress = Progress::new("storing images", work.found.len());
    let (sender, receiver) = sync_channel(in_flight);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let (sender, work) = (sender.clone(), &work);
            scope.spawn(move || work.run(&sender));
        }
        drop(sender);
        let (report, ready) = (Report::default(), Vec::new());
        let mut collector = Collector { index: local.index, encoder, runtime: local.runtime, report, ready };
        collector.run(&receiver, &progress)?;
        Ok(collector.report)
    })
}

async fn hashes(index: &dyn Index, found: &[(Picture, Metadata)]) -> Result<Vec<Option<ContentHash>>> {
    let mut known = Vec::with_capacity(found.len());
    for block in found.chunks(LOOKUP) {
        let ids: Vec<String> = block.iter().map(|(picture, _)| picture.id.clone()).collect();
        known.extend(index.hashes(&ids).await?);
    }
    Ok(known)
}
