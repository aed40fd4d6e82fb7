//! `--device`: where a network computes, as a word.

use std::str::FromStr;

/// Where a network computes.
///
/// ```
/// use macrl_bundle::Device;
///
/// assert_eq!("cuda".parse(), Ok(Device::Cuda));
/// assert!("gpu".parse::<Device>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// CUDA where there is one and it works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device; not to be had is an error.
    Cuda,
}

impl FromStr for Device {
    type Err = UnknownDevice;
    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            other => Err(UnknownDevice(other.into())),
        }
    }
}

/// A device name that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device must be auto, cpu or cuda, found `{0}`")]
pub struct UnknownDevice(pub String);
