//! `macrl-serve ingest`: stores a folder of images in an index, or in the index of a running server.
//!
//! For an index, one thread per core reads, hashes and decodes the images that the index does not have yet.  The engine's
//! workers embed them in full batches, and the items are committed in order, a few hundred at a time.  Committed items stay, so
//! an interrupted command continues when it is run again.

mod item_store;
mod pipeline;
mod prune;
mod report;
mod source;

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
use macrl_bundle::preprocess::JpegDecoding;
use macrl_bundle::progress::Progress;
use macrl_bundle::say;
use tokio::runtime::Runtime;

use self::item_store::{ItemStore, OpenIndex, RemoteServer};
use self::pipeline::{Collector, Preparation, check_source};
use self::report::Report;
use self::source::Source;
use crate::arguments::{UsageError, parse_device};
use crate::client::Client;
use crate::engine::{Engine, EngineOptions, Precision};
use crate::image_folder::{ImageFile, ImageFolder, Labels, read_image_folder};
use crate::index::{self, ContentHash, EncoderIdentity, Index, JsonMap, Location, OpenOptions};
use crate::keys;

/// Ids whose hashes are looked up together.
const LOOKUP: usize = 1024;

/// Store a folder of images in an index.
///
/// An item's id is the file's path below the folder; from the second folder on, the folder's name precedes it.  A folder within
/// one that was ingested before belongs to that one.  Labels are found by the rule of training (docs/data.md).
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
    /// The index; created if there is none.
    #[arg(long, value_name = "DIR|postgres://...")]
    index: Option<Location>,
    /// Device of the inference: auto, cpu or cuda.
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    device: Device,
    /// ONNX Runtime's shared library, or its folder [or environment ORT_DYLIB_PATH; default: beside the program].
    #[arg(long, value_name = "PATH")]
    onnx_runtime: Option<PathBuf>,
    /// Precision of the matrix products: f32, int8 (on a CPU), or auto, which is int8 if the bundle has an 8-bit graph with its
    /// proof and it is faster here.  In 8 bits an embedding depends slightly on the images in its batch.
    #[arg(long, default_value = "f32", value_name = "auto|f32|int8")]
    precision: Precision,
    /// Images of a batch [default: 8, which fit into a core's cache; 64 on CUDA].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_batch: Option<u16>,
    /// Pixels (width x height) above which an image is refused.
    #[arg(long, default_value_t = DecodeLimits::DEFAULT.max_pixels, value_name = "PIXELS")]
    max_pixels: u64,
    /// Bytes of memory that the items of the index may take; further items are refused.
    #[arg(long, default_value_t = OpenOptions::default().max_bytes, value_name = "BYTES")]
    max_index: usize,
    /// Decode large JPEGs at their full size, not at 1/2, 1/4 or 1/8 of it where that is enough.
    #[arg(long)]
    exact_decoding: bool,
    /// Which folder gives an image its label.
    #[arg(long, value_enum, default_value_t)]
    label_from: Labels,
    /// A name for the source of the images, instead of the folder's path: for a folder that is not always mounted at the same
    /// path.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Remove the items of this folder whose files are gone.
    #[arg(long)]
    prune: bool,
    /// The folder of images.
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
            let client = Client::new(url, keys::single(args.api_key.as_deref())?);
            client.wait_until_ready(Duration::from_secs(30), false)?;
            let remote = RemoteServer(&client);
            let job = Job::new(args, &folder, &remote)?;
            job.finish(to_server(&job, &client)?)?
        }
        (None, Some(bundle), Some(location)) => {
            if let Some(path) = &args.onnx_runtime {
                macrl_runtime::choose_library(path);
            }
            let mut bundle = Bundle::open(bundle)?;
            if args.exact_decoding {
                bundle.preprocess.jpeg_decoding = JpegDecoding::Exact;
            }
            let encoder = EncoderIdentity::of(&bundle);
            let options = OpenOptions { max_bytes: args.max_index, ..OpenOptions::default() };
            let index = index::open(location, &encoder, &options)?;
            let runtime = Runtime::new()?;
            let local = OpenIndex { index: index.as_ref(), runtime: &runtime };
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

/// A folder that is to be ingested.
struct Job<'a> {
    args: &'a IngestArgs,
    /// Its full path.
    folder: &'a Path,
    store: &'a dyn ItemStore,
    source: Source,
    found: ImageFolder,
}

