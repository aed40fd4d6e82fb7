//! Times training steps on batches that are in memory already; `bench/step.py` runs it and PyTorch.
//!
//! `bench_step CONFIG DUMP_DIR BATCHES [key=value]...` writes the initial state and that many batches into DUMP_DIR, prints
//! `ready LOSS LOSS ...` (the losses of a step on each), then answers each line `run N` on stdin with the seconds
//! that N steps took.

#[path = "support/dump.rs"]
mod dump;

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use macrl_bundle::config::Config;
use macrl_train::batches::Batches;
use macrl_train::schedule::Schedule;
use macrl_train::state::State;
use macrl_train::step::cpu::pretraining_step;

use dump::{EPOCH, noise, write};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
        let batch = |i: usize| batches[i % batches.len()].clone();
        (0..count).map(|i| Ok(pretraining_step(&mut state, batch(i), &config, &schedule)?.loss)).collect()
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
