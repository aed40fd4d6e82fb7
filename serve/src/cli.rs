//! The command line -> [`Settings`] and a command, validated once.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::builder::{TypedValueParser, ValueParserFactory};
use clap::error::ErrorKind;
use clap::{Arg, Args, Parser, Subcommand, ValueEnum};
use macrl_bundle::decode::DecodeLimits;
use macrl_bundle::device::Device;

use crate::engine::EngineOptions;
use crate::index::Location;
use crate::limits::{Limits, MOST_INPUTS};
use crate::origin::Origin;
use crate::process::connections_within_files;
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
    /// Copies an index in a folder, beside a server that is running.
    Backup(transfer::BackupArgs),
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
    /// Inputs per request of /v1/embeddings, at most 2048; more than --max-images are embedded in several steps
    /// [default: --max-images].
    #[arg(long, value_name = "IMAGES", value_parser = clap::value_parser!(u16).range(1..=MOST_INPUTS as i64))]
    max_inputs: Option<u16>,
    /// Bytes of one body; over it 413.
    #[arg(long, default_value_t = 32 << 20, value_name = "BYTES")]
    max_body: usize,
    /// Pixels of one image; over it 413.
    #[arg(long, default_value_t = 50_000_000, value_name = "PIXELS")]
    max_pixels: u64,
    /// Bytes of memory that the items of the index may take; over it 413.
    #[arg(long, default_value_t = 2 << 30, value_name = "BYTES")]
    max_index: usize,
    /// Connections at once, fewer where the limit of open files (`ulimit -n`) is low; over it the one that has been idle
    /// longest is closed.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..))]
    max_connections: u16,
    /// Seconds for which an idle connection stays open: more than the proxy before the server keeps its side.
    #[arg(long, default_value_t = 75.0, value_name = "S")]
    keep_alive: f64,
    /// Seconds for a request's header to arrive, from its first byte.
    #[arg(long, default_value_t = 10.0, value_name = "S")]
    header_timeout: f64,
    /// Seconds for a body to arrive.
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    body_timeout: f64,
    /// Seconds from a body's arrival to the answer.
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    request_timeout: f64,
    /// Seconds after SIGTERM in which /ready says 503 and connections are still accepted, for load balancers to notice.
    #[arg(long, default_value_t = 0.0, value_name = "S")]
    drain_delay: f64,
    /// Seconds for accepted requests to finish after SIGTERM and --drain-delay.
    #[arg(long, default_value_t = 20.0, value_name = "S")]
    grace: f64,
    /// Asks every request for `Authorization: Bearer KEY` [or environment MACRL_API_KEY, which does not show in `ps`].
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Web origin whose pages may call this server, like https://example.org, or * for all; may be repeated.
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    cors_origins: Vec<Origin>,
    /// Log lines on stderr.
    #[arg(long, value_enum, default_value = "text")]
    log: LogFormat,
    /// Least important lines that are logged (requests are `info`).
    #[arg(long, default_value = "warn", value_name = "error|warn|info|debug")]
    log_level: tracing_subscriber::filter::LevelFilter,
}

/// For clap.
pub(crate) fn parse_device(text: &str) -> Result<Device, String> {
    text.parse().map_err(|e: macrl_bundle::device::UnknownDevice| e.to_string())
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
            Some(Command::Backup(args)) => transfer::backup(&args),
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
        settings.limits.connections = connections_within_files(settings.limits.connections);
        self.warn(&settings);
        // Few: the cores are inference's, and a hand-over between async threads costs more than most of their work.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(cores.div_ceil(2)).max_blocking_threads(64).enable_all().build()?;
        let outcome = runtime.block_on(server::serve(dir, &self.listen, settings));
        // A thread that still waits for a data base, or loads a model, must not hold up the end.
        runtime.shutdown_background();
        outcome
    }

    /// What is allowed, and seldom meant.
    fn warn(&self, settings: &Settings) {
        if settings.api_key.is_none() && !is_loopback(&self.listen) {
            tracing::warn!(
                "{} can be reached from other machines and no key is asked for: set MACRL_API_KEY, unless something \
                 before the server checks who asks",
                self.listen
            );
        }
        let (allowed, asked) = (settings.limits.connections, usize::from(self.max_connections));
        if allowed < asked {
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
        if self.drain_delay != 0.0 {
            seconds("--drain-delay", self.drain_delay)?;
        }
        if !(0.0..=1000.0).contains(&self.batch_wait) {
            bail!(usage(format!("--batch-wait must be in 0..=1000 ms, found {}", self.batch_wait)));
        }
        let key = self.api_key.clone().or_else(|| std::env::var("MACRL_API_KEY").ok());
        let limits = Limits {
            body_bytes: self.max_body,
            images: self.max_images,
            inputs: self.max_inputs.map_or(self.max_images, usize::from),
            queue: self.queue,
            decode: DecodeLimits { max_pixels: self.max_pixels, ..DecodeLimits::DEFAULT },
            index_bytes: self.max_index,
            exact_up_to: self.exact_up_to,
            connections: usize::from(self.max_connections),
            keep_alive: seconds("--keep-alive", self.keep_alive)?,
            header_timeout: seconds("--header-timeout", self.header_timeout)?,
            body_timeout: seconds("--body-timeout", self.body_timeout)?,
            request_timeout: seconds("--request-timeout", self.request_timeout)?,
            drain_delay: Duration::from_secs_f64(self.drain_delay),
            grace: seconds("--grace", self.grace)?,
            ..Limits::default()
        };
        Ok(Settings {
            limits,
            engine: self.engine(),
            index: self.index.clone().unwrap_or_default(),
            // A file's last newline is no part of the key that it holds.
            api_key: key.map(|k| k.trim().to_string()).filter(|k| !k.is_empty()),
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

/// Whether only this machine reaches such an address.
fn is_loopback(listen: &str) -> bool {
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host).trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_told_from_others() {
        for listen in ["127.0.0.1:80", "[::1]:80", "localhost:80", "127.9.9.9:0"] {
            assert!(is_loopback(listen), "{listen}");
        }
        for listen in ["0.0.0.0:80", "[::]:80", "192.168.0.2:80", "example.org:80"] {
            assert!(!is_loopback(listen), "{listen}");
        }
    }
}