impl<'a> Job<'a> {
    fn new(args: &'a IngestArgs, folder: &'a Path, store: &'a dyn ItemStore) -> Result<Self> {
        let source = Source::find(store, folder, args.source.as_deref())?;
        let found = read_image_folder(folder, &source.root, args.label_from)?;
        if !found.left_out.is_empty() {
            say!("left out: {}", found.left_out);
        }
        Ok(Self { args, folder, store, source, found })
    }

    fn items(&self) -> Vec<(ImageFile, JsonMap)> {
        self.found.images.iter().map(|image| self.source.item(image.clone())).collect()
    }

    /// Removes the items whose files are gone, if that was asked for.
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
        let ids: HashSet<&str> = items.iter().map(|(image, _)| image.id.as_str()).collect();
        Ok(Report { removed: prune::prune(self.store, &self.source, self.folder, &ids)?, ..report })
    }
}

fn to_server(job: &Job, client: &Client) -> Result<Report> {
    let (mut items, mut refused) = (Vec::new(), Vec::new());
    for (image, metadata) in job.items() {
        match check_source(job.store, &job.source, &image.id) {
            Ok(()) => items.push((image, metadata)),
            Err(cause) => refused.push((image.id, cause.to_string())),
        }
    }
    let uploaded = client.upload(&items)?;
    let stored = items.len() - uploaded.failed.len();
    refused.extend(uploaded.failed);
    Ok(Report { stored, replaced: uploaded.replaced, failed: refused, ..Report::default() })
}

fn into_index(job: &Job, bundle: &Bundle, encoder: &EncoderIdentity, local: &OpenIndex) -> Result<Report> {
    let found = job.items();
    let known = local.runtime.block_on(hashes(local.index, &found))?;
    let options = EngineOptions {
        device: job.args.device,
        precision: job.args.precision,
        max_batch: job.args.max_batch.map(usize::from),
        // Throughput matters and not the delay of one image, so that every batch but the last should be full.
        batch_wait: Duration::from_millis(500),
        ..EngineOptions::default()
    };
    let engine = Engine::start(bundle, &options, &Arc::default())?;
    let in_flight = 4 * engine.max_batch() * engine.devices().len();
    let (source, store, next) = (&job.source, job.store, AtomicUsize::new(0));
    let limits = DecodeLimits::of_pixels(job.args.max_pixels);
    let preparation = Preparation { found, known, source, store, bundle, engine: &engine, limits, next };
    let progress = Progress::new("storing images", preparation.found.len());
    let (sender, receiver) = sync_channel(in_flight);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let (sender, preparation) = (sender.clone(), &preparation);
            scope.spawn(move || preparation.run(&sender));
        }
        drop(sender);
        let (report, ready) = (Report::default(), Vec::new());
        let mut collector = Collector { index: local.index, encoder, runtime: local.runtime, report, ready };
        collector.run(&receiver, &progress)?;
        Ok(collector.report)
    })
}

async fn hashes(index: &dyn Index, found: &[(ImageFile, JsonMap)]) -> Result<Vec<Option<ContentHash>>> {
    let mut known = Vec::with_capacity(found.len());
    for block in found.chunks(LOOKUP) {
        let ids: Vec<String> = block.iter().map(|(image, _)| image.id.clone()).collect();
        known.extend(index.hashes(&ids).await?);
    }
    Ok(known)
}
