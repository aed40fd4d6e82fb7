//! A step's batch: drawn or made on the host ahead of time, copied to the device in one piece.
//!
//! Where all images are equally large and fit, the data set lies on the device, only the random draws are copied, and the
//! views are made there.  Otherwise the views that the loader makes are copied.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use candle_core::{Device, Tensor};
use macrl_bundle::config::{Config, Target as TargetOf};
use macrl_bundle::tokens::TokenLayout;
use macrl_nn::cuda::{Engine, ScalarType, memory};
use macrl_nn::ops::tokens::{Kept, VisiblePatches};
use rayon::prelude::*;

use crate::batches::Batches;
use crate::cuda::views::{DRAW_WORDS, Draw, Geometry, ViewBuffers};
use crate::data::Dataset;
use crate::inputs::{Input, Inputs};
use crate::loader::Loader;
use crate::ops::contrast::KeyImages;
use crate::ops::reconstruction::Target;
use crate::views::draw::{Adjust, Draws};
use crate::views::{Batch, View, ViewPipeline, blur};

/// Words at the start of a batch: the step's numbers.
pub(super) const HEAD: usize = size_of::<crate::cuda::flat::StepNumbers>() / 4;
/// A data set may take this fraction (1 / SHARE) of the GPU's free memory.
const SHARE: usize = 4;

/// A batch as the host sends it.
pub struct HostBatch {
    /// Index of each image of the batch.
    pub indices: Vec<u32>,
    /// All words in the order of [`DeviceBatch`]; the first [`HEAD`] are filled in later.
    pub words: Vec<u32>,
}

/// The tensors of one branch, which lie in the batch's words.
#[derive(Debug, Clone)]
struct Branch {
    kept: Tensor,
    sources: Tensor,
    /// The copied views (f32 bits), where they are not made on the device.
    copied: Option<CopiedViews>,
    buffers: ViewBuffers,
    /// (B, N) u32: all patches, where the key branch sees those.
    all: Option<Tensor>,
}

#[derive(Debug, Clone)]
struct CopiedViews {
    patches: Tensor,
    whole: Option<Tensor>,
    target: Tensor,
}

/// A batch's memory on the device: one vector of words, and the tensors in it that the operators take.
pub struct DeviceBatch {
    /// (words) u32: the step's numbers, the images' indices, and both branches.
    pub words: Tensor,
    images: Tensor,
    strong: Branch,
    weak: Branch,
    part: usize,
    resident: Option<(Tensor, Geometry)>,
}

/// Sizes of a batch.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    /// Images of one part of the batch; the operators process each part by itself.
    part: usize,
    patches: usize,
    values: usize,
    resident: bool,
}

/// How many patches of a view are kept, and whether the whole view is there too.
#[derive(Debug, Clone, Copy)]
struct ViewParts {
    k: usize,
    whole: bool,
}

impl ViewParts {
    fn of(pipeline: &ViewPipeline) -> Self {
        ViewParts { k: pipeline.kept(), whole: pipeline.has_whole() }
    }
}

impl Sizes {
    /// Words of a branch: draws, kept, sources, and the views themselves where they are copied.
    fn words(&self, ViewParts { k, whole }: ViewParts) -> usize {
        let whole = if whole { self.patches } else { 0 };
        let views = if self.resident { 0 } else { (k + whole + self.patches) * self.values };
        self.batch * (DRAW_WORDS + k + TokenLayout::of_patches(self.patches).count() + views)
    }
}

/// Makes batches ahead of time.
pub struct HostBatches {
    loader: Loader<HostBatch>,
}

