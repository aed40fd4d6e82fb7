//! The process around the router: socket, signals, start and end.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use hyper_util::server::graceful::GracefulShutdown;
use macrl_models::bundle::Bundle;
use macrl_models::runtime;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::door::Door;
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
