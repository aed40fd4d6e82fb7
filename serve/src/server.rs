//! The process around the router: socket, signals, start and end.

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

use crate::door::Door;
use crate::process::memory_limit;
use crate::routes::app;
use crate::state::{App, AppState, Settings};

/// The signals that are listened to, from before anything else is done.
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

    /// SIGTERM or SIGINT; cancel-safe.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Serves the bundle in `dir` until SIGTERM or SIGINT, then finishes what was accepted.
///
/// The socket takes connections at once; they are answered when the index is open, and `/ready` tells when the model is
/// loaded.  A signal that ends the process does so at any time, whatever is being waited for.
///
/// # Errors
/// A bundle, library or port that cannot be used.
pub async fn serve(dir: &Path, listen: &str, settings: Settings) -> Result<()> {
    let mut signals = Signals::new()?;
    let stopping = || announce("stopping: nothing was served yet");
    let mut opening = open(dir);
    let bundle = tokio::select! {
        opened = &mut opening => opened.context("the bundle's loader failed")??,
        () = signals.end() => {
            // A process that ends while ONNX Runtime is being loaded may crash in its destructors.
            let _ = opening.await;
            stopping();
            return Ok(());
        }
    };
    let started = tokio::select! {
        started = start(bundle, listen, settings) => started?,
        () = signals.end() => {
            stopping();
            return Ok(());
        }
    };
    let Started { listener, bundle, state } = started;
    let (address, name) = (listener.local_addr()?, bundle.config.macrl.name.clone());
    warn_of_memory(&state);
    let loader = state.clone();
    let mut loading = tokio::task::spawn_blocking(move || loader.start(bundle));
    announce(&format!("listening on http://{address}"));

    let graceful = GracefulShutdown::new();
    let mut door = Door::new(listener, app(state.clone()), &state.settings.limits, state.metrics.clone());
    let mut loaded = false;
    loop {
        tokio::select! {
            () = door.next(&graceful) => {}
            outcome = &mut loading, if !loaded => {
                loaded = true;
                outcome.context("the loader failed")??;
                announce(&format!("ready: {name} on {}", device(&state)));
            }
            // Until the model is loaded a signal waits: the bundle may have been replaced while it was read.
            _ = signals.hup.recv(), if loaded => drop(reload(&state)),
            _ = signals.term.recv() => break,
            _ = signals.int.recv() => break,
        }
    }
    drain(&state, &mut door, &graceful, &mut signals).await;
    drop(door);
    let finished = finish(&state, graceful, &mut signals).await;
    if !loaded {
        // As above: its sessions are being made.
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
        Ok(bundle)
    })
}

/// What there is before the model is loaded.
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

/// The limits of one request are generous; whether this machine can keep them for all is another question.
fn warn_of_memory(state: &AppState) {
    let worst = state.worst_case_bytes();
    if let Some(memory) = memory_limit().filter(|memory| *memory < worst) {
        tracing::warn!(
            "all requests together may take {} MiB at their worst, of {} MiB of memory: see docs/operating.md, Memory",
            worst >> 20,
            memory >> 20
        );
    }
}

/// `/ready` says 503 and everything else goes on, until load balancers have noticed.
async fn drain(state: &AppState, door: &mut Door, graceful: &GracefulShutdown, signals: &mut Signals) {
    state.stop();
    let delay = state.settings.limits.drain_delay;
    if delay.is_zero() {
        return;
    }
    announce(&format!("draining: accepting for another {} s", delay.as_secs_f64()));
    let accept = async {
        loop {
            door.next(graceful).await;
        }
    };
    tokio::select! {
        () = accept => {}
        () = tokio::time::sleep(delay) => {}
        // Asked twice: no more waiting.
        () = signals.end() => {}
    }
}

/// Lines for people and scripts, on stdout; a closed or full stdout is no reason to end.
fn announce(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
    let _ = std::io::stdout().flush();
}

fn device(state: &AppState) -> String {
    state.model().map_or("none".into(), |model| {
        let devices = model.engine.devices();
        let fallback = model.engine.fallback().map_or(String::new(), |why| format!(" ({why})"));
        format!("{} x {}{fallback}", devices.len(), devices.first().copied().unwrap_or("none"))
    })
}

fn reload(state: &AppState) -> JoinHandle<()> {
    let state = state.clone();
    tokio::spawn(async move {
        // The outcome is in the log and the counters.
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

/// Answers what was accepted, for at most the grace period.
async fn finish(state: &AppState, graceful: GracefulShutdown, signals: &mut Signals) -> Result<()> {
    let grace = state.settings.limits.grace;
    let open = graceful.count();
    announce(&format!("stopping: {open} connections open"));
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(grace) => {
            tracing::warn!("some requests were not finished within {} s", grace.as_secs_f64());
        }
        () = signals.end() => tracing::warn!("asked a second time to end: some requests were not finished"),
    }
    let state = state.clone();
    let unload = tokio::task::spawn_blocking(move || state.unload());
    let _ = tokio::time::timeout(UNLOADING, unload).await;
    Ok(())
}

/// For workers to end; those that do not have nobody left to answer.
const UNLOADING: Duration = Duration::from_secs(5);
