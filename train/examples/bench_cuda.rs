//! Times training steps, and the encoder alone, on a GPU; `bench/lease/contenders.py` runs it and PyTorch.
//!
//! `bench_cuda CONFIG DUMP_DIR [KEY=VALUE...]` writes the initial state and a few batches into DUMP_DIR, prints `written`,
//! then `ready LOSS LOSS ...` (the losses of the first steps) and answers on stdin: `run N` with the seconds that N steps
//! took and the share of them spent waiting for batches; `peak` with the most bytes reserved; `manner` with whether the step
//! is one captured graph and the views are made on the GPU; `encode BATCH N` with the seconds that N passes of the encoder
//! over BATCH whole images took; `profile` after one step between the driver's profiler calls.

#[path = "support/dump.rs"]
mod dump;

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::cuda_backend::cudarc::driver::{profiler_start, profiler_stop};
use candle_core::{Device, Tensor};
use macrl_bundle::config::{Config, Precision};
use macrl_nn::cuda::{Engine, ScalarType, memory};
use macrl_nn::ops::tokens::{Kept, VisiblePatches};
use macrl_nn::vit::Encoder;
use macrl_train::batches::Batches;
use macrl_train::schedule::Schedule;
use macrl_train::state::State;
use macrl_train::step::contract::Stepper;
use macrl_train::step::gpu::GpuStepper;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCHES: usize = 4;
/// Steps before anything is timed, the capture among them.
const WARM: usize = 20;

fn main() -> Result<()> {
    macrl_train::startup::settle();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, dump, set @ ..] = arguments.as_slice() else {
        bail!("usage: bench_cuda CONFIG DUMP_DIR KEY=VALUE...")
    };
    let config = Config::load(Path::new(config), set)?;
    let data = dump::noise(&config, BATCHES);
    let source = Batches::new(data.clone(), &config)?;
    let batches = (0..BATCHES as u64).map(|i| source.make(i)).collect::<Result<Vec<_>>>()?;
    let mut state = State::init(&config)?;
    dump::write(Path::new(dump), &config, &state, &batches)?;
    drop(batches);
    println!("written");

    let device = Engine::open(0)?;
    let engine = Engine::at(&device)?;
    let schedule = Schedule::new(&config, dump::EPOCH);
    let mut stepper = GpuStepper::new(&device, data, &config, &mut state)?;
    let mut run = |stepper: &mut GpuStepper, count: usize| -> Result<(f64, f64, Vec<f64>)> {
        let start = Instant::now();
        let mut done = Vec::new();
        for _ in 0..count {
            done.extend(stepper.advance(&mut state, &schedule)?);
        }
        done.extend(stepper.drain(&mut state)?);
        let seconds = start.elapsed().as_secs_f64();
        let waited: f64 = done.iter().map(|d| d.waiting * d.seconds).sum();
        Ok((seconds, waited / seconds, done.iter().map(|d| d.measured.loss).collect()))
    };
    let losses = run(&mut stepper, BATCHES)?.2;
    run(&mut stepper, WARM)?;
    println!("ready {}", losses.iter().map(|l| format!("{l:.7}")).collect::<Vec<_>>().join(" "));
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["run", count] => {
                let (seconds, waiting, _) = run(&mut stepper, count.parse()?)?;
                println!("{seconds} {waiting}");
            }
            ["peak"] => println!("{}", engine.peak_bytes()),
            ["manner"] => println!("{:?}", (stepper.is_captured(), stepper.is_resident())),
            ["encode", batch, count] => println!("{}", encode(&device, &config, batch.parse()?, count.parse()?)?),
            ["profile"] => {
                profiler_start()?;
                run(&mut stepper, 1)?;
                profiler_stop()?;
                println!("profiled");
            }
            _ => bail!("expected `run N`, `peak`, `manner`, `profile` or `encode BATCH N`, got `{line}`"),
        }
    }
    Ok(())
}

/// Seconds of `count` passes over `batch` whole images that lie on the device.
fn encode(device: &Device, config: &Config, batch: usize, count: usize) -> Result<f64> {
    let scalar = if config.train.precision == Precision::Bf16 { ScalarType::Bf16 } else { ScalarType::F32 };
    let encoder = Encoder::init(&config.encoder, 0)?.map(|group| group.to_gpu(device, scalar))?;
    let (n, p) = (config.encoder.patches(), config.encoder.patch_values());
    let patches: Vec<f32> = (0..batch * n * p).map(|i| (i % 511) as f32 / 255.0 - 1.0).collect();
    let kept: Vec<u32> = (0..batch).flat_map(|_| 0..n as u32).collect();
    let kept = Tensor::from_vec(kept, (batch, n), device)?;
    let seen = VisiblePatches {
        patches: memory::upload(device, scalar, &patches, (batch, n, p))?,
        kept: Kept::Device { sources: kept.clone(), kept },
    };
    let engine = Engine::at(device)?;
    let pass = || encoder.forward(&[&seen])?.pool(0, config.evaluate.pooling);
    for _ in 0..3 {
        pass()?;
    }
    engine.synchronize()?;
    let start = Instant::now();
    for _ in 0..count {
        pass()?;
    }
    engine.synchronize().context("a kernel failed")?;
    Ok(start.elapsed().as_secs_f64())
}
