//! Every GPU operator against the CPU's, forward and backward, in f32 and bf16; then views and whole training steps.
//!
//! `check_cuda [--after NAME | --only NAME] [NAME_PART]` prints `begin NAME`, then a line a result with the largest relative
//! error and its tolerance (norm of the difference over norm of the CPU's result); status 0 only if all pass.  `--after`
//! leaves out all checks up to NAME (one that hung or crashed); `--only` runs NAME alone.  `LD_LIBRARY_PATH` with
//! scripts/emulate's libraries runs it where no GPU is.

mod operators;
mod runs;
mod steps;

use std::process::ExitCode;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use macrl_kernels::rng::Rng;
use macrl_nn::cuda::{Engine, ScalarType, memory};

/// The checks to run.
#[derive(Default)]
struct Chosen {
    /// All checks up to this one are left out; cleared when it is reached.
    after: Option<String>,
    only: Option<String>,
    part: Option<String>,
}

impl Chosen {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut chosen = Chosen::default();
        let mut arguments = arguments;
        while let Some(word) = arguments.next() {
            let mut name = || arguments.next().with_context(|| format!("{word} wants a check's name"));
            match word.as_str() {
                "--after" => chosen.after = Some(name()?),
                "--only" => chosen.only = Some(name()?),
                _ => chosen.part = Some(word),
            }
        }
        Ok(chosen)
    }

    fn takes(&mut self, name: &str) -> bool {
        if let Some(after) = &self.after {
            if after == name {
                self.after = None;
            }
            return false;
        }
        self.only.as_ref().is_none_or(|only| only == name)
            && self.part.as_ref().is_none_or(|part| name.contains(part.as_str()))
    }
}

/// Runs checks and collects their results.
pub struct Checks {
    /// The GPU that is checked.
    pub device: Device,
    chosen: Chosen,
    failed: Vec<String>,
    passed: usize,
}

impl Checks {
    /// Runs a check whose name fits; it gives (what, error, tolerance) triples.
    pub fn run(&mut self, name: &str, check: impl FnOnce(&Device) -> Result<Vec<(String, f64, f64)>>) {
        if !self.chosen.takes(name) {
            return;
        }
        println!("begin {name}");
        match check(&self.device) {
            Ok(found) => {
                for (what, error, tolerance) in found {
                    let fine = error <= tolerance; // NaN is not
                    println!(
                        "{} {name}: {what} {error:.2e} (at most {tolerance:.0e})",
                        if fine { "pass" } else { "FAIL" }
                    );
                    if fine {
                        self.passed += 1;
                    } else {
                        self.failed.push(format!("{name}: {what}"));
                    }
                }
            }
            Err(why) => {
                println!("FAIL {name}: {why:#}");
                self.failed.push(name.to_string());
            }
        }
    }
}

/// ||a - b|| / ||b||
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    let size: f64 = b.iter().map(|b| square(*b)).sum();
    (difference / size.max(1e-30)).sqrt()
}

/// Values of standard deviation `scale`, as `scalar` storage holds them.
pub fn noise(scalar: ScalarType, seed: u64, count: usize, scale: f64) -> Vec<f32> {
    let mut rng = Rng::new([seed, 77, 0, 0]);
    (0..count).map(|_| rounded(scalar, (rng.normal() * scale) as f32)).collect()
}

/// The nearest value that `scalar` can store.
pub fn rounded(scalar: ScalarType, value: f32) -> f32 {
    match scalar {
        ScalarType::F32 => value,
        ScalarType::Bf16 => f32::from_bits((value.to_bits() + 0x7fff + (value.to_bits() >> 16 & 1)) & 0xffff_0000),
    }
}

/// A tensor's values, copied from a GPU if it is there.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    match tensor.device() {
        Device::Cpu => Ok(tensor.flatten_all()?.to_vec1()?),
        _ => Ok(memory::fetch(tensor)?),
    }
}

/// Relative error that a few roundings in `scalar` may cause.
pub fn tolerance(scalar: ScalarType) -> f64 {
    match scalar {
        ScalarType::F32 => 2e-5,
        ScalarType::Bf16 => 1.5e-2,
    }
}

fn main() -> ExitCode {
    let run = || -> Result<ExitCode> {
        let device = Engine::open(0).context("no GPU works here")?;
        println!("on {}", Engine::at(&device)?.name());
        let chosen = Chosen::parse(std::env::args().skip(1))?;
        let mut checks = Checks { device, chosen, failed: Vec::new(), passed: 0 };
        for scalar in [ScalarType::F32, ScalarType::Bf16] {
            operators::all(&mut checks, scalar);
        }
        steps::all(&mut checks);
        runs::all(&mut checks);
        println!("{} checks passed, {} failed", checks.passed, checks.failed.len());
        checks.failed.iter().for_each(|name| println!("failed: {name}"));
        Ok(if checks.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    };
    run().unwrap_or_else(|why| {
        eprintln!("error: {why:#}");
        ExitCode::FAILURE
    })
}
