//! Fine-tuning as a whole, on stripes that a linear model of single pixels cannot tell apart.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use image::{Rgb, RgbImage};
use macrl_bundle::config::{Config, FinetuneConfig};
use macrl_nn::vit::Encoder;

use super::files::FinetuneFiles;
use super::labelled::Labelled;
use super::learner::Finetuning;
use super::model::Classifier;
use super::state::FinetuneState;
use super::training::{finetune, outcome, test_accuracy, training_config};
use crate::batches::Batches;
use crate::data::memory::Memory;
use crate::data::{Data, Dataset};
use crate::ending::Ending;
use crate::run::Run;
use crate::schedule::Schedule;
use crate::step::rule::{Learner, compute, take};

const SMALL: [&str; 10] = [
    "encoder.image_size=16",
    "encoder.width=24",
    "encoder.depth=2",
    "train.batch_size=8",
    "finetune.batch_size=8",
    "finetune.epochs=8",
    "finetune.warmup_epochs=1",
    "finetune.lr=0.1",
    "views.weak.flip=0",
    "views.weak.crop_scale=[0.8, 1]",
];

fn config(more: &[&str]) -> Config {
    let set: Vec<String> = SMALL.iter().chain(more).map(|s| s.to_string()).collect();
    Config::parse("", "test", &set).unwrap()
}

/// Horizontal stripes are class 0, vertical ones class 1; each at its own phase.  The last image has no label.
fn stripes(count: u32) -> Arc<dyn Dataset> {
    let value = |i: u32, along: u32| if (along + i / 2) % 4 < 2 { 230 } else { 20 + (i % 7) as u8 };
    let image = |i: u32| RgbImage::from_fn(16, 16, |x, y| Rgb([value(i, [y, x][i as usize % 2]); 3]));
    let mut images: Vec<RgbImage> = (0..count).map(image).collect();
    let mut labels: Vec<Option<u32>> = (0..count).map(|i| Some(i % 2)).collect();
    images.insert(3, RgbImage::new(16, 16));
    labels.insert(3, None);
    Arc::new(Memory::new("train", images, labels))
}

fn labelled(config: &Config) -> Labelled {
    let classes = vec!["flat".into(), "upright".into()];
    let data = Data { test: Some(stripes(16)), classes, ..Data::unlabelled(stripes(48), "memory") };
    Labelled::of(&data, config).unwrap()
}

fn fresh(config: &Config) -> FinetuneState {
    let classifier = Classifier::new(Encoder::init(&config.encoder, 0).unwrap(), config, 2).unwrap();
    FinetuneState::new(classifier, &training_config(config), "here".into(), vec!["flat".into(), "upright".into()])
}

fn place() -> (tempfile::TempDir, FinetuneFiles) {
    let dir = tempfile::tempdir().unwrap();
    let files = FinetuneFiles::new(&Run::new(dir.path()), "macrl");
    std::fs::create_dir_all(files.dir()).unwrap();
    (dir, files)
}

fn weights(tuned: &FinetuneState) -> Vec<f32> {
    tuned.classifier.trainable().iter().flat_map(|(_, g)| g.values().to_vec1::<f32>().unwrap()).collect()
}

fn learner<'a>(state: &'a mut FinetuneState, data: &'a Labelled, config: &'a Config, lr: f64) -> Finetuning<'a> {
    Finetuning { state, data: data.train.as_ref(), config, lr }
}

#[test]
fn it_learns_and_images_without_a_label_stay_out() {
    for more in [&[][..], &["finetune.mixup=0.5", "finetune.label_smoothing=0.1"]] {
        let (_dir, files) = place();
        let config = config(more);
        let data = labelled(&config);
        assert_eq!((data.train.len(), data.test.labels.len(), data.classes), (48, 16, 2));
        let mut tuned = fresh(&config);
        let ending = finetune(&files, &config, &data, &mut tuned, &AtomicBool::new(false)).unwrap();
        assert_eq!((ending, tuned.step), (Ending::Finished, 8 * 6));
        let reached = outcome("macrl", &tuned, &data, &config).unwrap();
        assert!(reached.accuracy > 0.9, "{reached:?}");
        assert!(reached.best >= reached.accuracy && (1..=8).contains(&reached.best_epoch));
        let (best, _) = FinetuneState::load(&files.best(), training_config).unwrap();
        assert_eq!(test_accuracy(&best, &data, &config).unwrap().1, reached.best);
    }
}

