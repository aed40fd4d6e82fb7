//! The method as a whole: gradients reach everything, keys get none, steps are reproducible, parts add up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::sync::Arc;

use common::images;
use macrl_bundle::config::Config;
use macrl_nn::checkpoint;
use macrl_nn::params::Group;
use macrl_train::batches::Batches;
use macrl_train::gradients::Gradients;
use macrl_train::inputs::Inputs;
use macrl_train::losses::{Losses, Term};
use macrl_train::method::{CONTRAST, RECONSTRUCTION, TERMS};
use macrl_train::part::Part;
use macrl_train::schedule::Schedule;
use macrl_train::state::State;
use macrl_train::step::contract::Measured;
use macrl_train::step::cpu::pretraining_step;
use macrl_train::step::rule::compute;
use macrl_train::views::Batch;

fn config(more: &[&str]) -> Config {
    common::config(&[&["train.lr=0.05"], more].concat())
}

fn batches(config: &Config) -> Batches {
    Batches::new(Arc::new(images()), config).unwrap()
}

fn weights(state: &State) -> Vec<f32> {
    state.method.trainable().iter().flat_map(|(_, g)| g.values().to_vec1::<f32>().unwrap()).collect()
}

fn train(state: &mut State, config: &Config, steps: std::ops::Range<u64>) {
    let (source, schedule) = (batches(config), Schedule::new(config, 3));
    for i in steps {
        assert_eq!(state.step, i);
        pretraining_step(state, source.make(i).unwrap(), config, &schedule).unwrap();
    }
}

/// The numbers of a term.
fn numbers(losses: &Losses, term: &'static Term) -> Vec<f32> {
    losses.terms.iter().find(|(of, _)| *of == term).unwrap().1.to_vec1().unwrap()
}

#[test]
fn every_trainable_tensor_receives_a_gradient_in_both_key_modes() {
    let masks = ["contrast.key_mask=view", "contrast.key_mask=none"];
    for (pooling, mask) in ["evaluate.pooling=cls", "evaluate.pooling=mean"].into_iter().zip(masks) {
        for branch in ["contrast.key_branch=shared", "contrast.key_branch=momentum"] {
            let config = config(&[branch, pooling, mask, "train.optimizer=muon"]);
            let mut state = State::init(&config).unwrap();
            train(&mut state, &config, 0..2); // so that the bank holds keys
            let losses =
                state.method.losses(&Inputs::new(&batches(&config).make(2).unwrap(), &config).unwrap()).unwrap();
            let groups = state.method.trainable();
            let gradients = Gradients::take(losses.total.backward().unwrap(), &groups);
            assert!(groups.iter().any(|(part, _)| *part == Part::Projector));
            for ((_, group), gradient) in groups.iter().zip(&gradients.0) {
                let gradient = gradient.as_ref().unwrap().to_vec1::<f32>().unwrap();
                for parameter in group.parameters() {
                    let largest = gradient[parameter.range.clone()].iter().fold(0f32, |m, g| m.max(g.abs()));
                    assert!(largest > 0.0, "{} gets no gradient ({branch}, {pooling}, {mask})", parameter.name);
                }
            }
        }
    }
}

#[test]
fn the_key_branch_moves_by_its_average_alone() {
    let config = config(&["contrast.key_branch=momentum"]);
    let mut state = State::init(&config).unwrap();
    let (encoder, projector) = state.method.key.as_ref().unwrap();
    let own: Vec<_> = [encoder.groups(), projector.groups()].concat().into_iter().map(|g| g.values().clone()).collect();
    assert!(own.iter().all(|tensor| !tensor.is_variable()));
    let values = || own.iter().flat_map(|tensor| tensor.to_vec1::<f32>().unwrap()).collect::<Vec<_>>();
    let before = values();
    train(&mut state, &config, 0..1);
    let query: Vec<&Group> =
        state.method.trainable().into_iter().filter(|(p, _)| *p != Part::Decoder).map(|(_, g)| g).collect();
    let query = query.iter().flat_map(|g| g.values().to_vec1::<f32>().unwrap());
    let momentum = Schedule::new(&config, 3).momentum(0) as f32;
    let moved = before.iter().zip(query).map(|(k, q)| momentum * (k - q) + q);
    let largest = moved.zip(values()).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(largest < 1e-6, "{largest}");
    assert_ne!(before, values());
}

