//! Serves a bundle over HTTP.
//!
//! A request passes these modules: [`connection_limiter`] accepts its connection and [`routes`] finds its handler.  [`body`]
//! receives its body within the limits.  [`features`] admits its images, decodes them on the [`pool`] (small ones on the worker
//! that embeds them), and passes them to the [`engine`], whose workers run batches through ONNX Runtime.  [`index`] stores
//! items and finds neighbours.  [`error`] turns failures into HTTP answers.
//!
//! [`ingest`] and [`transfer`] fill and read an index without a server.

#![warn(clippy::print_stdout, clippy::print_stderr)] // all output goes through macrl_bundle::output

mod api;
pub mod arguments;
pub mod body;
mod budget;
pub mod cli;
pub mod client;
pub mod connection;
pub mod connection_limiter;
pub mod contact_sheet;
mod content_disposition;
mod content_encoding;
pub mod demo;
pub mod engine;
pub mod error;
pub mod features;
pub mod form;
pub mod image_folder;
pub mod index;
pub mod ingest;
pub mod limits;
pub mod metrics;
pub mod origin;
pub mod pool;
pub mod process;
mod response_body;
pub mod routes;
pub mod server;
pub mod state;
mod text_encoding;
pub mod thumbnail;
pub mod transfer;
mod unread_body;