impl HostBatches {
    /// Starts at step `first`; gives the device's memory for a batch as well.
    ///
    /// # Errors
    /// Too few images for a batch, or out of memory.
    pub fn new(
        device: &Device,
        scalar: ScalarType,
        data: Arc<dyn Dataset>,
        config: &Config,
        first: u64,
    ) -> Result<(Self, DeviceBatch)> {
        let (strong, weak) = (ViewPipeline::strong(config), ViewPipeline::weak(config));
        let resident = resident(device, &data, config, &strong)?;
        let parts = config.train.accumulate.max(1);
        let sizes = Sizes {
            batch: config.train.batch_size,
            part: config.train.batch_size / parts,
            patches: config.encoder.patches(),
            values: config.encoder.patch_values(),
            resident: resident.is_some(),
        };
        let kept = [&strong, &weak].map(ViewParts::of);
        let image = resident.as_ref().map(|(_, g)| (g.height, g.width));
        let batch = DeviceBatch::new(device, scalar, sizes, kept, resident)?;
        let batches = Batches::new(data, config)?;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let make = move |batches: &Batches, step: u64| match image {
            Some(image) => Ok(drawn(batches, step, image, sizes, [&strong, &weak])),
            None => Ok(packed(batches.make(step)?, sizes)),
        };
        Ok((HostBatches { loader: Loader::start(batches, first, threads, make)? }, batch))
    }

    /// The next step's batch.
    ///
    /// # Errors
    /// No image can be read.
    pub fn next_batch(&mut self) -> Result<HostBatch> {
        self.loader.next()
    }

    /// Whole batches in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.loader.steps_per_epoch()
    }

    /// Time spent waiting in [`HostBatches::next_batch`].
    pub fn waited(&self) -> Duration {
        self.loader.waited()
    }

    /// Images that could not be read, and why.
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.loader.skipped()
    }
}

impl DeviceBatch {
    fn new(
        device: &Device,
        scalar: ScalarType,
        sizes: Sizes,
        parts: [ViewParts; 2],
        resident: Option<(Tensor, Geometry)>,
    ) -> Result<Self> {
        let Sizes { batch, part, .. } = sizes;
        let count = HEAD + batch + parts.map(|of| sizes.words(of)).iter().sum::<usize>();
        let words = Tensor::zeros(count, candle_core::DType::U32, device)?;
        let images = words.narrow(0, HEAD, batch)?;
        let mut at = HEAD + batch;
        let mut branch = |of: ViewParts| -> Result<Branch> {
            let branch = Branch::new(&words, at, of, sizes, scalar)?;
            at += sizes.words(of);
            Ok(branch)
        };
        let (strong, weak) = (branch(parts[0])?, branch(parts[1])?);
        Ok(DeviceBatch { images, strong, weak, words, part, resident })
    }

    /// Queues the making of the views from the draws, or the conversion of copied views.
    ///
    /// # Errors
    /// A failure of the driver.
    pub fn prepare(&self) -> Result<()> {
        if let Some((pixels, geometry)) = &self.resident {
            // SAFETY: the draws are those of images of this data set.
            unsafe { geometry.make(pixels, &self.strong.buffers, &self.weak.buffers)? };
            return Ok(());
        }
        for branch in [&self.strong, &self.weak] {
            if let Some(CopiedViews { patches, whole, target }) = &branch.copied {
                memory::land(patches, &branch.buffers.patches)?;
                if let (Some(from), Some(to)) = (whole, &branch.buffers.whole) {
                    memory::land(from, to)?;
                }
                memory::land(target, &branch.buffers.target)?;
            }
        }
        Ok(())
    }

    /// The operators' inputs, for each part of the batch.
    ///
    /// # Errors
    /// A failure of the driver.
    pub fn inputs(&self) -> Result<Vec<Inputs>> {
        let size = self.part;
        (0..self.images.elem_count() / size)
            .map(|i| {
                Ok(Inputs {
                    images: KeyImages::Device(self.images.narrow(0, i * size, size)?),
                    strong: self.strong.input(i * size, size)?,
                    weak: self.weak.input(i * size, size)?,
                })
            })
            .collect()
    }

    /// Whether the views are made on the device.
    pub fn is_resident(&self) -> bool {
        self.resident.is_some()
    }
}

