//! `macrl-serve ingest`: a folder of images -> an index, or a running server.
//!
//! Into an index: one thread per core reads, hashes and decodes what the index does not have yet, the engine's workers
//! embed full batches, and what is embedded is committed in order, a few hundred at a time.  What is committed stays;
//! the same command again goes on where it was ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use macrl_models::bundle::Bundle;
use macrl_models::decode::{DecodeLimits, decode};
use macrl_models::output::elapsed;
use macrl_models::progress::Progress;
use macrl_models::runtime::Device;
use macrl_models::{answer, say};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::cli::{UsageError, parse_device};
use crate::client::{Client, Picture, pictures};
use crate::engine::{Engine, EngineOptions, Pixels};
use crate::error::ApiError;
use crate::features::encode_thumbnail;
use crate::index::{self, ContentHash, Encoder, Index, Item, Location, Metadata, OpenOptions, check_id, normalized};

/// Items of one commit.
const COMMIT: usize = 512;
/// Ids whose hashes are looked up together.
const LOOKUP: usize = 1024;

/// Puts a folder of images into an index; ids are paths below the folder, `metadata.label` is the first sub-folder.
#[derive(Debug, Args)]
pub struct IngestArgs {
    /// A running server, for instance http://127.0.0.1:8080, instead of --bundle and --index.
    #[arg(long, conflicts_with_all = ["bundle", "index"])]
    url: Option<String>,
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
    /// Images; sub-folders are labels.
    folder: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A folder without images, an index or server that does not answer, or images that were refused.
pub fn run(args: &IngestArgs) -> Result<()> {
    let since = Instant::now();
    let report = match (&args.url, &args.bundle, &args.index) {
        (Some(url), ..) => {
            let found = pictures(&args.folder)?;
            let client = Client::new(url);
            client.wait_until_ready(Duration::from_secs(30))?;
            let failed = client.upload(&found)?;
            Report { stored: found.len() - failed.len(), there: 0, failed }
        }
        (None, Some(bundle), Some(index)) => into_index(args, bundle, index)?,
        _ => {
            let message = "ingest needs --bundle DIR and --index DIR|postgres://..., or --url of a running server";
            return Err(UsageError(message.into()).into());
        }
    };
    report.print(since.elapsed())
}

/// What became of the images.
struct Report {
    stored: usize,
    /// In the index already, with the same content.
    there: usize,
    /// Id and cause.
    failed: Vec<(String, String)>,
}

impl Report {
    fn print(self, took: Duration) -> Result<()> {
        for (id, cause) in &self.failed {
            say!("{id}: {cause}");
        }
        let (seconds, total) = (took.as_secs_f64(), self.stored + self.there + self.failed.len());
        let there = if self.there > 0 { format!(", {} were there", self.there) } else { String::new() };
        let pace = self.stored as f64 / seconds.max(1e-9);
        answer!("{} of {total} images stored in {} ({pace:.0}/s){there}", self.stored, elapsed(took));
        match self.failed.len() {
            0 => Ok(()),
            1 => bail!("1 image was refused"),
            failed => bail!("{failed} images were refused"),
        }
    }
}

fn into_index(args: &IngestArgs, dir: &std::path::Path, location: &Location) -> Result<Report> {
    let found = pictures(&args.folder)?;
    let bundle = Bundle::open(dir)?;
    let encoder = Encoder::of(&bundle);
    let index = index::open(location, &encoder, &OpenOptions::default())?;
    let runtime = Runtime::new()?;
    let known = runtime.block_on(hashes(index.as_ref(), &found))?;
    let options = EngineOptions {
        device: args.device,
        max_batch: args.max_batch.map(usize::from),
        // Nobody waits for one image: every batch but the last is full.
        batch_wait: Duration::from_millis(500),
        ..EngineOptions::default()
    };
    let engine = Engine::start(&bundle, &options, &Arc::default())?;
    let in_flight = 4 * engine.max_batch() * engine.devices().len();
    let work = Work { found, known, bundle: &bundle, engine: &engine, next: AtomicUsize::new(0) };
    let progress = Progress::new("storing images", work.found.len());
    let (sender, receiver) = sync_channel(in_flight);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let (sender, work) = (sender.clone(), &work);
            scope.spawn(move || work.run(&sender));
        }
        drop(sender);
        let mut collector = Collector {
            index: index.as_ref(),
            encoder: &encoder,
            runtime: &runtime,
            report: Report { stored: 0, there: 0, failed: Vec::new() },
            ready: Vec::new(),
        };
        collector.run(&receiver, &progress)?;
        Ok(collector.report)
    })
}

