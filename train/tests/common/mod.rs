//! A small network and 24 images for the tests of the method and of the loop around it.

#![allow(dead_code)] // every test file uses a part of it

use std::sync::Arc;

use candle_core::{Tensor, Var};
use image::{Rgb, RgbImage};
use macrl_bundle::config::Config;
use macrl_nn::params::Group;
use macrl_train::data::Data;
use macrl_train::data::memory::Memory;

const SMALL: [&str; 10] = [
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
];

/// The defaults with a small network and batches of 8, changed by the overrides `more`.
pub(crate) fn config(more: &[&str]) -> Config {
    let set: Vec<String> = SMALL.iter().chain(more).map(|s| s.to_string()).collect();
    Config::parse("", "test", &set).unwrap()
}

/// 24 different images of 16 x 16 pixels, without labels.
pub(crate) fn images() -> Memory {
    let pixel = |i: u32, x: u32, y: u32| Rgb([(i * 40 + x * 5) as u8, (x * y + i) as u8, (y * 11) as u8]);
    let images = (0..24).map(|i| RgbImage::from_fn(16, 16, |x, y| pixel(i, x, y))).collect();
    Memory::new("train", images, vec![None; 24])
}

/// The same images as a data set.
pub(crate) fn data() -> Data {
    Data::unlabelled(Arc::new(images()), "memory")
}

/// Replaces a parameter's values in place.
pub(crate) fn set(groups: &[&Group], name: &str, value: impl Fn(usize, f32) -> f32) {
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
