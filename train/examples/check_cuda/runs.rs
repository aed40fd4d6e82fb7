//! Checks of whole runs: a step that is not finite, and ends of epochs.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use candle_core::Device;
use macrl_train::data::Data;
use macrl_train::run::Run;
use macrl_train::schedule::Schedule;
use macrl_train::state::State;
use macrl_train::step;
use macrl_train::step::contract::Finished;
use macrl_train::trainer::pretrain;

use super::steps::{Ran, STEPS, captured, config, data, weights};
use super::{Checks, distance};

/// Checks runs in several precisions.
pub(crate) fn all(checks: &mut Checks) {
    for (name, set) in [
        ("f32", vec![]),
        ("f32, Muon, batch in two parts", vec!["train.optimizer=muon", "train.accumulate=2"]),
        ("bf16", vec!["train.precision=bf16"]),
    ] {
        checks.run(&format!("a step that is not finite, {name}"), |device| not_finite(device, &set));
    }
    checks.run("ends of epochs", epochs);
}

/// Step whose update breaks the weights; the step itself is finite.
const WILD: u64 = 6;

/// A run whose step [`WILD`] has such a high learning rate that the next step's loss is not finite.
fn broken(device: &Device, set: &[&str]) -> Result<Ran> {
    let [calm, wild] = [config(set)?, config(&[set, &["train.lr=1e30"]].concat())?];
    let mut state = State::init(&calm)?;
    let mut stepper = step::open(device, data(true), &calm, &mut state)?;
    let [calm_rates, wild_rates] = [&calm, &wild].map(|c| Schedule::new(c, stepper.steps_per_epoch()));
    let mut done: Vec<Finished> = Vec::new();
    let finite = |done: &Finished| done.measured.is_finite();
    while done.last().is_none_or(finite) {
        anyhow::ensure!(state.step < 10 * STEPS, "every step was finite");
        let rates = if state.step == WILD { &wild_rates } else { &calm_rates };
        done.extend(stepper.advance(&mut state, rates)?);
    }
    captured(device, &*stepper)?;
    Ok(Ran { done, state })
}

/// A step that is not finite changes nothing, and neither do the steps after it: weights, moments, bank and counters are those
/// before it, on both devices.
fn not_finite(device: &Device, set: &[&str]) -> Result<Vec<(String, f64, f64)>> {
    let (cpu, gpu) = (broken(&Device::Cpu, set)?, broken(device, set)?);
    let counters = |ran: &Ran| {
        let (state, last) = (&ran.state, ran.done.last().map(|done| done.step));
        (ran.done.len(), last, state.step, state.optimizer.step, state.method.bank.next)
    };
    anyhow::ensure!(counters(&gpu) == counters(&cpu), "{:?} against {:?}", counters(&gpu), counters(&cpu));
    anyhow::ensure!(cpu.state.step == WILD + 1, "step {} was not finite, expected {}", cpu.state.step, WILD + 1);
    let (a, b) = (&cpu.state.method.bank, &gpu.state.method.bank);
    anyhow::ensure!(a.images == b.images, "the banks hold other images");
    let (a, b) = (&a.keys, &b.keys);
    let moments = |ran: &Ran| ran.state.optimizer.moments.iter().flat_map(|m| m.first.clone()).collect::<Vec<f32>>();
    let limit = if set.contains(&"train.precision=bf16") { 5e-2 } else { 1e-3 };
    Ok(vec![
        ("bank".into(), distance(b, a), limit),
        ("moments".into(), distance(&moments(&gpu), &moments(&cpu)), limit),
        // A step with a huge rate depends on signs, which flip where a gradient is nearly 0.
        ("weights".into(), distance(&weights(&gpu.state)?, &weights(&cpu.state)?), 4.0 * limit),
    ])
}

/// Names of the checkpoints that a short run has kept, and the time that it took.
fn kept(device: &Device) -> Result<(Vec<String>, Duration)> {
    let config = config(&["train.epochs=4", "evaluate.every_epochs=3", "train.keep_checkpoints=9"])?;
    let dir = std::env::temp_dir().join(format!("check_cuda-{}-{}", std::process::id(), device.is_cuda()));
    std::fs::create_dir_all(dir.join("checkpoints"))?;
    let run = Run::new(&dir);
    let data = Data::unlabelled(data(true), "memory");
    let start = Instant::now();
    pretrain(&run, &config, &data, State::init(&config)?, device, &AtomicBool::new(false))?;
    let took = start.elapsed();
    let names = run.all_numbered().into_iter().filter_map(|path| Some(path.file_stem()?.to_str()?.to_string()));
    let names: Vec<String> = names.collect();
    let last = State::load(&run.last()).context("the last checkpoint")?.0;
    anyhow::ensure!(names.last() == Some(&format!("step-{:08}", last.step)), "{names:?}, the last after {}", last.step);
    std::fs::remove_dir_all(&dir)?;
    Ok((names, took))
}

/// On a GPU, checkpoints are kept at ends of epochs that are evaluated, at the last, and where the last checkpoint is old.
fn epochs(device: &Device) -> Result<Vec<(String, f64, f64)>> {
    let (cpu, (gpu, took)) = (kept(&Device::Cpu)?.0, kept(device)?);
    let named = |steps: &[u64]| steps.iter().map(|step| format!("step-{step:08}")).collect::<Vec<_>>();
    anyhow::ensure!(cpu == named(&[5, 10, 15, 20]), "the CPU saved {cpu:?}");
    let all = named(&[15, 20]).iter().all(|name| gpu.contains(name));
    anyhow::ensure!(all && (gpu.len() == 2 || took > Duration::from_secs(20)), "the GPU saved {gpu:?} in {took:?}");
    Ok(vec![("checkpoints besides those that are due".into(), 0.0, 0.0)])
}
