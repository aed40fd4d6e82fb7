//! A checkpoint is written when it is due, wherever in an epoch the run is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use candle_core::Device;
use image::{Rgb, RgbImage};
use macrl_bundle::config::Config;
use macrl_train::data::{Data, Dataset};
use macrl_train::run::Run;
use macrl_train::state::State;
use macrl_train::trainer::pretrain;

/// Images that can be read so many times, and then no more: a disk that goes away.
struct Failing {
    left: AtomicUsize,
}

impl Dataset for Failing {
    fn len(&self) -> usize {
        64
    }
    fn label(&self, _: usize) -> Option<u32> {
        None
    }
    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        ensure!(left.is_ok(), "the disk is gone");
        Ok(Cow::Owned(RgbImage::from_fn(8, 8, |x, y| Rgb([(x * 30) as u8, (y * 30) as u8, index as u8]))))
    }
    fn name(&self, index: usize) -> String {
        index.to_string()
    }
}

/// Trains until the images are gone, in the first epoch (of 16 steps).
fn train(run: &Run, set: &str) {
    let small = "[encoder]\nimage_size = 8\nwidth = 16\ndepth = 1\nheads = 2\n[decoder]\nwidth = 16\ndepth = 1\nheads = 2\n\
                 [projector]\nhidden = 16\ndim = 8\n[contrast]\nbank_size = 8\n[train]\nbatch_size = 4\n\
                 [evaluate]\nevery_epochs = 0\n";
    let config = Config::parse(small, "test", &[set.to_string()]).unwrap();
    std::fs::create_dir_all(run.dir().join("checkpoints")).unwrap();
    // The run's samples take the first 64.
    let split: Arc<dyn Dataset> = Arc::new(Failing { left: AtomicUsize::new(64 + 4 * 9) });
    let data = Data::unlabelled(split, "test");
    let state = State::init(&config).unwrap();
    let why = pretrain(run, &config, &data, state, &Device::Cpu, &AtomicBool::new(false)).unwrap_err();
    assert!(why.to_string().contains("can be read any more"), "{why}");
}

#[test]
fn time_makes_a_checkpoint_due() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::new(&dir.path().join("timed"));
    train(&run, "train.checkpoint_minutes=0.0000001");
    let (state, _) = State::load(&run.last()).unwrap();
    assert!((1..16).contains(&state.step), "{}", state.step);
    let run = Run::new(&dir.path().join("never"));
    train(&run, "train.checkpoint_minutes=0");
    assert!(!run.last().exists());
}
