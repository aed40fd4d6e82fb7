//! The HTTP contract, over the router without a socket (and, in `process`, over the real binary).

mod bundle;
mod bundles;
mod connections;
mod embed;
mod errors;
mod explore;
mod images;
mod ingest;
mod items;
mod openai;
mod process;
mod reload;
mod signals;
mod support;
