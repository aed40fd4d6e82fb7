//! `--device`: where to compute.

use anyhow::Result;
use candle_core::Device;

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// A GPU where one works, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA GPU.
    Cuda,
}

/// The device, and a line that says which.
///
/// # Errors
/// A GPU was asked for and there is none that works: why, in one line.
pub fn open(choice: Choice) -> Result<(Device, String)> {
    match (choice, gpu()) {
        (Choice::Cpu, _) | (Choice::Auto, Err(_)) => Ok((Device::Cpu, "CPU".into())),
        (Choice::Cuda, Err(why)) => Err(why),
        (Choice::Auto | Choice::Cuda, Ok(found)) => Ok(found),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Result<(Device, String)> {
    anyhow::bail!("--device cuda: this build computes on the CPU only; build with --features cuda")
}

#[cfg(feature = "cuda")]
fn gpu() -> Result<(Device, String)> {
    use macrl_models::cuda::Engine;
    let opened = Engine::open(0).and_then(|device| Ok((Engine::at(&device)?.name(), device)));
    match opened {
        Ok((name, device)) => Ok((device, format!("{name} (CUDA)"))),
        Err(why) => {
            let why = why.to_string();
            let first = why.lines().next().unwrap_or_default();
            anyhow::bail!("--device cuda: no GPU works here: {first}")
        }
    }
}
