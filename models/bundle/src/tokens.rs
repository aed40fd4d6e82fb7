//! How an image's tokens lie behind each other.

use std::ops::Range;

/// Tokens in front of the patches' own: the class token.  `PREFIX` in `common.cuh` says the same to the GPU's kernels.
pub const PREFIX: usize = 1;

/// `prefix` tokens that stand for no patch, then one for each patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenLayout {
    /// Tokens in front.
    pub prefix: usize,
    /// Patches: N of a whole image, K of a masked one.
    pub patches: usize,
}

impl TokenLayout {
    /// Of an image with so many patches.
    pub const fn of_patches(patches: usize) -> Self {
        Self { prefix: PREFIX, patches }
    }

    /// Of an image with so many tokens.
    pub const fn of_tokens(tokens: usize) -> Self {
        Self { prefix: PREFIX, patches: tokens.saturating_sub(PREFIX) }
    }

    /// T, all tokens.
    pub const fn count(self) -> usize {
        self.prefix + self.patches
    }

    /// The token of a patch.
    pub const fn of_patch(self, patch: usize) -> usize {
        self.prefix + patch
    }

    /// The patches' tokens.
    pub const fn patch_tokens(self) -> Range<usize> {
        self.prefix..self.prefix + self.patches
    }

    /// Says for each of the decoder's tokens of image `image` which encoded token it comes from, counted over the batch's
    /// images; `self` is the encoded image's layout, `kept` its patches.  `sources` is `u32::MAX` where a patch was removed.
    pub fn sources(self, kept: &[u32], image: usize, sources: &mut [u32]) {
        let first = image * self.count();
        sources.fill(u32::MAX);
        sources.iter_mut().zip(first..).take(self.prefix).for_each(|(source, row)| *source = row as u32);
        for (i, patch) in kept.iter().enumerate() {
            sources[self.of_patch(*patch as usize)] = (first + self.of_patch(i)) as u32;
        }
    }
}
