//! Every sentinel is provoked, by the real network or loader, and has to name its cause and what to try.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor, Var};
use image::{Rgb, RgbImage};
use macrl_models::params::Group;
use macrl_models::preprocess::Preprocess;

use super::*;
use crate::data::{Data, Dataset, memory::Memory};
use crate::encode::Images;
use crate::loader::{Batches, Loader};
use crate::online::Online;
use crate::replay::{Finding, replay, start};
use crate::trainer::{Measured, compute, pretrain};
use crate::views::Batch;

const SMALL: [&str; 12] = [
    "encoder.image_size=16",
    "encoder.width=24",
    "encoder.depth=2",
    "decoder.width=16",
    "decoder.depth=1",
    "decoder.heads=2",
    "projector.hidden=32",
    "projector.dim=16",
    "contrast.bank_size=20",
    "train.batch_size=8",
    "train.warmup_epochs=0",
    "train.epochs=20",
];

fn config(more: &[&str]) -> Config {
    let set: Vec<String> = SMALL.iter().chain(more).map(|s| s.to_string()).collect();
    Config::parse("", "test", &set).unwrap()
}

fn images() -> Memory {
    let pixel = |i: u32, x: u32, y: u32| Rgb([(i * 40 + x * 5) as u8, (x * y + i) as u8, (y * 11) as u8]);
    let images = (0..24).map(|i| RgbImage::from_fn(16, 16, |x, y| pixel(i, x, y))).collect();
    Memory::new("train", images, vec![None; 24])
}

fn data() -> Data {
    Data {
        train: Arc::new(images()),
        test: None,
        classes: Vec::new(),
        format: "test",
        skipped: Vec::new(),
        left_out: Vec::new(),
        notes: Vec::new(),
    }
}

/// What the loop would hear of this step.
fn done(state: &State, measured: Measured, batch: &Batch) -> Done {
    Done { at: state.step, measured, indices: batch.indices.clone(), seconds: 1.0, waiting: 0.0 }
}

/// Replaces a parameter's values in place.
fn set(groups: &[&Group], name: &str, value: impl Fn(usize, f32) -> f32) {
    let (group, parameter) =
        groups.iter().find_map(|g| Some((g, g.parameters().iter().find(|p| p.name == name)?))).unwrap();
    let mut values = group.values().to_vec1::<f32>().unwrap();
    values[parameter.range.clone()].iter_mut().enumerate().for_each(|(i, v)| *v = value(i, *v));
    let shape = values.len();
    Var::from_tensor(group.values())
        .unwrap()
        .set(&Tensor::from_vec(values, shape, group.values().device()).unwrap())
        .unwrap();
}

/// The sentinel's words about a state, the step being the first.
fn stopped(run: &Run, config: &Config, state: &State) -> String {
    let batch = Batches::new(Arc::new(images()), config).unwrap().make(0).unwrap();
    let measured = compute(state, &batch, config).unwrap().measured;
    let error =
        Sentinel::default().check_step(run, config, &done(state, measured, &batch), state).unwrap_err().to_string();
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
    assert!(
        stopped(&run, &config, &state).starts_with("non-finite loss at step 0: there is no checkpoint from before;")
    );
    let found = replayed(&run).unwrap();
    assert!(found.reproduced() && found.weights.is_empty());
    let broken: Vec<&str> = found.losses.iter().filter(|l| !l.1.is_finite()).map(|l| l.0).collect();
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
    let said = stopped(&run, &config, &state);
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
    let mut state = State::init(&config).unwrap();
    state.save(&run.replay_state(), &config).unwrap(); // of an earlier stop
    let batches = Batches::new(Arc::new(images()), &config).unwrap();
    let batch = batches.make(1).unwrap();
    let measured = Measured { loss: f64::NAN, ..compute(&state, &batch, &config).unwrap().measured };
    let done = Done { at: 1, ..done(&state, measured, &batch) };
    state.step = 16;
    let error = Sentinel::default().check_step(&run, &config, &done, &state).unwrap_err().to_string();
    assert!(error.starts_with("non-finite loss at step 1: "), "{error}");
    assert!(!run.replay_state().exists());
    // From the run's beginning; the NaN was made up.
    let found = replayed(&run).unwrap();
    assert!(found.step == 1 && found.batch == 8 && !found.reproduced(), "{found:?}");
}

