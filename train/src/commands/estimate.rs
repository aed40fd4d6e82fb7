//! How long a run will take, from a few steps that are made and thrown away.

use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::Device;
use macrl_bundle::config::Config;
use macrl_bundle::output::duration;
use macrl_bundle::say;

use crate::data::Data;
use crate::schedule::Schedule;
use crate::state::State;
use crate::step;

/// Steps that are measured, after one that warms up.
const MEASURED: usize = 3;
/// Time after which one measured step is enough.
const PATIENCE: Duration = Duration::from_secs(10);
/// Steps of a run below which nothing is measured: it is over soon.
const SHORT: u64 = 200;

/// Seconds of a step on the CPU, the median of a few; `None` on a GPU, where steps are queued, or with too few images for a batch.
///
/// # Errors
/// Data that cannot be read.
pub(super) fn seconds_per_step(config: &Config, data: &Data, device: &Device) -> Result<Option<f64>> {
    if !device.is_cpu() || data.train.len() < config.train.batch_size {
        return Ok(None);
    }
    let mut state = State::init(config)?;
    let mut stepper = step::open(device, data.train.clone(), config, &mut state)?;
    let schedule = Schedule::new(config, stepper.steps_per_epoch());
    let (mut seconds, since) = (Vec::with_capacity(MEASURED + 1), Instant::now());
    while seconds.len() <= MEASURED && (seconds.len() < 2 || since.elapsed() < PATIENCE) {
        seconds.extend(stepper.advance(&mut state, &schedule)?.iter().map(|done| done.seconds));
    }
    let mut measured = seconds.split_off(1);
    measured.sort_by(f64::total_cmp);
    Ok(measured.get(measured.len() / 2).copied())
}

/// Says how long the rest of a run will take; nothing about a short one.
///
/// # Errors
/// Data that cannot be read.
pub(super) fn announce(config: &Config, data: &Data, device: &Device, done: u64) -> Result<()> {
    let per_epoch = (data.train.len() / config.train.batch_size) as u64;
    let left = (per_epoch * config.train.epochs as u64).saturating_sub(done);
    if left < SHORT {
        return Ok(());
    }
    let Some(seconds) = seconds_per_step(config, data, device)? else { return Ok(()) };
    let time = duration(Duration::from_secs_f64((seconds * left as f64).min(1e12)));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    say!(
        "about {time} on {cores} cores: {left} steps of {seconds:.3} s, measured on a few; evaluations come on top. Ctrl-C saves \
         the run, --resume continues it"
    );
    Ok(())
}