impl Branch {
    fn new(
        words: &Tensor,
        mut at: usize,
        ViewParts { k, whole }: ViewParts,
        sizes: Sizes,
        scalar: ScalarType,
    ) -> Result<Self> {
        let Sizes { batch: b, patches: n, values: p, resident, .. } = sizes;
        let device = words.device();
        let mut take = |count: usize| {
            at += count;
            words.narrow(0, at - count, count)
        };
        let draws = take(b * DRAW_WORDS)?.reshape((b, DRAW_WORDS))?;
        let kept = take(b * k)?.reshape((b, k))?;
        let tokens = TokenLayout::of_patches(n).count();
        let sources = take(b * tokens)?.reshape((b, tokens))?;
        let copied = match resident {
            true => None,
            false => Some(CopiedViews {
                patches: take(b * k * p)?,
                whole: whole.then(|| take(b * n * p)).transpose()?,
                target: take(b * n * p)?,
            }),
        };
        let buffers = ViewBuffers {
            draws,
            kept: kept.clone(),
            patches: Tensor::zeros((b, k, p), scalar.dtype(), device)?,
            whole: whole.then(|| Tensor::zeros((b, n, p), scalar.dtype(), device)).transpose()?,
            target: Tensor::zeros((b, n, p), candle_core::DType::F32, device)?,
        };
        let all = (0..b).flat_map(|_| 0..n as u32).collect::<Vec<_>>();
        let all = whole.then(|| Tensor::from_vec(all, (b, n), device)).transpose()?;
        Ok(Branch { kept, sources, copied, buffers, all })
    }

    fn input(&self, first: usize, count: usize) -> Result<Input> {
        let part = |tensor: &Tensor| tensor.narrow(0, first, count);
        let kept = Kept::Device { kept: part(&self.kept)?, sources: part(&self.sources)? };
        let seen = VisiblePatches { patches: part(&self.buffers.patches)?, kept };
        let whole = match (&self.buffers.whole, &self.all) {
            (Some(whole), Some(all)) => {
                let kept = part(all)?;
                // Whole views have no decoder, so the sources are not read.
                let kept = Kept::Device { sources: kept.clone(), kept };
                Some(VisiblePatches { patches: part(whole)?, kept })
            }
            _ => None,
        };
        Ok(Input { seen, whole, target: Target::Device(part(&self.buffers.target)?) })
    }
}

/// The data set on the device, where all its images are equally large, readable, and fit.
fn resident(
    device: &Device,
    data: &Arc<dyn Dataset>,
    config: &Config,
    pipeline: &ViewPipeline,
) -> Result<Option<(Tensor, Geometry)>> {
    let engine = Engine::at(device)?;
    let Ok(first) = data.image(0) else { return Ok(None) };
    let (width, height) = first.dimensions();
    let patchify = pipeline.patchify();
    let geometry = Geometry {
        height: height as usize,
        width: width as usize,
        size: patchify.size,
        patch: patchify.patch,
        scale: patchify.scale,
        shift: patchify.shift,
        target_view: config.reconstruction.target == TargetOf::View,
    };
    let each = geometry.height * geometry.width * 3;
    let memory = engine.stream.context().mem_get_info()?.0;
    if geometry.shared() > engine.shared_limit || data.len().saturating_mul(each) > memory / SHARE {
        return Ok(None);
    }
    let mut pixels = vec![0u8; data.len() * each];
    let equal = pixels.par_chunks_mut(each).enumerate().all(|(i, out)| match data.image(i) {
        Ok(image) if image.dimensions() == (width, height) => {
            out.copy_from_slice(image.as_raw());
            true
        }
        _ => false,
    });
    if !equal {
        return Ok(None);
    }
    let shape = (data.len(), geometry.height, geometry.width, 3);
    Ok(Some((Tensor::from_vec(pixels, shape, device)?, geometry)))
}