#[test]
fn a_run_resumed_from_its_checkpoint_equals_an_uninterrupted_one_bit_for_bit() {
    let muon = ["train.optimizer=muon", "contrast.key_mask=none", "train.accumulate=2"];
    for more in [&["contrast.key_branch=shared"][..], &["contrast.key_branch=momentum"], &muon] {
        let config = config(more);
        let mut whole = State::init(&config).unwrap();
        train(&mut whole, &config, 0..7);
        let mut first = State::init(&config).unwrap();
        train(&mut first, &config, 0..4);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last.safetensors");
        first.save(&path, &config).unwrap();
        let (mut second, saved) = State::load(&path).unwrap();
        assert_eq!(saved, config);
        train(&mut second, &config, 4..7);
        assert_eq!(weights(&whole), weights(&second));
        assert_eq!(whole.method.bank, second.method.bank);
        assert_eq!(whole.optimizer, second.optimizer);
    }
}

#[test]
fn a_batch_in_parts_gives_the_gradient_of_the_whole() {
    for optimizer in ["train.optimizer=adamw", "train.optimizer=muon"] {
        // Without contrast, whose negatives within the batch depend on its size.
        let whole = config(&["contrast.weight=0", optimizer]);
        let parts = config(&["contrast.weight=0", optimizer, "train.accumulate=4"]);
        let (mut a, mut b) = (State::init(&whole).unwrap(), State::init(&parts).unwrap());
        train(&mut a, &whole, 0..1);
        train(&mut b, &parts, 0..1);
        let moments = a.optimizer.moments.iter().zip(&b.optimizer.moments);
        let pairs = moments.flat_map(|(a, b)| a.first.iter().zip(&b.first));
        let largest = pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(largest < 1e-6, "{optimizer}: {largest}");
    }
}

#[test]
fn whole_keys_are_those_of_views_without_a_mask_whatever_the_queries_see() {
    for branch in ["contrast.key_branch=shared", "contrast.key_branch=momentum"] {
        for symmetric in ["contrast.symmetric=false", "contrast.symmetric=true"] {
            let keys_and_loss = |mask: &str, ratio: f64| {
                let ratios = ["strong", "weak"].map(|view| format!("views.{view}.mask_ratio={ratio}"));
                let config = config(&[branch, symmetric, mask, &ratios[0], &ratios[1]]);
                let state = State::init(&config).unwrap();
                let inputs = Inputs::new(&batches(&config).make(0).unwrap(), &config).unwrap();
                let losses = state.method.losses(&inputs).unwrap();
                let contrast = numbers(&losses, &CONTRAST);
                (losses.keys.unwrap().to_vec2::<f32>().unwrap(), contrast)
            };
            let unmasked = keys_and_loss("contrast.key_mask=view", 0.0);
            // Crop, flip and colour are drawn before the mask: the pixels are the same ones.
            assert_eq!(keys_and_loss("contrast.key_mask=none", 0.0), unmasked, "{branch} {symmetric}");
            let masked = keys_and_loss("contrast.key_mask=none", 0.625);
            assert_eq!(masked.0, unmasked.0, "{branch} {symmetric}");
            assert_ne!(masked.1, unmasked.1, "queries see 6 of 16 patches");
            assert_ne!(keys_and_loss("contrast.key_mask=view", 0.625).0, unmasked.0, "{branch} {symmetric}");
        }
    }
}

/// The loss, and every number of every term.
fn values(measured: &Measured) -> Vec<f64> {
    let terms = measured.terms.iter().flat_map(|term| term.values.iter().map(|value| f64::from(*value)));
    std::iter::once(measured.loss).chain(terms).collect()
}

