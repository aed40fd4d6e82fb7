//! Each check of the sentinel is made to fail by a real encoder or loader, and its message has to name the cause and what to try.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::{Tensor, Var};
use image::{Rgb, RgbImage};
use macrl_bundle::preprocess::Preprocess;
use macrl_nn::params::Group;

use super::*;
use crate::data::{Data, Dataset, memory::Memory};
use crate::encode::PreparedImages;
use crate::loader::Loader;
use crate::online::Online;
use crate::state::State;

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