/// The random draws of a step, for images that lie on the device.
fn drawn(
    batches: &Batches,
    step: u64,
    image: (usize, usize),
    sizes: Sizes,
    pipelines: [&ViewPipeline; 2],
) -> HostBatch {
    let epoch = step / batches.steps_per_epoch();
    let indices = batches.indices(step);
    let mut words = head(&indices, sizes, pipelines.map(ViewParts::of));
    let mut rest = &mut words[HEAD + sizes.batch..];
    for pipeline in pipelines {
        let k = pipeline.kept();
        let (branch, behind) = rest.split_at_mut(sizes.words(ViewParts::of(pipeline)));
        let (draws, branch) = branch.split_at_mut(sizes.batch * DRAW_WORDS);
        let (kept, sources) = branch.split_at_mut(sizes.batch * k);
        let rows = draws
            .par_chunks_exact_mut(DRAW_WORDS)
            .zip(kept.par_chunks_exact_mut(k))
            .zip(sources.par_chunks_exact_mut(TokenLayout::of_patches(sizes.patches).count()));
        rows.zip(&indices).enumerate().for_each_init(Vec::new, |order, (i, (((draw, kept), sources), index))| {
            let drawn = pipeline.draw(image, epoch, *index, kept, order);
            draw.copy_from_slice(bytemuck::cast_slice(&[record(*index, &drawn, pipeline.patchify().size)]));
            TokenLayout::of_patches(k).sources(kept, i % sizes.part, sources);
        });
        rest = behind;
    }
    HostBatch { indices, words }
}

/// A batch whose views the CPU has made.
fn packed(batch: Batch, sizes: Sizes) -> HostBatch {
    let Batch { indices, strong, weak } = batch;
    let parts = |view: &View| ViewParts { k: view.kept.len() / sizes.batch, whole: !view.whole.is_empty() };
    let mut words = head(&indices, sizes, [parts(&strong), parts(&weak)]);
    let mut rest = &mut words[HEAD + sizes.batch..];
    for view in [&strong, &weak] {
        let k = parts(view).k;
        let (branch, behind) = rest.split_at_mut(sizes.words(parts(view)));
        let (_, branch) = branch.split_at_mut(sizes.batch * DRAW_WORDS);
        let (kept, branch) = branch.split_at_mut(sizes.batch * k);
        let tokens = TokenLayout::of_patches(sizes.patches).count();
        let (sources, branch) = branch.split_at_mut(sizes.batch * tokens);
        kept.copy_from_slice(&view.kept);
        for (i, (kept, sources)) in kept.chunks_exact(k).zip(sources.chunks_exact_mut(tokens)).enumerate() {
            TokenLayout::of_patches(k).sources(kept, i % sizes.part, sources);
        }
        let values = view.patches.iter().chain(&view.whole).chain(&view.target);
        branch.iter_mut().zip(values).for_each(|(word, value)| *word = value.to_bits());
        rest = behind;
    }
    HostBatch { indices, words }
}

fn head(indices: &[u32], sizes: Sizes, parts: [ViewParts; 2]) -> Vec<u32> {
    let mut words = vec![0; HEAD + sizes.batch + parts.map(|of| sizes.words(of)).iter().sum::<usize>()];
    words[HEAD..HEAD + sizes.batch].copy_from_slice(indices);
    words
}

/// One view's draws as the kernel reads them.
pub(super) fn record(image: u32, draws: &Draws, size: usize) -> Draw {
    let crop = [draws.crop.top, draws.crop.left, draws.crop.height, draws.crop.width].map(|v| v as u32);
    let flags = u32::from(draws.flip) | u32::from(draws.gray) << 1 | u32::from(draws.solarize) << 2;
    let (mut steps, mut factors) = (draws.adjust.len() as u32, [0f32; 4]);
    for (i, step) in draws.adjust.iter().enumerate() {
        let (kind, factor) = match *step {
            Adjust::Brightness(factor) => (0, factor),
            Adjust::Contrast(factor) => (1, factor),
            Adjust::Saturation(factor) => (2, factor),
            Adjust::Hue(turns) => (3, turns),
        };
        steps |= kind << (4 + 4 * i);
        factors[i] = factor;
    }
    let sigma = draws.blur.unwrap_or_default();
    let radius = if sigma > 0.0 { blur::reach(size, sigma, blur::radius(size)) as u32 } else { 0 };
    Draw { image, crop, flags, steps, radius, factors, sigma, unused: [0.0; 3] }
}
