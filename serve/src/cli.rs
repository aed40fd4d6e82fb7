//! The command line: parses and checks the arguments, and runs the command.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use macrl_bundle::decode::DecodeLimits;
use macrl_bundle::device::Device;

use crate::api::bounded::MAX_LIST;
use crate::arguments::{parse_device, usage};
use crate::engine::{EngineOptions, Precision};
use crate::host_policy::{AllowedHost, HostPolicy};
use crate::index::Location;
use crate::keys::{self, Keys};
use crate::limits::{Limits, MAX_INPUTS};
use crate::memory::{Bytes, Given, divide};
use crate::origin::Origin;
use crate::process::connections_within_files;
use crate::state::Settings;
use crate::{demo, ingest, server, transfer};

/// Serve an exported encoder over HTTP: embeddings, classes, and search by image.
#[derive(Debug, Parser)]
#[command(name = "macrl-serve", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Store a folder of images in an index.
    Ingest(ingest::IngestArgs),
    /// Store the items of a Parquet or NumPy file in an index.
    Import(transfer::ImportArgs),
    /// Write an index to a Parquet or NumPy file.
    Export(transfer::ExportArgs),
    /// Copy an index in a folder, also while a server is using it.
    Backup(transfer::BackupArgs),
    /// Copy labelled images into a folder for each label, which `macrl-train finetune` reads.
    LabelFolders(transfer::LabelFoldersArgs),
    /// Send requests to a running server and show its answers.
    Demo(demo::DemoArgs),
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines of text for people.
    Text,
    /// A JSON object on each line.
    Json,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Folder written by `macrl-export bundle`.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Where items are stored: a folder, or a PostgreSQL database with pgvector.  Without it, items are in memory and lost when
    /// the process ends.
    #[arg(long, value_name = "DIR|postgres://...")]
    index: Option<Location>,
    /// With more items than this, searches are approximate unless they ask to be exact.
    #[arg(long, default_value_t = 50_000, value_name = "ITEMS")]
    exact_up_to: usize,
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
    /// Address and port to listen on; the default is reachable from this machine only.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    listen: String,
    /// Number of inference sessions [default: one per core; one on CUDA].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Threads within an operator of one session.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Largest batch [default: 8 on a CPU, 64 on CUDA].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_batch: Option<u16>,
    /// Milliseconds for which an incomplete batch waits for more images.
    #[arg(long, default_value_t = 0.0, value_name = "MS")]
    batch_wait: f64,
    /// Images that are admitted at once; more are answered with 429.
    #[arg(long, default_value_t = 256, value_name = "IMAGES")]
    queue: usize,
    /// Images per request; more are answered with 413.
    #[arg(long, default_value_t = 64, value_name = "IMAGES")]
    max_images: usize,
    /// Inputs per request of /v1/embeddings, at most 2048.  More than --max-images are embedded in several steps
    /// [default: --max-images].
    #[arg(long, value_name = "IMAGES", value_parser = clap::value_parser!(u16).range(1..=MAX_INPUTS as i64))]
    max_inputs: Option<u16>,
    /// Memory for everything that clients can cause: images, bodies, responses, connections and the index.  Lowers the other
    /// limits where needed.  The model comes on top.
    #[arg(long, value_name = "BYTES|1GiB")]
    memory: Option<Bytes>,
    /// Bytes of a request's body; larger ones are answered with 413 [default: 32 MiB, or less by --memory].
    #[arg(long, value_name = "BYTES")]
    max_body: Option<usize>,
    /// Pixels of an image; larger ones are answered with 413 [default: 50 million, or less by --memory].
    #[arg(long, value_name = "PIXELS")]
    max_pixels: Option<u64>,
    /// Bytes of memory that the items of the index may take; further items are answered with 413 [default: 2 GiB, or a fifth of
    /// --memory].
    #[arg(long, value_name = "BYTES")]
    max_index: Option<usize>,
    /// Decode large JPEGs at their full size, not at 1/2, 1/4 or 1/8 of it where that is enough.
    #[arg(long)]
    exact_decoding: bool,
    /// Connections at once, fewer if the limit of open files (`ulimit -n`) is low.  For a further one, the connection that has
    /// been idle longest is closed.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..))]
    max_connections: u16,
    /// Seconds for which an idle connection stays open; should be longer than a proxy in front of the server keeps its side.
    #[arg(long, default_value_t = 75.0, value_name = "S")]
    keep_alive: f64,
    /// Seconds for a request's header to arrive, from its first byte.
    #[arg(long, default_value_t = 10.0, value_name = "S")]
    header_timeout: f64,
    /// Seconds for a request's body to arrive.
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    body_timeout: f64,
    /// Seconds from the arrival of the body to the answer.
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    request_timeout: f64,
    /// Seconds after SIGTERM during which /ready answers 503 and connections are still accepted, so that load balancers notice.
    #[arg(long, default_value_t = 0.0, value_name = "S")]
    drain_delay: f64,
    /// Seconds for accepted requests to finish after SIGTERM and --drain-delay.
    #[arg(long, default_value_t = 20.0, value_name = "S")]
    grace: f64,
    /// Require `Authorization: Bearer KEY` in every request [or environment MACRL_API_KEY, which does not show in `ps`].
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// File with keys, on each line a role and a key.  The role read may embed, search and read; write also stores and deletes
    /// items; admin also loads another bundle.
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Host name under which a server without a key answers, beside localhost and addresses of this machine, or * for all; may
    /// be repeated.
    #[arg(long = "allowed-host", value_name = "NAME")]
    allowed_hosts: Vec<AllowedHost>,
    /// Web origin whose pages may call the server, like https://example.org, or * for all; may be repeated.
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    cors_origins: Vec<Origin>,
    /// Format of the log on stderr.
    #[arg(long, value_enum, default_value = "text")]
    log: LogFormat,
    /// Least severe level that is logged (requests are `info`).
    #[arg(long, default_value = "warn", value_name = "error|warn|info|debug")]
    log_level: tracing_subscriber::filter::LevelFilter,
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of the command; a [`UsageError`](crate::arguments::UsageError) if the arguments contradict each other.
    pub fn run(self) -> Result<()> {
        match self.command {
            Some(Command::Ingest(args)) => ingest::run(&args),
            Some(Command::Import(args)) => transfer::import(&args),
            Some(Command::Export(args)) => transfer::export(&args),
            Some(Command::Backup(args)) => transfer::backup(&args),
            Some(Command::LabelFolders(args)) => transfer::label_folders(&args),
            Some(Command::Demo(args)) => demo::run(&args),
            None => self.serve.run(),
        }
    }
}

