//! Views and whole training steps: the GPU's against the CPU's.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Device;
use image::{Rgb, RgbImage};
use macrl_bundle::config::Config;
use macrl_kernels::rng::Rng;
use macrl_nn::cuda::ScalarType;
use macrl_nn::ops::graph::with_values;
use macrl_train::batches::Batches;
use macrl_train::data::Dataset;
use macrl_train::data::memory::Memory;
use macrl_train::ops::reconstruction::Target;
use macrl_train::part::Part;
use macrl_train::schedule::Schedule;
use macrl_train::state::State;
use macrl_train::step;
use macrl_train::step::contract::{Finished, Stepper};
use macrl_train::step::gpu::HostBatches;

use super::{Checks, distance, values};

const IMAGES: usize = 40;
pub(super) const STEPS: u64 = 24;

pub(super) fn config(more: &[&str]) -> Result<Config> {
    let small = [
        "encoder.image_size=16",
        "encoder.patch_size=4",
        "encoder.width=64",
        "encoder.depth=2",
        "encoder.heads=2",
        "decoder.width=32",
        "decoder.depth=1",
        "decoder.heads=1",
        "projector.hidden=32",
        "projector.dim=16",
        "contrast.bank_size=20",
        "contrast.temperature=0.2",
        "contrast.symmetric=false",
        "reconstruction.loss_on=masked",
        "train.batch_size=8",
        "train.lr=0.02",
        "train.warmup_epochs=1",
    ];
    let set: Vec<String> = small.iter().chain(more).map(|s| s.to_string()).collect();
    Ok(Config::parse("", "check", &set)?)
}

/// Smooth images with noise on them, of one size or of several.
pub(super) fn data(equal: bool) -> Arc<dyn Dataset> {
    let image = |i: usize| {
        let mut rng = Rng::new([i as u64, 3, 0, 0]);
        let (w, h) = if equal { (20, 18) } else { (17 + i as u32 % 5, 18) };
        RgbImage::from_fn(w, h, |x, y| {
            let wave = |k: f32| 120.0 + 100.0 * (k * (x as f32 + 2.0 * y as f32) / 9.0 + i as f32).sin();
            Rgb([1.0, 1.7, 0.6].map(|k| (wave(k) + (rng.bits() % 24) as f32) as u8))
        })
    };
    Arc::new(Memory::new("train", (0..IMAGES).map(image).collect(), vec![None; IMAGES]))
}

/// Checks views and steps in several configurations.
pub(crate) fn all(checks: &mut Checks) {
    for (name, set) in [
        (
            "views, all corruptions",
            vec![
                "views.strong.jitter_probability=1",
                "views.strong.grayscale=0.3",
                "views.strong.solarize=0.5",
                "contrast.key_mask=none",
                "contrast.symmetric=true",
            ],
        ),
        (
            "views of 40 pixels with blur, target as seen",
            vec![
                "encoder.image_size=40",
                "encoder.patch_size=8",
                "views.strong.blur=0.7",
                "views.weak.blur=0.5",
                "reconstruction.target=view",
                "contrast.key_mask=none",
                "contrast.symmetric=true",
            ],
        ),
    ] {
        checks.run(name, |device| views(device, &config(&set)?));
    }
    for (name, set, equal) in [
        ("steps f32, views made on the GPU", vec![], true),
        ("steps f32, views made on the CPU", vec![], false),
        ("steps f32, shared keys, class token", vec!["contrast.key_branch=shared", "evaluate.pooling=cls"], true),
        ("steps f32, reconstruction only", vec!["contrast.weight=0"], true),
        ("steps f32, contrast only", vec!["reconstruction.weight=0"], true),
        ("steps f32, contrast both ways", vec!["contrast.symmetric=true"], true),
        (
            "steps f32, contrast both ways, shared keys, no reconstruction",
            vec!["contrast.symmetric=true", "contrast.key_branch=shared", "reconstruction.weight=0"],
            true,
        ),
        ("steps f32, Muon", vec!["train.optimizer=muon"], true),
        (
            "steps f32, Muon, whole keys both ways, views made on the GPU",
            vec![
                "train.optimizer=muon",
                "contrast.key_mask=none",
                "contrast.symmetric=true",
                "views.weak.mask_ratio=0.625",
            ],
            true,
        ),
        (
            "steps f32, whole keys both ways, views made on the CPU, in two parts",
            vec!["contrast.key_mask=none", "contrast.symmetric=true", "train.accumulate=2"],
            false,
        ),
        (
            "steps f32, shared whole keys one way, no reconstruction",
            vec!["contrast.key_mask=none", "contrast.key_branch=shared", "reconstruction.weight=0"],
            true,
        ),
        ("steps f32, batch in two parts", vec!["train.accumulate=2"], true),
        ("steps f32, no bank", vec!["contrast.bank_size=0"], true),
        (
            "steps f32, nothing masked: no gradient for the mask token",
            vec!["views.strong.mask_ratio=0", "views.weak.mask_ratio=0", "reconstruction.loss_on=all"],
            true,
        ),
        ("steps bf16", vec!["train.precision=bf16"], true),
        ("steps bf16, contrast both ways", vec!["train.precision=bf16", "contrast.symmetric=true"], true),
        (
            "steps bf16, Muon, whole keys both ways",
            vec!["train.precision=bf16", "train.optimizer=muon", "contrast.key_mask=none", "contrast.symmetric=true"],
            true,
        ),
        ("steps bf16, views made on the CPU, in two parts", vec!["train.precision=bf16", "train.accumulate=2"], false),
    ] {
        checks.run(name, |device| steps(device, &config(&set)?, equal));
    }
    checks.run("a resumed run", resumed);
}

