//! A bundle -> HTTP.
//!
//! One request's way: [`door`] accepts it, [`routes`] finds its handler, [`input`] reads and bounds its body,
//! [`features`] admits its images, has them decoded on the [`pool`] (the smallest by the worker that infers them) and hands
//! them to the [`engine`], whose worker threads batch them for ONNX Runtime; [`index`] keeps items and finds neighbours;
//! [`error`] is the one place where failures become statuses.  [`ingest`] and [`transfer`] fill and empty an index without a server.

#![warn(clippy::print_stdout, clippy::print_stderr)] // everything that is said goes through macrl_bundle::output

pub mod cli;
pub mod client;
mod coding;
pub mod connection;
pub mod demo;
mod disposition;
pub mod door;
pub mod engine;
pub mod error;
pub mod features;
pub mod form;
pub mod index;
pub mod ingest;
pub mod input;
pub mod limits;
pub mod metrics;
mod openai_input;
pub mod openapi;
pub mod origin;
pub mod pictures;
pub mod pool;
pub mod process;
mod rest;
pub mod routes;
pub mod server;
pub mod sheet;
pub mod state;
pub mod transfer;
