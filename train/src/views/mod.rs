//! One image -> one corrupted, masked view, straight from u8 pixels into the batch.
//!
//! Geometry ([`geometry`]: crop, resize, flip) -> photometric corruption ([`color`], [`blur`]) -> mask ([`mask`]) ->
//! patches ([`patchify`]).  Everything random comes from [`random`], keyed by (seed, epoch, sample index, branch).

pub mod blur;
pub mod color;
pub mod draw;
pub mod geometry;
pub mod mask;
pub mod patchify;
pub mod random;

#[cfg(test)]
mod parity;

use image::RgbImage;
use macrl_bundle::config::{Config, KeyMask, Target, ViewConfig};

use draw::Draws;
use patchify::Patchify;
use random::{Philox, Stream};

/// One branch of a batch of B images: N patches of which K are kept, P = 3 * p * p values each.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct View {
    /// (B, K) ascending indices of the kept patches, row-major over the grid.
    pub kept: Vec<u32>,
    /// (B, K, P) normalised pixels that the encoder sees.
    pub patches: Vec<f32>,
    /// (B, N, P) the same of all patches, for the key branch; empty where that sees the kept ones.
    pub whole: Vec<f32>,
    /// (B, N, P) normalised reconstruction target: the view after its geometry (`clean`) or as the encoder sees it
    /// (`view`).
    pub target: Vec<f32>,
}

/// Both branches of one optimiser step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// (B): index of each image in the training split.
    pub indices: Vec<u32>,
    /// The strong branch, which gives the queries.
    pub strong: View,
    /// The weak branch, which gives the keys.
    pub weak: View,
}

impl View {
    /// Part `i` of `parts` equal parts.
    fn part(&self, i: usize, parts: usize) -> View {
        View {
            kept: part_of(&self.kept, i, parts),
            patches: part_of(&self.patches, i, parts),
            whole: part_of(&self.whole, i, parts),
            target: part_of(&self.target, i, parts),
        }
    }
}

impl Batch {
    /// The batch in equal parts.
    pub fn split(self, parts: usize) -> Vec<Batch> {
        if parts <= 1 {
            return vec![self];
        }
        let part = |i: usize| Batch {
            indices: part_of(&self.indices, i, parts),
            strong: self.strong.part(i, parts),
            weak: self.weak.part(i, parts),
        };
        (0..parts).map(part).collect()
    }
}

fn part_of<T: Clone>(values: &[T], i: usize, parts: usize) -> Vec<T> {
    let size = values.len() / parts;
    values[i * size..(i + 1) * size].to_vec()
}

/// Makes the views of one branch.
#[derive(Debug, Clone)]
pub struct ViewPipeline {
    config: ViewConfig,
    stream: Stream,
    seed: u64,
    patchify: Patchify,
    patches: usize,
    kept: usize,
    whole: bool,
    target: Target,
}

/// Buffers that a worker keeps from image to image.
#[derive(Default)]
pub struct Scratch {
    geometry: geometry::Scratch,
    blur: blur::Scratch,
    planes: Vec<f32>,
    order: Vec<u32>,
}

/// The slices of a [`View`] that one image's view is written to.
pub struct Slot<'a> {
    /// (K): indices of the kept patches.
    pub kept: &'a mut [u32],
    /// (K, P): the kept patches.
    pub patches: &'a mut [f32],
    /// (N, P): all patches; empty where the key branch does not need them.
    pub whole: &'a mut [f32],
    /// (N, P): the reconstruction target.
    pub target: &'a mut [f32],
}

impl ViewPipeline {
    /// The strong branch of a run.
    pub fn strong(config: &Config) -> Self {
        let keys = config.contrast.symmetric;
        ViewPipeline::new(config, &config.views.strong, Stream::Strong, keys)
    }

    /// The weak branch of a run.
    pub fn weak(config: &Config) -> Self {
        ViewPipeline::new(config, &config.views.weak, Stream::Weak, true)
    }

