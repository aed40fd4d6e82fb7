//! Serves macrl's routes below `/images`, together with a route of your own that has its own state.
//!
//!     cargo run --release --example serve -- models/pretrained/cifar10 127.0.0.1:8080
//!     curl http://127.0.0.1:8080/visits
//!     curl --data-binary @cat.png -H 'content-type: image/png' http://127.0.0.1:8080/images/embed

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use macrl_bundle::Bundle;
use macrl_serve::{App, Settings, app};

/// State of the route `/visits`: the number of requests so far.
#[derive(Clone, Default)]
struct Visits(Arc<AtomicU64>);

async fn visits(State(visits): State<Visits>) -> String {
    format!("{} visits\n", visits.0.fetch_add(1, Ordering::Relaxed) + 1)
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (folder, listen) = arguments.next().zip(arguments.next()).context("expected BUNDLE HOST:PORT")?;
    let bundle = Bundle::open(Path::new(&folder))?;
    // Settings contain the limits, the index, the API key, the number of workers and more.
    let state = App::new(&bundle, Settings::default())?;
    // Loading the model takes some time; until it is loaded, routes that need it answer 503.
    let loader = state.clone();
    tokio::task::spawn_blocking(move || loader.start(bundle)).await??;

    let own = Router::new().route("/visits", get(visits)).with_state(Visits::default());
    let router = own.nest_service("/images", app(state));
    let listener = tokio::net::TcpListener::bind(&listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, router).await?;
    Ok(())
}
