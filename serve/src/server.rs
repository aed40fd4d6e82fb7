//! The server process: start, signals, and shutdown.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::server::graceful::GracefulShutdown;
use macrl_bundle::bundle::Bundle;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use crate::connection_limiter::ConnectionLimiter;
use crate::process::memory_limit;
use crate::routes::app;
use crate::state::{App, AppState, Settings};

/// The signals that the process handles, from its start on.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let on = |kind| signal(kind).context("signals cannot be listened to");
        let (term, int, hup) = (SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup());
        Ok(Self { term: on(term)?, int: on(int)?, hup: on(hup)? })
    }

    /// Waits for SIGTERM or SIGINT.  Cancel-safe.
    async fn shutdown(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Serves the bundle in `dir` until SIGTERM or SIGINT, then answers the requests that were accepted.
///
/// The socket is bound first.  Requests are answered once the index is open, and `/ready` tells when the model is loaded.  A
/// signal ends the process in every phase.
///
/// # Errors
/// A bundle, library, index or port that cannot be used.
pub async fn serve(dir: &Path, listen: &str, settings: Settings) -> Result<()> {
    let mut signals = Signals::new()?;
    let stopping = || announce("stopping: nothing was served yet");
    let mut opening = open(dir);
    let bundle = tokio::select! {
        opened = &mut opening => opened.context("the bundle's loader failed")??,
        () = signals.shutdown() => {
            // If the process ended while ONNX Runtime is being loaded, its destructors might crash.
            let _ = opening.await;
            stopping();
            return Ok(());
        }
    };
    let started = tokio::select! {
        started = start(bundle, listen, settings) => started?,
        () = signals.shutdown() => {
            stopping();
            return Ok(());
        }
    };
    let Started { listener, bundle, state } = started;
    let (address, name) = (listener.local_addr()?, bundle.config.macrl.name.clone());
    warn_of_memory(&state);
    state.access_warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let loader = state.clone();
    let mut loading = tokio::task::spawn_blocking(move || loader.start(bundle));
    announce(&format!("listening on http://{address}"));

    let graceful = GracefulShutdown::new();
    let mut limiter =
        ConnectionLimiter::new(listener, app(state.clone()), &state.settings.limits, state.metrics.clone());
    let mut loaded = false;
    loop {
        tokio::select! {
            () = limiter.accept(&graceful) => {}
            outcome = &mut loading, if !loaded => {
                loaded = true;
                outcome.context("the loader failed")??;
                announce(&format!("ready: {name} on {}", device(&state)));
            }
            // While the model is being loaded, SIGHUP waits: the bundle may have been replaced after it was read.
            _ = signals.hup.recv(), if loaded => drop(reload(&state)),
            _ = signals.term.recv() => break,
            _ = signals.int.recv() => break,
        }
    }
    drain(&state, &mut limiter, &graceful, &mut signals).await;
    drop(limiter);
    let finished = finish(&state, graceful, &mut signals).await;
    if !loaded {
        // As above: ONNX Runtime is opening the sessions.
        let _ = loading.await;
    }
    finished
}

/// Reads the bundle and loads ONNX Runtime.
fn open(dir: &Path) -> JoinHandle<Result<Bundle>> {
    let dir = dir.to_path_buf();
    tokio::task::spawn_blocking(move || {
        let bundle = Bundle::open(&dir)?;
        macrl_runtime::load()?;
        let path = macrl_runtime::library_path().unwrap_or_default();
        tracing::info!(library = %path.display(), "ONNX Runtime loaded");
        if !bundle.unverified.is_empty() {
            let files = bundle.unverified.join(", ");
            tracing::info!(files, "the bundle does not record the SHA-256 of these files; they were not verified");
        }
        Ok(bundle)
    })
}

/// The server before the model is loaded.
struct Started {
    listener: TcpListener,
    bundle: Bundle,
    state: AppState,
}

/// Binds the port and opens the index, which may take seconds.
async fn start(bundle: Bundle, listen: &str, settings: Settings) -> Result<Started> {
    let listener = bind(listen).await?;
    let open = move || App::new(&bundle, settings).map(|state| (bundle, state));
    let (bundle, state) = tokio::task::spawn_blocking(open).await.context("the index's loader failed")??;
    Ok(Started { listener, bundle, state })
}

/// Warns if all requests together could take more memory than there is.
fn warn_of_memory(state: &AppState) {
    let worst = state.memory_parts().sum();
    if let Some(memory) = memory_limit().filter(|memory| *memory < worst) {
        tracing::warn!(
            "clients may make the server take {} MiB, of {} MiB of memory: set --memory (docs/operating.md, Memory)",
            worst >> 20,
            memory >> 20
        );
    }
}

/// Makes `/ready` answer 503 and keeps serving for the drain delay, so that load balancers notice.
async fn drain(state: &AppState, limiter: &mut ConnectionLimiter, graceful: &GracefulShutdown, signals: &mut Signals) {
    state.stop();
    let delay = state.settings.limits.drain_delay;
    if delay.is_zero() {
        return;
    }
    announce(&format!("draining: accepting for another {} s", delay.as_secs_f64()));
    let accept = async {
        loop {
            limiter.accept(graceful).await;
        }
    };
    tokio::select! {
        () = accept => {}
        () = tokio::time::sleep(delay) => {}
        // A second signal ends the delay.
        () = signals.shutdown() => {}
    }
}

/// Prints a line for people and scripts on stdout.  Errors are ignored: a closed stdout must not end the server.
fn announce(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
    let _ = std::io::stdout().flush();
}

fn device(state: &AppState) -> String {
    state.model().map_or("none".into(), |model| {
        let devices = model.engine.devices();
        let fallback = model.engine.fallback().map_or(String::new(), |why| format!(" ({why})"));
        let (device, precision) = (devices.first().copied().unwrap_or("none"), model.engine.precision());
        format!("{} x {device} in {precision}{fallback}", devices.len())
    })
}

fn reload(state: &AppState) -> JoinHandle<()> {
    let state = state.clone();
    tokio::spawn(async move {
        // The result is in the log and the metrics.
        let _ = state.reload().await;
    })
}

async fn bind(listen: &str) -> Result<TcpListener> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(listen)
        .await
        .with_context(|| format!("--listen {listen} is not an address: expected HOST:PORT"))?
        .collect();
    TcpListener::bind(addresses.as_slice()).await.with_context(|| format!("cannot listen on {listen}"))
}

/// Waits for the accepted requests, for at most the grace period.
async fn finish(state: &AppState, graceful: GracefulShutdown, signals: &mut Signals) -> Result<()> {
    let grace = state.settings.limits.grace;
    let open = graceful.count();
    announce(&format!("stopping: {open} connections open"));
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(grace) => {
            tracing::warn!("some requests were not finished within {} s", grace.as_secs_f64());
        }
        () = signals.shutdown() => tracing::warn!("asked a second time to end: some requests were not finished"),
    }
    let state = state.clone();
    let unload = tokio::task::spawn_blocking(move || state.unload());
    let _ = tokio::time::timeout(UNLOAD_TIMEOUT, unload).await;
    Ok(())
}

/// Time for the workers to end; nothing depends on those that do not.
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(5);
