//! Each check of the sentinel is made to fail by a real encoder or loader, and its message has to name the cause and what to try.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod common;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::{config, data, images, set};
use image::RgbImage;
use macrl_bundle::preprocess::Preprocess;
use macrl_train::data::{Dataset, memory::Memory};
use macrl_train::encode::PreparedImages;
use macrl_train::loader::Loader;
use macrl_train::online::{FeatureCheck, Online};
use macrl_train::sentinel::{FEATURE_STD_FLOOR, RANK_FLOOR, STARVED_STEPS, Sentinel, Verdict};
use macrl_train::state::State;

#[test]
fn a_gradient_that_comes_back_is_no_death() {
    let mut sentinel = Sentinel::new(&config(&[]));
    for i in 0..100 {
        let names = [["a".to_string()], ["b".to_string()]][usize::from(i % 15 == 0)].clone();
        assert_eq!(sentinel.check_reached(&names), None);
    }
}

/// What an online evaluation measures of an encoder that lets only the first `open` coordinates through, and the sentinel's
/// message.
fn collapsed(open: usize) -> (FeatureCheck, String) {
    let config = config(&["evaluate.every_epochs=1"]);
    let online = Online::prepare(&config, &data()).unwrap();
    let state = State::init(&config).unwrap();
    let groups = state.method.encoder.groups();
    set(&groups, "norm.weight", |i, _| if i < open { 1.0 } else { 0.0 });
    let preprocess = Preprocess::from_config(&config);
    let images = PreparedImages::read_chosen(&images(), &(0..24).collect::<Vec<_>>(), &preprocess);
    let frozen = state.method.encoder.clone().map(|group| group.detached_copy()).unwrap();
    let features = images.encode(&frozen, &preprocess, config.evaluate.pooling).unwrap();
    // Centred, so that the open coordinates have both signs; the others get a tiny value, so that every feature has a direction.
    let mean = |i: usize| (0..24).map(|n| features.row(n)[i]).sum::<f32>() / 24.0;
    set(&groups, "norm.bias", |i, _| if i < open { -mean(i) } else { 1e-9 });
    let check = online.check(&state.method.encoder).unwrap();
    assert_eq!(check.knn, None);
    let mut sentinel = Sentinel::new(&config);
    assert!((0..2).all(|_| sentinel.check_features(&check) == Verdict::Healthy));
    match sentinel.check_features(&check) {
        Verdict::Collapsed(text) => (check, text),
        other => panic!("{other:?}"),
    }
}

#[test]
fn features_that_are_all_alike_stop_the_run() {
    let (check, error) = collapsed(0);
    assert!(check.feature_std < 1e-3, "{check:?}");
    assert!(error.starts_with("collapse: feature std 0.0000 is below 0.02: all images look alike"), "{error}");
    assert!(error.contains("try contrast.key_branch"), "{error}");
}

#[test]
fn features_along_one_line_stop_the_run() {
    let (check, error) = collapsed(1);
    assert!(check.feature_std > FEATURE_STD_FLOOR && check.rank < RANK_FLOOR, "{check:?}");
    assert!(error.starts_with("collapse: effective rank 1.0") && error.contains("try contrast.key_branch"), "{error}");
}

#[test]
fn healthy_features_let_it_go_on() {
    let check = FeatureCheck { knn: Some(0.5), feature_std: 0.5, rank: 20.0 };
    let flat = FeatureCheck { feature_std: 0.0, ..check };
    let mut sentinel = Sentinel::new(&config(&[]));
    for check in [flat, flat, check, flat, flat, check] {
        assert_eq!(sentinel.check_features(&check), Verdict::Healthy);
    }
}

/// A data set on a disk so slow that reading takes nearly all the time.
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
    let mut sentinel = Sentinel::new(&config);
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
    let mut sentinel = Sentinel::new(&config);
    assert!((0..200).all(|_| sentinel.check_waiting(0.1).is_none()));
}