#[test]
fn one_image_is_found_among_many() {
    let (_dir, run) = place();
    let config = config(&["contrast.weight=0"]);
    let state = State::init(&config).unwrap();
    let mut batch = Batches::new(Arc::new(images()), &config).unwrap().make(0).unwrap();
    let each = batch.strong.target.len() / 8;
    batch.strong.target[3 * each..4 * each].fill(f32::INFINITY);
    let measured = compute(&state, &batch, &config).unwrap().measured;
    assert!(Sentinel::default().check_step(&run, &config, &done(&state, measured, &batch), &state).is_err());
    let alone = crate::replay::guilty(&state, &config, &batch).unwrap();
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

#[test]
fn a_gradient_that_comes_back_is_no_death() {
    let config = config(&[]);
    let mut sentinel = Sentinel::default();
    for i in 0..100 {
        let names = [["a".to_string()], ["b".to_string()]][usize::from(i % 15 == 0)].clone();
        sentinel.check_dead(&config, &names).unwrap();
    }
}

/// What is seen of, and said about, an encoder that lets through the first `open` coordinates only.
fn collapsed(open: usize) -> (Seen, String) {
    let config = config(&["evaluate.every_epochs=1"]);
    let online = Online::prepare(&config, &data()).unwrap();
    let state = State::init(&config).unwrap();
    let groups = state.method.encoder.groups();
    set(&groups, "norm.weight", |i, _| if i < open { 1.0 } else { 0.0 });
    let preprocess = Preprocess::from_config(&config);
    let images = Images::read_chosen(&images(), &(0..24).collect::<Vec<_>>(), &preprocess);
    let frozen = state.method.encoder.clone().map(|group| group.detached_copy()).unwrap();
    let features = images.encode(&frozen, &preprocess, config.evaluate.pooling).unwrap();
    // Centred, so that what is let through has both signs; a little more where nothing is, so that it has a direction.
    let mean = |i: usize| (0..24).map(|n| features.row(n)[i]).sum::<f32>() / 24.0;
    set(&groups, "norm.bias", |i, _| if i < open { -mean(i) } else { 1e-9 });
    let seen = online.check(&state.method.encoder).unwrap();
    assert_eq!(seen.knn, None);
    let mut sentinel = Sentinel::default();
    assert!(sentinel.check_features(&seen).is_ok() && sentinel.check_features(&seen).is_ok());
    (seen, sentinel.check_features(&seen).unwrap_err().to_string())
}

#[test]
fn features_that_are_all_alike_stop_the_run() {
    let (seen, error) = collapsed(0);
    assert!(seen.feature_std < 1e-3, "{seen:?}");
    assert!(error.starts_with("collapse: feature std 0.0000 is below 0.02: all images look alike"), "{error}");
    assert!(error.contains("try contrast.key_branch"), "{error}");
}

#[test]
fn features_along_one_line_stop_the_run() {
    let (seen, error) = collapsed(1);
    assert!(seen.feature_std > FEATURE_STD_FLOOR && seen.rank < RANK_FLOOR, "{seen:?}");
    assert!(error.starts_with("collapse: effective rank 1.0") && error.contains("try contrast.key_branch"), "{error}");
}

#[test]
fn healthy_features_let_it_go_on() {
    let seen = Seen { knn: Some(0.5), feature_std: 0.5, rank: 20.0 };
    let flat = Seen { feature_std: 0.0, ..seen };
    let mut sentinel = Sentinel::default();
    for seen in [flat, flat, seen, flat, flat, seen] {
        sentinel.check_features(&seen).unwrap();
    }
}

/// A disk so slow that nothing else takes time beside it.
struct Slow(Memory);

impl Dataset for Slow {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.0.label(index)
    }
    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
        std::thread::sleep(Duration::from_millis(1));
        self.0.image(index)
    }
    fn name(&self, index: usize) -> String {
        self.0.name(index)
    }
}

#[test]
fn a_loader_that_cannot_keep_up_is_named_once() {
    let config = config(&[]);
    let mut loader = Loader::new(Arc::new(Slow(images())), &config, 0).unwrap();
    let mut sentinel = Sentinel::default();
    let said: Vec<String> = (0..3 * STARVED_STEPS)
        .filter_map(|_| {
            let (start, waited) = (Instant::now(), loader.waited());
            loader.next().unwrap();
            let share = (loader.waited() - waited).as_secs_f64() / start.elapsed().as_secs_f64();
            sentinel.check_waiting(share)
        })
        .collect();
    assert_eq!(said.len(), 1);
    assert!(said[0].starts_with("loader starvation: ") && said[0].contains("try smaller source images"), "{said:?}");
    let mut sentinel = Sentinel::default();
    assert!((0..200).all(|_| sentinel.check_waiting(0.1).is_none()));
}
