//! The values of `--device`.

use std::str::FromStr;

/// The device that a network computes on.
///
/// ```
/// use macrl_bundle::Device;
///
/// assert_eq!("cuda".parse(), Ok(Device::Cuda));
/// assert!("gpu".parse::<Device>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// CUDA if it is available and works, else the CPU.
    #[default]
    Auto,
    /// Always the CPU.
    Cpu,
    /// The first CUDA device; an error if there is none.
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

/// A device name other than `auto`, `cpu` and `cuda`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device must be auto, cpu or cuda, found `{0}`")]
pub struct UnknownDevice(pub String);
