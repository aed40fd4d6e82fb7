//! Opens the device that `--device` of training and export names.  (The server's device is ONNX Runtime's.)

use candle_core::Device;
use macrl_bundle::device::{Device as Choice, UnknownDevice};

/// A GPU was requested, but none can be used.
#[derive(Debug, thiserror::Error)]
#[error("--device cuda: {0}")]
pub struct NoGpu(String);

/// Opens the device; also returns its name, which shows what `auto` chose.
///
/// # Errors
/// `cuda` was requested, and this build has no GPU operators or no GPU works; the message is one line.
pub fn open(choice: Choice) -> Result<(Device, String), NoGpu> {
    let cpu = || Ok((Device::Cpu, "CPU".to_string()));
    match choice {
        Choice::Cpu => cpu(),
        Choice::Cuda => gpu(),
        Choice::Auto => gpu().or_else(|_| cpu()),
    }
}

/// Parses a device choice from a command line.
///
/// # Errors
/// A message that names the unknown word.
pub fn parse(text: &str) -> Result<Choice, String> {
    text.parse().map_err(|error: UnknownDevice| error.to_string())
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Result<(Device, String), NoGpu> {
    Err(NoGpu("this build computes on the CPU only; build with --features cuda".into()))
}

#[cfg(feature = "cuda")]
fn gpu() -> Result<(Device, String), NoGpu> {
    use crate::cuda::Engine;
    let opened = Engine::open(0).and_then(|device| Ok((Engine::at(&device)?.name(), device)));
    match opened {
        Ok((name, device)) => Ok((device, format!("{name} (CUDA)"))),
        Err(why) => {
            let why = why.to_string();
            Err(NoGpu(format!("no GPU works here: {}", why.lines().next().unwrap_or_default())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_falls_back_and_cpu_is_cpu() {
        assert!(open(Choice::Cpu).unwrap().0.is_cpu());
        #[cfg(not(feature = "cuda"))]
        {
            assert!(open(Choice::Auto).unwrap().0.is_cpu());
            let message = open(Choice::Cuda).unwrap_err().to_string();
            assert!(message.contains("--features cuda") && !message.contains('\n'), "{message}");
        }
        assert!(parse("gpu").unwrap_err().contains("auto, cpu or cuda"));
    }
}
