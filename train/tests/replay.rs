//! Training is brought to a stop, by the real network, and `replay` has to find the cause.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use candle_core::Device;
use common::{data, images, set};
use macrl_bundle::config::Config;
use macrl_nn::params::Group;
use macrl_train::batches::Batches;
use macrl_train::failure::{Failure, record};
use macrl_train::replay::{Finding, non_finite_images, replay, start};
use macrl_train::run::Run;
use macrl_train::sentinel::{Sentinel, Verdict};
use macrl_train::state::State;
use macrl_train::step::contract::{Finished, Measured};
use macrl_train::step::rule::compute;
use macrl_train::trainer::pretrain;
use macrl_train::views::Batch;

/// 20 epochs of three steps without warm-up.
fn config(more: &[&str]) -> Config {
    common::config(&[&["train.warmup_epochs=0", "train.epochs=20"], more].concat())
}

/// What a step on this batch measures; nothing is changed.
fn measure(state: &State, batch: &Batch) -> Measured {
    compute(&state.method, std::slice::from_ref(batch)).unwrap().measured
}

/// The sentinel's verdict on a step.
fn verdict(step: u64, measured: &Measured, batch: &Batch) -> Verdict {
    let (measured, images) = (measured.clone(), batch.indices.clone());
    Sentinel::new(&config(&[])).check_step(&Finished { step, measured, images, seconds: 1.0, waiting: 0.0 })
}

/// What ends the run when the first step finds this state, which has to be `what`.
fn stopped(run: &Run, config: &Config, state: &State, what: &'static str) -> String {
    let batch = Batches::new(Arc::new(images()), config).unwrap().make(0).unwrap();
    assert_eq!(verdict(0, &measure(state, &batch), &batch), Verdict::NotFinite(what));
    let failure = Failure { step: 0, what, images: &batch.indices, before: Some(state) };
    let error = record(run, config, &failure).unwrap().to_string();
    assert_eq!(error.lines().count(), 1);
    assert!(error.contains("try a lower train.lr") && error.contains("macrl-train replay --run"), "{error}");
    error
}

fn replayed(run: &Run) -> Result<Finding> {
    let (state, config) = start(run)?;
    replay(run, &data(), state, &config)
}

fn decoder(state: &State) -> Vec<&Group> {
    state.method.decoder.as_ref().unwrap().groups()
}

fn place() -> (tempfile::TempDir, Run) {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::new(dir.path());
    std::fs::create_dir(dir.path().join("checkpoints")).unwrap();
    (dir, run)
}

#[test]
fn a_non_finite_loss_stops_the_run() {
    let (_dir, run) = place();
    let config = config(&[]);
    let state = State::init(&config).unwrap();
    set(&decoder(&state), "decoder_pred.weight", |_, v| v * 3e38);
    let said = stopped(&run, &config, &state, "loss");
    assert!(said.starts_with("non-finite loss at step 0: there is no checkpoint from before;"), "{said}");
    let found = replayed(&run).unwrap();
    assert!(found.reproduced() && found.weights.is_empty());
    let broken: Vec<&str> = found.losses.iter().filter(|l| !l.1.is_finite()).map(|l| l.0.as_str()).collect();
    assert!(broken.contains(&"reconstruction of the strong view") && !broken.contains(&"contrast"), "{broken:?}");
    assert_eq!(found.images.len(), 8);
    // Of another batch it is not the same step.
    let text = std::fs::read_to_string(run.replay()).unwrap();
    let first = serde_json::from_str::<serde_json::Value>(&text).unwrap()["indices"][0].to_string();
    std::fs::write(run.replay(), text.replacen(&first, "99", 1)).unwrap();
    assert!(replayed(&run).unwrap_err().to_string().contains("other images"));
}

