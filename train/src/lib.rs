//! Images -> views -> two branches -> losses -> checkpoint; evaluation; report.
//!
//! The method is in [`method`], a training step in [`step`], the loop in [`trainer`].

#![warn(clippy::print_stdout, clippy::print_stderr)] // a closed pipe must not end a run: see macrl_bundle::output

pub mod bank;
pub mod checkpoints;
pub mod commands;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod data;
pub mod decoder;
pub mod encode;
pub mod ending;
pub mod evaluate;
pub mod extract;
pub mod failure;
pub mod finetune;
pub mod gradients;
mod in_place;
pub mod inputs;
pub mod loader;
pub mod log;
pub mod losses;
pub mod method;
pub mod metrics;
pub mod muon;
pub mod online;
pub mod ops;
pub mod optimizer;
pub mod part;
pub mod progress;
pub mod projector;
pub mod replay;
pub mod report;
pub mod run;
pub mod samples;
pub mod saving;
pub mod schedule;
pub mod sentinel;
pub mod startup;
pub mod state;
pub mod step;
pub mod tensorboard;
pub mod trainer;
pub mod views;