/// Largest difference of a pixel, in grey levels of 255, against the CPU's views of the same step.
fn views(device: &Device, config: &Config) -> Result<Vec<(String, f64, f64)>> {
    let mut found = Vec::new();
    let source = Batches::new(data(true), config)?;
    let (mut batches, device_batch) = HostBatches::new(device, ScalarType::F32, data(true), config, 0)?;
    anyhow::ensure!(device_batch.is_resident(), "the data set did not stay on the GPU");
    let level = f64::from(config.data.std.iter().fold(0f32, |m, s| m.max(*s))) * 255.0;
    for step in 0..3 {
        let sent = batches.next_batch()?;
        let batch = source.make(step)?;
        anyhow::ensure!(sent.indices == batch.indices, "step {step}: other images");
        // SAFETY: the words live until the stream has been waited for.
        unsafe { macrl_nn::cuda::memory::send(&device_batch.words, &sent.words)? };
        macrl_nn::cuda::Engine::at(device)?.synchronize()?;
        device_batch.prepare()?;
        let inputs = &device_batch.inputs()?[0];
        for (name, input, view) in [("strong", &inputs.strong, &batch.strong), ("weak", &inputs.weak, &batch.weak)] {
            let Target::Device(target) = &input.target else { anyhow::bail!("targets are not on the GPU") };
            let Some(whole) = &input.whole else { anyhow::bail!("whole views are not there") };
            let pairs = [
                ("patches", &input.seen.patches, &view.patches),
                ("whole", &whole.patches, &view.whole),
                ("target", target, &view.target),
            ];
            for (what, gpu, cpu) in pairs {
                let worst = values(gpu)?.iter().zip(cpu).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
                found.push((format!("{name} {what}, step {step}, grey levels"), worst * level, 1.0));
            }
        }
    }
    Ok(found)
}

/// The finished steps and the final state of a run.
pub(super) struct Ran {
    pub(super) done: Vec<Finished>,
    pub(super) state: State,
}

fn ran(device: &Device, config: &Config, equal: bool) -> Result<Ran> {
    let mut state = State::init(config)?;
    let mut stepper = step::open(device, data(equal), config, &mut state)?;
    let schedule = Schedule::new(config, stepper.steps_per_epoch());
    let mut done = Vec::new();
    while state.step < STEPS {
        done.extend(stepper.advance(&mut state, &schedule)?);
        if state.step == STEPS / 3 {
            done.extend(stepper.settle(&mut state)?);
        }
    }
    done.extend(stepper.settle(&mut state)?);
    captured(device, &*stepper)?;
    Ok(Ran { done, state })
}

/// Checks that a run's steps on a GPU are one captured graph by now, unless scripts/emulate was told to let captures fail.
pub(super) fn captured(device: &Device, stepper: &dyn Stepper) -> Result<()> {
    if device.is_cuda() {
        let fails = std::env::var_os("EMULATE_FAIL").is_some_and(|wish| !wish.is_empty());
        anyhow::ensure!(stepper.is_captured() != fails, "captured: {}, told to fail: {fails}", stepper.is_captured());
    }
    Ok(())
}

/// All trainable parameters, and those of the key branch.
pub(super) fn weights(state: &State) -> Result<Vec<f32>> {
    let trainable = state.method.trainable().into_iter().map(|(_, group)| group);
    let keys = state.method.key.iter().flat_map(|(e, p)| [e.groups(), p.groups()].concat());
    let mut all = Vec::new();
    for group in trainable.chain(keys) {
        with_values(group.values(), |v| {
            all.extend_from_slice(v);
            Ok(())
        })?;
    }
    Ok(all)
}

