//! Times training steps on batches that are in memory already; `bench/step.py` drives it beside PyTorch.
//!
//! `bench_step CONFIG DUMP_DIR BATCHES [key=value]...` writes the initial state and that many batches into DUMP_DIR, prints
//! `ready LOSS LOSS ...` (the losses of a step on each), then answers each line `run N` on stdin with the seconds
//! that N steps took.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use image::RgbImage;
use macrl_models::checkpoint::to_bytes;
use macrl_models::config::Config;
use macrl_models::rng::Rng;
use macrl_train::data::Dataset;
use macrl_train::data::memory::Memory;
use macrl_train::loader::Batches;
use macrl_train::schedule::Schedule;
use macrl_train::state::State;
use macrl_train::trainer::step;
use macrl_train::views::{Batch, View};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Steps in an epoch as far as the schedule is concerned.
const EPOCH: u64 = 1000;

fn main() -> Result<()> {
    macrl_train::startup::settle();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, dump, count, set @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: bench_step CONFIG DUMP_DIR BATCHES KEY=VALUE...")
    };
    let count: usize = count.parse().context("BATCHES is a number")?;
    let config = Config::load(Path::new(config), set)?;
    let source = Batches::new(noise(&config, count), &config)?;
    let batches = (0..count as u64).map(|i| source.make(i)).collect::<Result<Vec<_>>>()?;
    let mut state = State::init(&config)?;
    write(Path::new(dump), &config, &state, &batches)?;

    let schedule = Schedule::new(&config, EPOCH);
    let mut run = |count: usize| -> Result<Vec<f64>> {
        (0..count).map(|i| Ok(step(&mut state, &batches[i % batches.len()], &config, &schedule)?.loss)).collect()
    };
    let losses: Vec<String> = run(count)?.iter().map(|l| format!("{l:.7}")).collect();
    println!("ready {}", losses.join(" "));
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let count: usize = line.strip_prefix("run ").context("expected `run N`")?.trim().parse()?;
        let start = Instant::now();
        run(count)?;
        println!("{}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Images for `batches` batches; their pixels do not matter.
fn noise(config: &Config, batches: usize) -> Arc<dyn Dataset> {
    let size = config.encoder.image_size as u32;
    let count = batches * config.train.batch_size;
    let image = |i: usize| {
        let mut rng = Rng::new([0, i as u64, 0, 0]);
        let pixels = (0..3 * size * size).map(|_| rng.bits() as u8).collect();
        RgbImage::from_raw(size, size, pixels).unwrap_or_else(|| RgbImage::new(size, size))
    };
    Arc::new(Memory::new("noise", (0..count).map(image).collect(), vec![None; count]))
}

fn write(dir: &Path, config: &Config, state: &State, batches: &[Batch]) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    state.save(&dir.join("state.safetensors"), config)?;
    let size = config.train.batch_size;
    let mut tensors = Vec::new();
    for (i, batch) in batches.iter().enumerate() {
        tensors.push((format!("{i}.images"), Tensor::from_slice(&batch.indices, size, &Device::Cpu)?));
        for (name, view) in [("strong", &batch.strong), ("weak", &batch.weak)] {
            let View { kept, patches, target } = view;
            let p = config.encoder.patch_values();
            let (k, n) = (kept.len() / size, config.encoder.patches());
            tensors.push((format!("{i}.{name}.kept"), Tensor::from_slice(kept, (size, k), &Device::Cpu)?));
            tensors.push((format!("{i}.{name}.patches"), Tensor::from_slice(patches, (size, k, p), &Device::Cpu)?));
            tensors.push((format!("{i}.{name}.target"), Tensor::from_slice(target, (size, n, p), &Device::Cpu)?));
        }
    }
    std::fs::write(dir.join("batches.safetensors"), to_bytes(&tensors, Default::default())?)?;
    Ok(())
}
