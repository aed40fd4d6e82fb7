//! Which images a check classifies, over orders and sizes of classes.

use std::sync::Arc;

use image::{Rgb, RgbImage};
use macrl_nn::vit::Encoder;

use super::*;
use crate::data::memory::Memory;

fn config() -> Config {
    let set = ["encoder.image_size=8", "encoder.width=24", "encoder.depth=1", "evaluate.k=3"].map(String::from);
    Config::parse("", "test", &set).unwrap()
}

/// Images whose colour is their class's, each a little different; `None` has no label.
fn data(labels: &[Option<u32>]) -> Data {
    let shade = |class: u32, channel: u32| (class.wrapping_mul(2_654_435_761) >> (8 * channel)) as u8 / 2;
    let image = |(i, label): (usize, &Option<u32>)| {
        let class = label.unwrap_or(i as u32);
        RgbImage::from_fn(8, 8, |x, y| {
            Rgb([0, 1, 2].map(|channel| shade(class, channel) + ((i as u32 + x * y) % 7) as u8 + 20))
        })
    };
    let images = labels.iter().enumerate().map(image).collect();
    Data::unlabelled(Arc::new(Memory::new("train", images, labels.to_vec())), "test")
}

fn check(labels: &[Option<u32>]) -> Option<f64> {
    let config = config();
    let encoder = Encoder::init(&config.encoder, 0).unwrap();
    Online::prepare(&config, &data(labels)).unwrap().check(&encoder).unwrap().knn
}

#[test]
fn classes_in_turn_are_all_queried_and_found() {
    // With every sixth image as the query, six classes in turn were always 0 %, and of two classes only one was queried.
    for classes in [2, 3, 6, 12] {
        let size = 10;
        let turns: Vec<Option<u32>> = (0..classes * size).map(|i| Some(i % classes)).collect();
        let sorted: Vec<Option<u32>> = (0..classes * size).map(|i| Some(i / size)).collect();
        for labels in [turns, sorted] {
            let knn = check(&labels).unwrap();
            assert!(knn > 0.9, "{classes} classes: {knn}");
        }
    }
}

#[test]
fn images_without_a_partner_are_not_queried() {
    // One image of its own class among others: looked up in, not queried.
    let mut labels: Vec<Option<u32>> = (0..20).map(|i| Some(i % 2)).collect();
    labels.push(Some(9));
    assert_eq!(check(&labels), Some(1.0));
    // One class, or one image each: nothing can be mistaken, nothing can be found.
    assert_eq!(check(&[Some(4); 20]), None);
    assert_eq!(check(&(0..20).map(Some).collect::<Vec<_>>()), None);
    assert_eq!(check(&[None; 20]), None);
    // Some labels are enough.
    labels.extend([None; 30]);
    assert_eq!(check(&labels), Some(1.0));
}