async fn hashes(index: &dyn Index, found: &[Picture]) -> Result<Vec<Option<ContentHash>>> {
    let mut known = Vec::with_capacity(found.len());
    for block in found.chunks(LOOKUP) {
        let ids: Vec<String> = block.iter().map(|p| p.id.clone()).collect();
        known.extend(index.hashes(&ids).await?);
    }
    Ok(known)
}

/// What became of one image before inference.
enum Prepared {
    There,
    Failed(String),
    Waiting { item: Item, feature: oneshot::Receiver<Result<Vec<f32>, ApiError>> },
}

/// What the reading threads share.
struct Work<'a> {
    found: Vec<Picture>,
    /// Of the items that the index has, in the order of `found`.
    known: Vec<Option<ContentHash>>,
    bundle: &'a Bundle,
    engine: &'a Engine,
    next: AtomicUsize,
}

impl Work<'_> {
    /// Takes images until there are none, or nobody wants them any more.
    fn run(&self, ready: &SyncSender<(String, Prepared)>) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(picture) = self.found.get(number) else { return };
            let prepared = self.prepare(picture, self.known[number]);
            let prepared = prepared.unwrap_or_else(|cause| Prepared::Failed(format!("{cause:#}")));
            if ready.send((picture.id.clone(), prepared)).is_err() {
                return;
            }
        }
    }

    fn prepare(&self, picture: &Picture, known: Option<ContentHash>) -> Result<Prepared> {
        check_id(&picture.id).map_err(anyhow::Error::msg)?;
        let bytes = std::fs::read(&picture.path).context("cannot be read")?;
        let hash: ContentHash = Sha256::digest(&bytes).into();
        if known == Some(hash) {
            return Ok(Prepared::There);
        }
        // A decoder that panics on a broken file costs that file.
        let decoded = std::panic::catch_unwind(|| {
            let image = decode(&bytes, &DecodeLimits::default())?;
            Ok::<_, ApiError>((self.bundle.preprocess.fit(&image).into_raw(), encode_thumbnail(&image)?))
        });
        let (pixels, thumbnail) = decoded.unwrap_or(Err(ApiError::Undecodable("its decoder failed".into())))?;
        let feature = self.engine.submit(Pixels::Ready(pixels))?;
        let metadata = metadata(picture);
        let image = Some(thumbnail);
        let item =
            Item { id: picture.id.clone(), vector: Vec::new(), metadata, image, pictured: true, hash: Some(hash) };
        Ok(Prepared::Waiting { item, feature })
    }
}

/// `{"label", "file"}`, as [`Client::upload`] sends it.
fn metadata(picture: &Picture) -> Metadata {
    match picture.metadata() {
        serde_json::Value::Object(metadata) => metadata,
        _ => Metadata::new(),
    }
}

/// Takes what was prepared, in order, and commits what was embedded.
struct Collector<'a> {
    index: &'a dyn Index,
    encoder: &'a Encoder,
    runtime: &'a Runtime,
    report: Report,
    ready: Vec<Item>,
}

impl Collector<'_> {
    fn run(&mut self, prepared: &Receiver<(String, Prepared)>, progress: &Progress) -> Result<()> {
        for (id, outcome) in prepared {
            match outcome {
                Prepared::There => self.report.there += 1,
                Prepared::Failed(cause) => self.report.failed.push((id, cause)),
                Prepared::Waiting { item, feature } => {
                    let raw = feature.blocking_recv().unwrap_or(Err(ApiError::Stopping))?;
                    match normalized(raw) {
                        Ok(vector) => self.ready.push(Item { vector, ..item }),
                        Err(cause) => self.report.failed.push((id, cause)),
                    }
                }
            }
            if self.ready.len() >= COMMIT {
                self.commit()?;
            }
            progress.add(1);
        }
        self.commit()
    }

    fn commit(&mut self) -> Result<()> {
        let items = std::mem::take(&mut self.ready);
        let ids: Vec<String> = items.iter().map(|item| item.id.clone()).collect();
        let outcomes = self.runtime.block_on(self.index.put(self.encoder, items))?;
        for (id, outcome) in ids.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => self.report.stored += 1,
                Err(cause) => self.report.failed.push((id, cause.to_string())),
            }
        }
        Ok(())
    }
}
