//! The HTTP contract, over the router without a socket (and, in `process`, over the real binary).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod access;
mod accounting;
mod bundle;
mod bundles;
mod connections;
mod embed;
mod errors;
mod explore;
mod images;
mod ingest;
mod items;
mod labels;
mod limits;
mod openai;
mod process;
mod reload;
mod signals;
mod support;