/// Compares the same run on both devices: losses, norms, weights, moments, bank.
fn steps(device: &Device, config: &Config, equal: bool) -> Result<Vec<(String, f64, f64)>> {
    let bf16 = config.train.precision == macrl_bundle::config::Precision::Bf16;
    let cpu = ran(&Device::Cpu, config, equal)?;
    let gpu = ran(device, config, equal)?;
    anyhow::ensure!(cpu.done.len() == gpu.done.len(), "{} steps against {}", gpu.done.len(), cpu.done.len());
    let parts = config.train.accumulate.max(1) > 1;
    let numbers = |ran: &Ran| -> Vec<f32> {
        let of = |done: &Finished| {
            let m = &done.measured;
            let mut numbers = vec![m.loss as f32, m.norms.total as f32, m.norms.of(Part::Encoder) as f32];
            // The mean cosine with negatives is near 0: its relative error says nothing.
            let terms = m.terms.iter().flat_map(|term| term.named());
            numbers.extend(terms.filter(|(number, _)| number.key != "negative_similarity").map(|(_, value)| value));
            numbers
        };
        ran.done.iter().flat_map(of).collect()
    };
    let moments =
        |ran: &Ran| -> Vec<f32> { ran.state.optimizer.moments.iter().flat_map(|m| m.first.clone()).collect() };
    let unreached = |ran: &Ran| ran.done.last().map(|done| done.measured.unreached.clone());
    let (on_gpu, on_cpu) = (unreached(&gpu), unreached(&cpu));
    anyhow::ensure!(on_gpu == on_cpu, "without gradient: {on_gpu:?} against {on_cpu:?}");
    let limit = if bf16 { 5e-2 } else { 1e-3 };
    let first = |ran: &Ran| ran.done.iter().take(4).map(|d| d.measured.loss as f32).collect::<Vec<_>>();
    let (a, b) = (&cpu.state.method.bank, &gpu.state.method.bank);
    anyhow::ensure!((&a.images, a.next) == (&b.images, b.next), "the banks hold other images");
    let mut found = vec![
        ("first four losses".into(), distance(&first(&gpu), &first(&cpu)), if bf16 { 1e-2 } else { 1e-5 }),
        (format!("numbers of {STEPS} steps"), distance(&numbers(&gpu), &numbers(&cpu)), limit),
        ("weights".into(), distance(&weights(&gpu.state)?, &weights(&cpu.state)?), limit),
        ("moments".into(), distance(&moments(&gpu), &moments(&cpu)), 10.0 * limit),
    ];
    if !a.keys.is_empty() {
        found.push(("bank".into(), distance(&b.keys, &a.keys), if parts { 2.0 * limit } else { limit }));
    }
    Ok(found)
}

/// A run that was stopped, saved and resumed equals one that was not, since sums have a fixed order.
fn resumed(device: &Device) -> Result<Vec<(String, f64, f64)>> {
    let config = config(&["train.precision=bf16", "train.optimizer=muon", "contrast.key_mask=none"])?;
    let whole = ran(device, &config, true)?;
    let path = std::env::temp_dir().join(format!("check_cuda-{}.safetensors", std::process::id()));
    let mut state = State::init(&config)?;
    let advance = |state: &mut State, end: u64| -> Result<()> {
        let mut stepper = step::open(device, data(true), &config, state)?;
        let schedule = Schedule::new(&config, stepper.steps_per_epoch());
        while state.step < end {
            stepper.advance(state, &schedule)?;
        }
        stepper.settle(state)?;
        Ok(())
    };
    advance(&mut state, STEPS / 2 - 1)?;
    state.save(&path, &config)?;
    let (mut state, _) = State::load(&path)?;
    std::fs::remove_file(&path)?;
    advance(&mut state, STEPS)?;
    let moments = |s: &State| s.optimizer.moments.iter().flat_map(|m| [&m.first[..], &m.second[..]].concat()).collect();
    let (a, b): (Vec<f32>, Vec<f32>) = (moments(&state), moments(&whole.state));
    let (c, d) = (&state.method.bank, &whole.state.method.bank);
    anyhow::ensure!((&c.images, c.next) == (&d.images, d.next), "the banks hold other images");
    Ok(vec![("moments".into(), distance(&a, &b), 1e-6), ("bank".into(), distance(&c.keys, &d.keys), 1e-6)])
}
