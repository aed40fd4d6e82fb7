//! The command line -> [`Settings`] and a command, validated once.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::builder::{TypedValueParser, ValueParserFactory};
use clap::error::ErrorKind;
use clap::{Arg, Args, Parser, Subcommand, ValueEnum};
use macrl_models::bundle::Bundle;
use macrl_models::decode::DecodeLimits;
use macrl_models::runtime::Device;

use crate::engine::EngineOptions;
use crate::index::Location;
use crate::limits::Limits;
use crate::state::Settings;
use crate::{demo, ingest, server, transfer};

/// Serves an exported encoder over HTTP: embeddings, classes, and search by image.
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
    /// Puts a folder of images into an index.
    Ingest(ingest::IngestArgs),
    /// Puts the items of a Parquet or NumPy file into an index.
    Import(transfer::ImportArgs),
    /// Writes an index to a Parquet or NumPy file.
    Export(transfer::ExportArgs),
    /// Sends a running server real requests and shows what comes back.
    Demo(demo::DemoArgs),
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Folder written by `macrl-export bundle`.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Where items are kept: a folder, or a PostgreSQL with pgvector; without it they are in memory and end with the
    /// process.
    #[arg(long, value_name = "DIR|postgres://...")]
    index: Option<Location>,
    /// With more items than this, searches are approximate unless they ask to be exact.
    #[arg(long, default_value_t = 50_000, value_name = "ITEMS")]
    exact_up_to: usize,
    /// Where inference runs: auto, cpu or cuda.
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    device: Device,
    /// Address and port; other machines reach only what is opened here.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    listen: String,
    /// Inference sessions [default: one per core; one on CUDA].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Threads within an operator of one session.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Largest batch [default: 8 on a CPU, 64 on CUDA].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_batch: Option<u16>,
    /// Milliseconds that an incomplete batch waits for more images.
    #[arg(long, default_value_t = 0.0, value_name = "MS")]
    batch_wait: f64,
    /// Images admitted at once; over it 429.
    #[arg(long, default_value_t = 256, value_name = "IMAGES")]
    queue: usize,
    /// Images per request; over it 413.
    #[arg(long, default_value_t = 64, value_name = "IMAGES")]
    max_images: usize,
    /// Bytes of one body; over it 413.
    #[arg(long, default_value_t = 32 << 20, value_name = "BYTES")]
    max_body: usize,
    /// Pixels of one image; over it 413.
    #[arg(long, default_value_t = 50_000_000, value_name = "PIXELS")]
    max_pixels: u64,
    /// Bytes of memory that the items of the index may take; over it 413.
    #[arg(long, default_value_t = 2 << 30, value_name = "BYTES")]
    max_index: usize,
    /// Connections at once; over it the one that has been idle longest is closed.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..))]
    max_connections: u16,
    /// Seconds for a request's header to arrive.
    #[arg(long, default_value_t = 10.0, value_name = "S")]
    header_timeout: f64,
    /// Seconds for a body to arrive.
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    body_timeout: f64,
    /// Seconds from a body's arrival to the answer.
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    request_timeout: f64,
    /// Seconds for accepted requests to finish after SIGTERM.
    #[arg(long, default_value_t = 20.0, value_name = "S")]
    grace: f64,
    /// Asks every request for `Authorization: Bearer KEY` [or environment MACRL_API_KEY, which does not show in `ps`].
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Web origin whose pages may call this server; may be repeated.
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    cors_origins: Vec<String>,
    /// Log lines on stderr.
    #[arg(long, value_enum, default_value = "text")]
    log: LogFormat,
    /// Least important lines that are logged (requests are `info`).
    #[arg(long, default_value = "warn", value_name = "error|warn|info|debug")]
    log_level: tracing_subscriber::filter::LevelFilter,
}

/// For clap.
pub(crate) fn parse_device(text: &str) -> Result<Device, String> {
    text.parse().map_err(|e: macrl_models::runtime::RuntimeError| e.to_string())
}

/// Reads `--index`.  Clap's own message would repeat what was given, and an address may hold a password.
#[derive(Debug, Clone)]
pub struct LocationParser;

impl TypedValueParser for LocationParser {
    type Value = Location;

    fn parse_ref(&self, command: &clap::Command, _: Option<&Arg>, value: &OsStr) -> Result<Location, clap::Error> {
        let text = value.to_str().ok_or_else(|| "expected UTF-8".to_string());
        let location = text.and_then(str::parse);
        location.map_err(|cause| command.clone().error(ErrorKind::ValueValidation, format!("--index: {cause}")))
    }
}

impl ValueParserFactory for Location {
    type Parser = LocationParser;

    fn value_parser() -> LocationParser {
        LocationParser
    }
}

/// A mistake in the arguments, found after parsing: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

fn usage(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// The command's; a [`UsageError`] where the arguments contradict each other.
    pub fn run(self) -> Result<()> {
        match self.command {
            Some(Command::Ingest(args)) => ingest::run(&args),
            Some(Command::Import(args)) => transfer::import(&args),
            Some(Command::Export(args)) => transfer::export(&args),
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
        let settings = self.settings()?;
        start_log(self.log, self.log_level);
        let bundle = Bundle::open(dir)?;
        // Few: the cores are inference's, and a hand-over between async threads costs more than most of their work.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(cores.div_ceil(2)).max_blocking_threads(64).enable_all().build()?;
        runtime.block_on(server::serve(bundle, &self.listen, settings))
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
        if !(0.0..=1000.0).contains(&self.batch_wait) {
            bail!(usage(format!("--batch-wait must be in 0..=1000 ms, found {}", self.batch_wait)));
        }
        let key = self.api_key.clone().or_else(|| std::env::var("MACRL_API_KEY").ok());
        if let Some(bad) = self.cors_origins.iter().find(|o| !o.starts_with("http://") && !o.starts_with("https://")) {
            return Err(usage(format!("--cors-origin must be like https://example.org, found {bad}")));
        }
        let limits = Limits {
            body_bytes: self.max_body,
            images: self.max_images,
            queue: self.queue,
            decode: DecodeLimits { max_pixels: self.max_pixels, ..DecodeLimits::default() },
            index_bytes: self.max_index,
            exact_up_to: self.exact_up_to,
            connections: usize::from(self.max_connections),
            header_timeout: seconds("--header-timeout", self.header_timeout)?,
            body_timeout: seconds("--body-timeout", self.body_timeout)?,
            request_timeout: seconds("--request-timeout", self.request_timeout)?,
            grace: seconds("--grace", self.grace)?,
            ..Limits::default()
        };
        Ok(Settings {
            limits,
            engine: self.engine(),
            index: self.index.clone().unwrap_or_default(),
            api_key: key.filter(|k| !k.is_empty()),
            cors_origins: self.cors_origins.clone(),
        })
    }

    fn engine(&self) -> EngineOptions {
        EngineOptions {
            device: self.device,
            workers: self.workers.map(usize::from),
            threads: usize::from(self.threads),
            max_batch: self.max_batch.map(usize::from),
            batch_wait: Duration::from_secs_f64(self.batch_wait / 1e3),
            ..EngineOptions::default()
        }
    }
}

/// Logs to stderr; a line that cannot be written (disk full) is lost and nothing else.
fn start_log(format: LogFormat, level: tracing_subscriber::filter::LevelFilter) {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).log_internal_errors(false);
    let started = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).try_init(),
    };
    // Only a second call in one process fails, and then a log exists.
    drop(started);
}