#[test]
fn losses_of_a_batch_in_parts_are_means_over_its_parts() {
    let parts = config(&["train.accumulate=4", "contrast.key_mask=none"]);
    let state = State::init(&parts).unwrap();
    let batch = batches(&parts).make(0).unwrap();
    let measured = |parts: &[Batch]| values(&compute(&state.method, parts).unwrap().measured);
    let found = measured(&batch.clone().split(4));
    assert_eq!(found.len(), 1 + TERMS.iter().map(|term| term.count()).sum::<usize>());
    // The same parts one by one: batches of 2 of the same order, so the same images and views.
    let two = config(&["train.batch_size=2", "contrast.key_mask=none"]);
    let source = batches(&two);
    let mut sums = vec![0f64; found.len()];
    for i in 0..4 {
        let part = source.make(i).unwrap();
        assert_eq!(part.indices, batch.indices[2 * i as usize..][..2]);
        sums.iter_mut().zip(measured(&[part])).for_each(|(sum, value)| *sum += value / 4.0);
    }
    assert!(found.iter().zip(&sums).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {sums:?}");
}

#[test]
fn every_term_is_measured_where_it_has_a_weight() {
    for (off, terms) in [
        ("train.seed=0", vec![&CONTRAST, &RECONSTRUCTION]),
        ("contrast.weight=0", vec![&RECONSTRUCTION]),
        ("reconstruction.weight=0", vec![&CONTRAST]),
    ] {
        let config = config(&[off]);
        let state = State::init(&config).unwrap();
        let measured = compute(&state.method, &[batches(&config).make(0).unwrap()]).unwrap().measured;
        let found: Vec<&Term> = measured.terms.iter().map(|term| term.term).collect();
        assert_eq!(found, terms);
        assert!(measured.terms.iter().all(|term| term.values.len() == term.term.count()));
    }
}

#[test]
fn a_symmetric_contrast_is_the_mean_of_both_ways() {
    let modes = ["contrast.key_branch=shared", "contrast.key_branch=momentum", "contrast.key_mask=none"];
    for mode in modes {
        let one_way = config(&[mode, "reconstruction.weight=0", "contrast.symmetric=false"]);
        let both_ways = config(&[mode, "reconstruction.weight=0", "contrast.symmetric=true"]);
        let mut trained = State::init(&one_way).unwrap();
        train(&mut trained, &one_way, 0..8);
        let inputs = Inputs::new(&batches(&both_ways).make(8).unwrap(), &both_ways).unwrap();
        let swapped = Inputs { strong: inputs.weak.clone(), weak: inputs.strong.clone(), ..inputs.clone() };
        let contrast = |config: &Config, inputs: &Inputs| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("last.safetensors");
            trained.save(&path, config).unwrap();
            let method = State::load(&path).unwrap().0.method;
            let losses = method.losses(inputs).unwrap();
            let parameters = method.trainable();
            let gradients = Gradients::take(losses.total.backward().unwrap(), &parameters).0;
            let mut values = numbers(&losses, &CONTRAST);
            values.extend(gradients.into_iter().flatten().flat_map(|g| g.to_vec1::<f32>().unwrap()));
            (losses.keys.unwrap().to_vec2::<f32>().unwrap(), values)
        };
        let (keys, there) = contrast(&one_way, &inputs);
        let (_, back) = contrast(&one_way, &swapped);
        let (both_keys, both) = contrast(&both_ways, &inputs);
        assert_eq!(keys, both_keys, "the weak view's keys enter the bank");
        let mean: Vec<f32> = there.iter().zip(&back).map(|(a, b)| 0.5 * (a + b)).collect();
        let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(apart(&there, &back) > 1e-3, "the two ways differ");
        assert!(mean.len() == both.len() && apart(&mean, &both) < 1e-6, "{}", apart(&mean, &both));
    }
}

#[test]
fn a_checkpoint_without_its_bank_is_refused() {
    let config = config(&[]);
    let mut state = State::init(&config).unwrap();
    train(&mut state, &config, 0..2);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("last.safetensors");
    state.save(&path, &config).unwrap();
    let whole = checkpoint::load(&path).unwrap();
    let refused = |tensors: Vec<(String, candle_core::Tensor)>| {
        checkpoint::save(&path, &config, &whole.notes, &tensors).unwrap();
        format!("{:#}", State::load(&path).err().unwrap())
    };
    for name in ["bank.keys", "bank.images"] {
        let rest = whole.tensors.clone().into_iter().filter(|(n, _)| n != name).collect();
        let message = refused(rest);
        assert!(message.ends_with(&format!("tensor `{name}` is missing")), "{message}");
    }
    let short = whole.tensors.iter().map(|(name, tensor)| match name.starts_with("bank.") {
        true => (name.clone(), tensor.narrow(0, 0, 8).unwrap().contiguous().unwrap()),
        false => (name.clone(), tensor.clone()),
    });
    let message = refused(short.collect());
    assert!(message.contains("after 2 steps the memory bank should hold 16 keys, found 8"), "{message}");
}

#[test]
fn the_loss_falls() {
    // Reconstruction alone: the contrast has more negatives, and so a higher loss, as the bank fills.
    let config = config(&["train.epochs=40", "train.warmup_epochs=1", "contrast.weight=0"]);
    let (source, schedule) = (batches(&config), Schedule::new(&config, 3));
    let mut state = State::init(&config).unwrap();
    let mut loss = |i| pretraining_step(&mut state, source.make(i).unwrap(), &config, &schedule).unwrap().loss;
    let losses: Vec<f64> = (0..60).map(&mut loss).collect();
    let mean = |l: &[f64]| l.iter().sum::<f64>() / l.len() as f64;
    assert!(mean(&losses[50..]) < 0.8 * mean(&losses[..5]), "{losses:?}");
}

#[test]
fn truncated_and_missing_checkpoints_are_named() {
    let config = config(&[]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("last.safetensors");
    State::init(&config).unwrap().save(&path, &config).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for end in [0, 5, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..end]).unwrap();
        let message = format!("{:#}", State::load(&path).err().unwrap());
        assert!(message.contains("last.safetensors") && !message.contains('\n'), "{message}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(format!("{:#}", State::load(&path).err().unwrap()).contains("last.safetensors"));
}
