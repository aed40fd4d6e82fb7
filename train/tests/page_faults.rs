//! A step of training reuses the memory of the steps before it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::sync::Arc;

use image::{Rgb, RgbImage};
use macrl_bundle::config::Config;
use macrl_train::batches::Batches;
use macrl_train::data::memory::Memory;
use macrl_train::schedule::Schedule;
use macrl_train::state::State;
use macrl_train::step::cpu::pretraining_step;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Pages that the system has given to this process so far.
fn faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    after_name.split_whitespace().nth(7).unwrap().parse().unwrap()
}

/// The first step takes all memory: 10,000 pages and more, or 100 where the system has pages of 2 MB.
#[test]
fn steps_after_the_third_take_no_new_pages() {
    macrl_train::startup::settle();
    let set =
        ["encoder.width=96", "encoder.depth=3", "encoder.heads=3", "train.batch_size=32", "contrast.bank_size=64"];
    let config = Config::parse("", "test", &set.map(String::from)).unwrap();
    let size = config.encoder.image_size as u32;
    let images =
        (0..32).map(|i| RgbImage::from_fn(size, size, |x, y| Rgb([(i * 7) as u8, x as u8, y as u8]))).collect();
    let source = Batches::new(Arc::new(Memory::new("train", images, vec![None; 32])), &config).unwrap();
    let (batch, schedule) = (source.make(0).unwrap(), Schedule::new(&config, 20));
    let mut state = State::init(&config).unwrap();
    let mut step = || {
        let before = faults();
        assert!(pretraining_step(&mut state, batch.clone(), &config, &schedule).unwrap().is_finite());
        faults() - before
    };
    let first = step();
    assert!(first > 40, "the first step took {first} pages: too few to test anything");
    step();
    step();
    // The median: which thread takes which part varies, and now and then an allocator's list of one thread runs empty.
    let mut later: Vec<u64> = (0..9).map(|_| step()).collect();
    later.sort_unstable();
    assert!(later[4] <= first / 20, "pages taken by the first step: {first}, by nine steps after the third: {later:?}");
}