    /// `keys`: whether this branch's views are keys, not only queries.
    fn new(config: &Config, view: &ViewConfig, stream: Stream, keys: bool) -> Self {
        let std = config.data.std;
        let mean = config.data.mean;
        ViewPipeline {
            config: view.clone(),
            stream,
            seed: config.train.seed,
            patchify: Patchify {
                size: config.encoder.image_size,
                patch: config.encoder.patch_size,
                scale: std.map(|s| 1.0 / s),
                shift: [0, 1, 2].map(|c| -mean[c] / std[c]),
            },
            patches: config.encoder.patches(),
            kept: config.encoder.kept(view.mask_ratio),
            whole: keys && config.contrast.weight > 0.0 && config.contrast.key_mask == KeyMask::None,
            target: config.reconstruction.target,
        }
    }

    /// K, patches kept of each image.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Whether the key branch sees all patches of this branch's views.
    pub fn has_whole(&self) -> bool {
        self.whole
    }

    /// A view of `batch` images, filled with zeros.
    pub fn empty_view(&self, batch: usize) -> View {
        let values = self.patchify.values();
        View {
            kept: vec![0; batch * self.kept],
            patches: vec![0.0; batch * self.kept * values],
            whole: vec![0.0; if self.whole { batch * self.patches * values } else { 0 }],
            target: vec![0.0; batch * self.patches * values],
        }
    }

    /// The slices of `view` that belong to each image in turn.
    pub fn slots<'a>(&self, view: &'a mut View) -> Vec<Slot<'a>> {
        let values = self.patchify.values();
        let kept = view.kept.chunks_exact_mut(self.kept);
        let patches = view.patches.chunks_exact_mut(self.kept * values);
        let target = view.target.chunks_exact_mut(self.patches * values);
        let mut whole = view.whole.chunks_exact_mut(self.patches * values);
        let slot = |((kept, patches), target)| Slot { kept, patches, whole: whole.next().unwrap_or_default(), target };
        kept.zip(patches).zip(target).map(slot).collect()
    }

    /// Draws the parameters of image `index` in `epoch`, and makes its view.
    pub fn make(&self, image: &RgbImage, epoch: u64, index: u32, scratch: &mut Scratch, slot: &mut Slot) {
        let size = (image.height() as usize, image.width() as usize);
        let draws = self.draw(size, epoch, index, slot.kept, &mut scratch.order);
        self.apply(image, &draws, scratch, slot);
    }

    /// Draws the view that image `index`, of `(height, width)` pixels, has in `epoch`, and which patches it keeps.
    pub fn draw(
        &self,
        (height, width): (usize, usize),
        epoch: u64,
        index: u32,
        kept: &mut [u32],
        order: &mut Vec<u32>,
    ) -> Draws {
        let mut random = Philox::new(self.seed, epoch, index, self.stream);
        let draws = Draws::new(&self.config, height, width, &mut random);
        mask::draw(self.patches, kept, order, &mut random);
        draws
    }

    /// Size of a view, of a patch, and the normalisation.
    pub fn patchify(&self) -> &Patchify {
        &self.patchify
    }

    /// Makes a view with given parameters; `slot.kept` says which patches the encoder gets.
    pub fn apply(&self, image: &RgbImage, draws: &Draws, scratch: &mut Scratch, slot: &mut Slot) {
        let size = self.patchify.size;
        let all = 0..self.patches as u32;
        scratch.planes.resize(3 * size * size, 0.0);
        geometry::resized_crop(image, draws.crop, draws.flip, size, &mut scratch.geometry, &mut scratch.planes);
        if self.target == Target::Clean {
            self.patchify.write(&scratch.planes, all.clone(), slot.target);
        }
        corrupt(&mut scratch.planes, size, draws, &mut scratch.blur);
        if self.target == Target::View {
            self.patchify.write(&scratch.planes, all.clone(), slot.target);
        }
        if self.whole {
            self.patchify.write(&scratch.planes, all, slot.whole);
        }
        self.patchify.write(&scratch.planes, slot.kept.iter().copied(), slot.patches);
    }
}

/// The photometric steps in the order of MoCo v3 (arXiv 2104.02057): jitter, grey, blur, solarise.
pub fn corrupt(planes: &mut [f32], size: usize, draws: &Draws, scratch: &mut blur::Scratch) {
    for step in &draws.adjust {
        color::adjust(planes, *step);
    }
    if draws.gray {
        color::gray(planes);
    }
    if let Some(sigma) = draws.blur {
        blur::gaussian(planes, size, sigma, blur::radius(size), scratch);
    }
    if draws.solarize {
        color::solarize(planes);
    }
}
