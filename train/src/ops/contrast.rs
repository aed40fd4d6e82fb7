//! The contrastive loss on whichever device the features are: InfoNCE of queries and keys.

use candle_core::{Device, Result, Tensor, bail};
use macrl_nn::ops::graph::with_values;

use super::info_nce::{self, Contrast, ContrastSettings, Keys};
#[cfg(feature = "cuda")]
use crate::cuda;

/// The image that each key of a batch belongs to.
#[derive(Debug, Clone)]
pub enum KeyImages {
    /// (B), on the CPU.
    Host(Vec<u32>),
    /// (B) u32, on a GPU.
    Device(Tensor),
}

/// The keys of past steps.
#[derive(Debug, Clone, Copy)]
pub enum PastKeys<'a> {
    /// On the CPU: the keys (M, C), and the image of each (M).
    Host(&'a [f32], &'a [u32]),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Device(&'a cuda::bank::DeviceBank),
}

/// `weight` times InfoNCE of L2-normalised queries and their keys, a scalar; and (3): the loss, the mean cosine of a query and
/// its key, and the mean cosine of a query and its negatives.  Keys get no gradient.
///
/// # Shapes
/// `queries` and `keys` (B, C).
///
/// # Errors
/// Shapes that do not fit.
pub fn contrast(
    queries: &Tensor,
    keys: &Tensor,
    images: &KeyImages,
    past: PastKeys,
    settings: ContrastSettings,
) -> Result<(Tensor, Tensor)> {
    match (images, past) {
        (KeyImages::Host(images), PastKeys::Host(bank, bank_images)) => {
            let compared = |positives: &[f32]| {
                let keys = Keys {
                    positives,
                    images,
                    bank,
                    bank_images,
                    width: queries.dim(1)?,
                    temperature: settings.temperature as f32,
                    batch_negatives: settings.batch_negatives,
                };
                info_nce::contrast(queries, keys)
            };
            let (loss, Contrast { loss: value, positive, negative }) = with_values(keys, compared)?;
            Ok(((loss * settings.weight)?, Tensor::new(&[value, positive, negative], &Device::Cpu)?))
        }
        #[cfg(feature = "cuda")]
        (KeyImages::Device(images), PastKeys::Device(bank)) => {
            cuda::info_nce::contrast(queries, keys, images, bank, settings)
        }
        _ => bail!("contrast: queries, images and bank are on different devices"),
    }
}