#[test]
fn a_non_finite_gradient_stops_the_run() {
    let (_dir, run) = place();
    let config = config(&[]);
    let state = State::init(&config).unwrap();
    state.save(&run.last(), &config).unwrap();
    // A loss of 1e26 is finite, the squares of its gradient are not.
    set(&decoder(&state), "decoder_pred.weight", |_, v| v * 1e26);
    let said = stopped(&run, &config, &state, "gradient");
    assert!(said.starts_with("non-finite gradient at step 0: the last good checkpoint is"), "{said}");
    let found = replayed(&run).unwrap();
    assert!(found.reproduced() && found.losses[0].1.is_finite() && found.gradients.is_empty());
    assert!(found.largest.1 > 1e18, "{:?}", found.largest);
}

#[test]
fn where_the_state_has_gone_on_a_replay_starts_earlier() {
    let (_dir, run) = place();
    let config = config(&[]);
    std::fs::write(run.config(), config.to_toml()).unwrap();
    let state = State::init(&config).unwrap();
    state.save(&run.replay_state(), &config).unwrap(); // of an earlier stop
    let batches = Batches::new(Arc::new(images()), &config).unwrap();
    let batch = batches.make(1).unwrap();
    let measured = Measured { loss: f64::NAN, ..measure(&state, &batch) };
    assert_eq!(verdict(1, &measured, &batch), Verdict::NotFinite("loss"));
    let failure = Failure { step: 1, what: "loss", images: &batch.indices, before: None };
    let error = record(&run, &config, &failure).unwrap().to_string();
    assert!(error.starts_with("non-finite loss at step 1: "), "{error}");
    assert!(!run.replay_state().exists());
    // From the run's beginning; the NaN was made up.
    let found = replayed(&run).unwrap();
    assert!(found.step == 1 && found.batch == 8 && !found.reproduced(), "{found:?}");
}

#[test]
fn one_image_is_found_among_many() {
    let config = config(&["contrast.weight=0"]);
    let state = State::init(&config).unwrap();
    let mut batch = Batches::new(Arc::new(images()), &config).unwrap().make(0).unwrap();
    let each = batch.strong.target.len() / 8;
    batch.strong.target[3 * each..4 * each].fill(f32::INFINITY);
    assert_eq!(verdict(0, &measure(&state, &batch), &batch), Verdict::NotFinite("loss"));
    let alone = non_finite_images(&state, &batch).unwrap();
    assert_eq!(alone, [(batch.indices[3], "loss")]);
}

#[test]
fn weights_that_are_not_finite_never_replace_a_good_checkpoint() {
    let (_dir, run) = place();
    // Infinite after the first update: 1e38 x 8 / 256 = 3e36 times weights of 100.
    let config = config(&["train.lr=1e38", "train.weight_decay=1e4", "train.clip_norm=0", "train.checkpoint_every=1"]);
    std::fs::write(run.config(), config.to_toml()).unwrap();
    let state = State::init(&config).unwrap();
    let error = pretrain(&run, &config, &data(), state, &Device::Cpu, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.starts_with("non-finite weights at step 1: there is no checkpoint from before"), "{error}");
    assert!(!run.last().exists());
    let found = replayed(&run).unwrap();
    assert!(found.reproduced() && found.weights.iter().any(|name| name.starts_with("blocks.0")), "{found:?}");
    assert_eq!(found.broken_by.map(|b| (b.step, b.lr > 1e36)), Some((0, true)));
    // Without the state it goes forward from the beginning.
    std::fs::remove_file(run.replay_state()).unwrap();
    assert_eq!(replayed(&run).unwrap().weights, found.weights);
}

#[test]
fn parameters_that_nothing_reaches_stop_the_run() {
    let (_dir, run) = place();
    // Nothing is removed and only removed patches count: the decoders are asked for nothing.
    let config = config(&["views.strong.mask_ratio=0", "views.weak.mask_ratio=0", "reconstruction.loss_on=masked"]);
    let state = State::init(&config).unwrap();
    let error = pretrain(&run, &config, &data(), state, &Device::Cpu, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.starts_with("dead parameters: for 20 steps no gradient has reached decoder_"), "{error}");
    assert!(error.contains("try a views.strong.mask_ratio above 0") && !error.contains("mask_token"), "{error}");
}
