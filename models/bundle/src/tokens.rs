//! The order of an image's tokens.

use std::ops::Range;

/// Number of tokens before the patch tokens: the class token.  `PREFIX` in `common.cuh` must have the same value.
pub const PREFIX: usize = 1;

/// Token layout of an image: `prefix` tokens that represent no patch, then one token per patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenLayout {
    /// Number of tokens before the patch tokens.
    pub prefix: usize,
    /// Number of patches: N of a whole image, K of a masked one.
    pub patches: usize,
}

impl TokenLayout {
    /// The layout of an image with this many patches.
    pub const fn of_patches(patches: usize) -> Self {
        Self { prefix: PREFIX, patches }
    }

    /// The layout of an image with this many tokens.
    pub const fn of_tokens(tokens: usize) -> Self {
        Self { prefix: PREFIX, patches: tokens.saturating_sub(PREFIX) }
    }

    /// T, the number of all tokens.
    pub const fn count(self) -> usize {
        self.prefix + self.patches
    }

    /// Index of a patch's token.
    pub const fn of_patch(self, patch: usize) -> usize {
        self.prefix + patch
    }

    /// Indexes of all patch tokens.
    pub const fn patch_tokens(self) -> Range<usize> {
        self.prefix..self.prefix + self.patches
    }

    /// Writes the source of each decoder token of image `image`: the row of its encoded token, counted over all images
    /// of the batch, or `u32::MAX` if the patch was removed.  `self` is the encoded image's layout, `kept` its patches.
    pub fn sources(self, kept: &[u32], image: usize, sources: &mut [u32]) {
        let first = image * self.count();
        sources.fill(u32::MAX);
        sources.iter_mut().zip(first..).take(self.prefix).for_each(|(source, row)| *source = row as u32);
        for (i, patch) in kept.iter().enumerate() {
            sources[self.of_patch(*patch as usize)] = (first + self.of_patch(i)) as u32;
        }
    }
}
