//! Images -> views -> two branches -> losses -> checkpoint; evaluation; report.
//!
//! [`pretrain`] is the loop, [`Method`] the method, [`data::open`] finds images, [`evaluate`](evaluate::evaluate) evaluates
//! features.  `examples/pretrain.rs` trains an encoder with them.
//!
//! This page is the public interface; hidden modules may change at any time.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![warn(clippy::print_stdout, clippy::print_stderr)] // a closed pipe must not end a run: see macrl_bundle::output

pub mod data;
pub mod evaluate;
pub mod schedule;

pub use data::{Data, Dataset};
pub use ending::Ending;
pub use method::Method;
pub use run::Run;
pub use state::State;
pub use trainer::pretrain;

// Open to the workspace's own programs, tests and benches only; they may change at any time.
#[doc(hidden)]
pub mod bank;
#[doc(hidden)]
pub mod batches;
#[doc(hidden)]
pub mod checkpoints;
#[doc(hidden)]
pub mod commands;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
#[doc(hidden)]
pub mod decoder;
#[doc(hidden)]
pub mod encode;
#[doc(hidden)]
pub mod ending;
#[doc(hidden)]
pub mod evaluation_images;
#[doc(hidden)]
pub mod extract;
#[doc(hidden)]
pub mod failure;
#[doc(hidden)]
pub mod finetune;
#[doc(hidden)]
pub mod gradients;
#[doc(hidden)]
pub mod initial;
#[doc(hidden)]
pub mod inputs;
#[doc(hidden)]
pub mod loader;
#[doc(hidden)]
pub mod log;
#[doc(hidden)]
pub mod losses;
#[doc(hidden)]
pub mod method;
#[doc(hidden)]
pub mod metrics;
#[doc(hidden)]
pub mod muon;
#[doc(hidden)]
pub mod online;
#[doc(hidden)]
pub mod ops;
#[doc(hidden)]
pub mod optimizer;
#[doc(hidden)]
pub mod part;
#[doc(hidden)]
pub mod progress;
#[doc(hidden)]
pub mod projector;
#[doc(hidden)]
pub mod replay;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod run;
#[doc(hidden)]
pub mod samples;
#[doc(hidden)]
pub mod saving;
#[doc(hidden)]
pub mod sentinel;
#[doc(hidden)]
pub mod startup;
#[doc(hidden)]
pub mod state;
#[doc(hidden)]
pub mod step;
#[doc(hidden)]
pub mod tensorboard;
#[doc(hidden)]
pub mod trainer;
#[doc(hidden)]
pub mod views;

mod in_place;