impl ServeArgs {
    fn run(self) -> Result<()> {
        let Some(dir) = &self.bundle else {
            return Err(usage("--bundle DIR is missing: the folder written by `macrl-export bundle`"));
        };
        if self.listen.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return Err(usage(format!("--listen must be HOST:PORT, like 127.0.0.1:8080, found {}", self.listen)));
        }
        let mut settings = self.settings()?;
        start_log(self.log, self.log_level);
        if let Some(path) = &self.onnx_runtime {
            macrl_runtime::choose_library(path);
        }
        settings.limits.connections = connections_within_files(settings.limits.connections);
        self.warn(&settings);
        // Few async threads: inference needs the cores, and passing work between async threads costs more than most of it.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(cores.div_ceil(2)).max_blocking_threads(64).enable_all().build()?;
        let outcome = runtime.block_on(server::serve(dir, &self.listen, settings));
        // The process must not wait for threads that connect to a database or load a model.
        runtime.shutdown_background();
        outcome
    }

    /// Warns about settings that are allowed but seldom intended.
    fn warn(&self, settings: &Settings) {
        if let Some(warning) = self.api_keys.as_deref().and_then(keys::warning) {
            tracing::warn!("{warning}");
        }
        let (allowed, asked) = (settings.limits.connections, usize::from(self.max_connections));
        if allowed < asked && settings.limits.memory.is_none() {
            tracing::warn!(
                "the limit of open files leaves room for {allowed} connections, not {asked}: raise `ulimit -n`"
            );
        }
    }

    fn settings(&self) -> Result<Settings> {
        let seconds = |name: &str, value: f64| match Duration::try_from_secs_f64(value) {
            Ok(duration) if !duration.is_zero() && value <= 86_400.0 => Ok(duration),
            _ => Err(usage(format!("{name} must be above 0 and at most 86400 seconds, found {value}"))),
        };
        if self.max_images == 0 || self.max_images > self.queue {
            let (images, queue) = (self.max_images, self.queue);
            return Err(usage(format!("--max-images must be in 1..={queue} (the queue), found {images}")));
        }
        if self.max_images > MAX_LIST {
            return Err(usage(format!("--max-images must be at most {MAX_LIST}, found {}", self.max_images)));
        }
        if self.drain_delay != 0.0 {
            seconds("--drain-delay", self.drain_delay)?;
        }
        if !(0.0..=1000.0).contains(&self.batch_wait) {
            bail!(usage(format!("--batch-wait must be in 0..=1000 ms, found {}", self.batch_wait)));
        }
        let usual = Limits::default();
        let max_pixels = self.max_pixels.unwrap_or(usual.decode.max_pixels);
        let mut limits = Limits {
            body_bytes: self.max_body.unwrap_or(usual.body_bytes),
            images: self.max_images,
            inputs: self.max_inputs.map_or(self.max_images, usize::from),
            queue: self.queue,
            decode: DecodeLimits { max_pixels, ..DecodeLimits::DEFAULT },
            index_bytes: self.max_index.unwrap_or(usual.index_bytes),
            exact_up_to: self.exact_up_to,
            connections: usize::from(self.max_connections),
            keep_alive: seconds("--keep-alive", self.keep_alive)?,
            header_timeout: seconds("--header-timeout", self.header_timeout)?,
            body_timeout: seconds("--body-timeout", self.body_timeout)?,
            request_timeout: seconds("--request-timeout", self.request_timeout)?,
            drain_delay: Duration::from_secs_f64(self.drain_delay),
            grace: seconds("--grace", self.grace)?,
            ..usual
        };
        let index = self.index.clone().unwrap_or_default();
        if let Some(Bytes(budget)) = self.memory {
            let body = self.max_body.map(|bytes| bytes as u64);
            let given = Given { index: self.max_index.map(|bytes| bytes as u64), body, pixels: self.max_pixels };
            divide(&mut limits, budget, given, !matches!(index, Location::Postgres(_))).map_err(usage)?;
        }
        Ok(Settings {
            limits,
            engine: self.engine(),
            exact_decoding: self.exact_decoding,
            index,
            api_key: keys::single(self.api_key.as_deref())?,
            keys: self.api_keys.as_deref().map(Keys::read).transpose()?.unwrap_or_default(),
            hosts: HostPolicy::new(&self.listen, &self.allowed_hosts),
            cors_origins: self.cors_origins.clone(),
        })
    }

    fn engine(&self) -> EngineOptions {
        EngineOptions {
            device: self.device,
            precision: self.precision,
            workers: self.workers.map(usize::from),
            threads: usize::from(self.threads),
            max_batch: self.max_batch.map(usize::from),
            batch_wait: Duration::from_secs_f64(self.batch_wait / 1e3),
            ..EngineOptions::default()
        }
    }
}

/// Starts logging to stderr.  A line that cannot be written is dropped.
fn start_log(format: LogFormat, level: tracing_subscriber::filter::LevelFilter) {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).log_internal_errors(false);
    let started = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).try_init(),
    };
    // It fails only on a second call in one process, when logging has been started already.
    drop(started);
}