#[test]
fn resumed_it_ends_with_the_same_bits() {
    let ((_a, whole), (_b, parts)) = (place(), place());
    let config = config(&["finetune.mixup=0.5", "finetune.epochs=3"]);
    let data = labelled(&config);
    let mut first = fresh(&config);
    finetune(&whole, &config, &data, &mut first, &AtomicBool::new(false)).unwrap();
    let mut second = fresh(&config);
    let stopped = finetune(&parts, &config, &data, &mut second, &AtomicBool::new(true)).unwrap();
    assert_eq!(stopped, Ending::Interrupted(0));
    // The state after the first epoch, as a killed run would find it.
    let short = Config { finetune: FinetuneConfig { epochs: 1, ..config.finetune.clone() }, ..config.clone() };
    let batches = Batches::weak_only(data.train.clone(), &training_config(&short)).unwrap();
    let schedule = Schedule::new(&training_config(&config), batches.steps_per_epoch());
    for i in 0..6 {
        take(&mut learner(&mut second, &data, &config, schedule.lr(i)), batches.make(i).unwrap()).unwrap();
    }
    second.save(&parts.last(), &config).unwrap();
    let (mut second, saved) = FinetuneState::load(&parts.last(), training_config).unwrap();
    assert_eq!((&saved, second.step, second.origin.as_str()), (&config, 6, "here"));
    finetune(&parts, &config, &data, &mut second, &AtomicBool::new(false)).unwrap();
    assert_eq!(weights(&first), weights(&second));
}

#[test]
fn layers_learn_the_slower_the_further_they_are_from_the_head() {
    let config = config(&[]);
    let tuned = fresh(&config);
    // The embedding, two blocks, the last norm, the head; see the optimiser's test for PyTorch's numbers.
    assert_eq!(tuned.classifier.lr_shares(0.5), [0.125, 0.25, 0.5, 1.0, 1.0]);
    assert_eq!(tuned.classifier.lr_shares(1.0), [1.0; 5]);
}

#[test]
fn every_parameter_receives_a_gradient_and_nonsense_changes_nothing() {
    let config = config(&[]);
    let data = labelled(&config);
    let mut tuned = fresh(&config);
    let batches = Batches::weak_only(data.train.clone(), &training_config(&config)).unwrap();
    let mut batch = batches.make(0).unwrap();
    let before = weights(&tuned);
    let mut learner = learner(&mut tuned, &data, &config, 0.1);
    let parts = learner.parts(batch.clone()).unwrap();
    let measured = compute(learner.model(), &parts).unwrap().measured;
    assert!(measured.is_finite() && measured.unreached.is_empty(), "{measured:?}");
    batch.weak.patches[5] = f32::NAN;
    assert!(take(&mut learner, batch).unwrap().loss.is_nan());
    assert!(tuned.step == 0 && weights(&tuned) == before);
}

#[test]
fn weights_that_are_not_finite_never_replace_a_good_checkpoint() {
    let (_dir, files) = place();
    // Weights of 1e38 after the first update: finite gradients, and then nothing is.
    let config = config(&[
        "finetune.lr=1e38",
        "finetune.weight_decay=1e4",
        "finetune.warmup_epochs=0",
        "train.checkpoint_every=1",
    ]);
    let (data, mut tuned) = (labelled(&config), fresh(&config));
    let error = finetune(&files, &config, &data, &mut tuned, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.starts_with("non-finite weights at step 1 of fine-tuning"), "{error}");
    assert!(!files.last().exists());
}

#[test]
fn the_optimiser_and_the_keys_of_pretraining_have_no_part_in_it() {
    let after_a_step = |more: &[&str]| {
        let config = config(more);
        let (mut tuned, data) = (fresh(&config), labelled(&config));
        let batch = Batches::weak_only(data.train.clone(), &training_config(&config)).unwrap().make(0).unwrap();
        assert!(batch.weak.whole.is_empty());
        take(&mut learner(&mut tuned, &data, &config, 0.1), batch).unwrap();
        assert_eq!(tuned.step, 1);
        weights(&tuned)
    };
    assert_eq!(after_a_step(&["train.optimizer=muon", "contrast.key_mask=none"]), after_a_step(&[]));
}
