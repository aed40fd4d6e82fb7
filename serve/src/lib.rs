//! Serves a bundle over HTTP.
//!
//! [`app`] makes a router of a state, which other routers can include (`examples/serve.rs`):
//!
//! ```
//! use axum::body::Body;
//! use axum::http::Request;
//! use macrl_bundle::Bundle;
//! use macrl_serve::{App, Settings, app};
//! use tower::ServiceExt;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bundle = Bundle::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/pretrained/cifar10").as_ref())?;
//! let state = App::new(&bundle, Settings::default())?;
//! let answer = app(state).oneshot(Request::get("/health").body(Body::empty())?).await?;
//! assert_eq!(answer.status(), 200);
//! # Ok(())
//! # }
//! ```
//!
//! A request passes these modules: `connection_limiter` accepts its connection and `routes` finds its handler.  `body`
//! receives its body within the limits.  `features` admits its images, decodes them on the `pool` (small ones on the worker
//! that embeds them), and passes them to the [`engine`], whose workers run batches through ONNX Runtime.  [`index`] stores
//! items and finds neighbours.  `error` turns failures into HTTP answers.  `ingest` and `transfer` fill and read an index
//! without a server.
//!
//! This page is the public interface; hidden modules may change at any time.

#![warn(clippy::print_stdout, clippy::print_stderr)] // all output goes through macrl_bundle::output

pub mod engine;
pub mod index;
pub mod limits;

pub use limits::Limits;
pub use routes::app;
pub use server::serve;
pub use state::{App, AppState, Settings};

mod admission;
mod api;
mod budget;
mod content_disposition;
mod content_encoding;
mod deadline;
mod foreign_page;
mod response_body;
mod text_encoding;
mod unread_body;

// Open to the workspace's own programs, tests and benches only; they may change at any time.
#[doc(hidden)]
pub mod arguments;
#[doc(hidden)]
pub mod body;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod client;
#[doc(hidden)]
pub mod connection;
#[doc(hidden)]
pub mod connection_limiter;
#[doc(hidden)]
pub mod contact_sheet;
#[doc(hidden)]
pub mod demo;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod features;
#[doc(hidden)]
pub mod form;
#[doc(hidden)]
pub mod host_policy;
#[doc(hidden)]
pub mod image_folder;
#[doc(hidden)]
pub mod ingest;
#[doc(hidden)]
pub mod keys;
pub mod labels;
#[doc(hidden)]
pub mod memory;
#[doc(hidden)]
pub mod metrics;
#[doc(hidden)]
pub mod origin;
#[doc(hidden)]
pub mod pool;
#[doc(hidden)]
pub mod process;
#[doc(hidden)]
pub mod routes;
#[doc(hidden)]
pub mod server;
#[doc(hidden)]
pub mod state;
#[doc(hidden)]
pub mod thumbnail;
#[doc(hidden)]
pub mod transfer;
