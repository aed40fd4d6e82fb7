//! The process around the router: socket, signals, start and end.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use macrl_models::bundle::Bundle;
use macrl_models::runtime;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::limits::Limits;
use crate::routes::app;
use crate::state::{App, AppState, Settings};

/// Serves a bundle until SIGTERM or SIGINT, then finishes what was accepted.
///
/// The socket takes connections at once; they are answered when the index is open, and `/ready` tells when the model is
/// loaded.
///
/// # Errors
/// A bundle, library or port that cannot be used.
pub async fn serve(bundle: Bundle, listen: &str, settings: Settings) -> Result<()> {
    runtime::load()?;
    let listener = bind(listen).await?;
    let address = listener.local_addr()?;
    let name = bundle.config.macrl.name.clone();
    // A large index takes seconds to read.
    let open = move || App::new(&bundle, settings).map(|state| (bundle, state));
    let (bundle, state) = tokio::task::spawn_blocking(open).await.context("the index's loader failed")??;
    let loader = state.clone();
    let mut loading = tokio::task::spawn_blocking(move || loader.start(bundle));
    announce(&format!("listening on http://{address}"));

    let graceful = GracefulShutdown::new();
    let mut door = Door::new(listener, app(state.clone()), &state.settings.limits);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hup = signal(SignalKind::hangup())?;
    let mut loaded = false;
    loop {
        tokio::select! {
            () = door.next(&graceful) => {}
            outcome = &mut loading, if !loaded => {
                loaded = true;
                outcome.context("the loader failed")??;
                announce(&format!("ready: {name} on {}", device(&state)));
            }
            _ = hup.recv() => drop(reload(&state)),
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    drop(door);
    finish(&state, graceful).await
}

/// Lines for people and scripts, on stdout; a closed or full stdout is no reason to end.
fn announce(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
    let _ = std::io::stdout().flush();
}

fn device(state: &AppState) -> String {
    state.model().map_or("none".into(), |model| {
        let devices = model.engine.devices();
        let fallback = model.engine.fallback().map_or(String::new(), |why| format!(" (not on CUDA: {why})"));
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

/// Accepts connections, never more than allowed at once.
struct Door {
    listener: TcpListener,
    router: Router,
    slots: Arc<Semaphore>,
    http: http1::Builder,
}

impl Door {
    fn new(listener: TcpListener, router: Router, limits: &Limits) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
        Self { listener, router, slots: Arc::new(Semaphore::new(limits.connections.max(1))), http }
    }

    /// Accepts one connection; cancel-safe: nothing is lost when a signal comes first.
    async fn next(&mut self, graceful: &GracefulShutdown) {
        let Ok(slot) = self.slots.clone().acquire_owned().await else { return };
        match self.listener.accept().await {
            Ok((stream, _)) => self.welcome(stream, slot, graceful.watcher()),
            Err(error) => {
                // Out of file descriptors, most likely: others will close theirs.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn welcome(&self, stream: TcpStream, slot: OwnedSemaphorePermit, watcher: Watcher) {
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(self.router.clone());
        let connection = watcher.watch(self.http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // A client that breaks off is its own business.
            let _ = connection.await;
            drop(slot);
        });
    }
}

/// Answers what was accepted, for at most the grace period.
async fn finish(state: &AppState, graceful: GracefulShutdown) -> Result<()> {
    state.stop();
    let grace = state.settings.limits.grace;
    let open = graceful.count();
    announce(&format!("stopping: {open} connections open"));
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests were not finished within {} s", grace.as_secs());
    }
    let state = state.clone();
    let _ = tokio::task::spawn_blocking(move || state.unload()).await;
    Ok(())
}
