//! Makes both views of a batch on a GPU, from a data set of equally large u8 images in its memory.

use bytemuck::{Pod, Zeroable};
use candle_core::cuda::cudarc::driver::DeviceRepr;
use candle_core::{DType, Result, Tensor, bail};
use macrl_nn::cuda::{Engine, ScalarType, address, address_or_null};

use super::kernels::launch;

/// The random parameters of one image's view; mirrors `Draw` in `views.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
pub struct Draw {
    /// Index of the image in the data set.
    pub image: u32,
    /// Crop: first row, first column, rows, columns.
    pub crop: [u32; 4],
    /// Sum of 1: mirrored, 2: grey, 4: solarised.
    pub flags: u32,
    /// Number of jitter steps, then a hexadecimal digit for each: 0 brightness, 1 contrast, 2 saturation, 3 hue.
    pub steps: u32,
    /// Radius of the blur in pixels; 0: no blur.
    pub radius: u32,
    /// Factor of each step (hue: turns).
    pub factors: [f32; 4],
    /// Standard deviation of the blur in pixels.
    pub sigma: f32,
    /// Fills the structure up to the size that the kernel reads.
    pub unused: [f32; 3],
}

const _: () = assert!(size_of::<Draw>() == 64, "views.cuh says so");

/// Words of a [`Draw`].
pub const DRAW_WORDS: usize = size_of::<Draw>() / 4;

/// The memory of one branch of a batch of B images.
#[derive(Debug, Clone)]
pub struct ViewBuffers {
    /// (B, [`DRAW_WORDS`]) u32: a [`Draw`] for each image.
    pub draws: Tensor,
    /// (B, K) u32: indices of the kept patches.
    pub kept: Tensor,
    /// (B, K, P): the kept patches, written by [`Geometry::make`].
    pub patches: Tensor,
    /// (B, N, P): all patches, where the key branch encodes whole views.
    pub whole: Option<Tensor>,
    /// (B, N, P) f32: the reconstruction target.
    pub target: Tensor,
}

/// Sizes and normalisation, the same for all views.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    /// Height of the data set's images.
    pub height: usize,
    /// Width of the data set's images.
    pub width: usize,
    /// S, edge of a view.
    pub size: usize,
    /// Edge of a patch.
    pub patch: usize,
    /// 1 / std per channel.
    pub scale: [f32; 3],
    /// -mean / std per channel.
    pub shift: [f32; 3],
    /// Whether targets are taken after the corruption instead of before it.
    pub target_view: bool,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ViewsOf {
    pixels: u64,
    height: i32,
    width: i32,
    size: i32,
    patch: i32,
    scale: [f32; 3],
    shift: [f32; 3],
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ViewOut {
    draws: u64,
    kept: u64,
    patches: u64,
    whole: u64,
    target: u64,
    k: i32,
    target_view: i32,
}

// SAFETY: plain numbers and addresses in C's order.
unsafe impl DeviceRepr for ViewsOf {}
// SAFETY: plain numbers and addresses in C's order.
unsafe impl DeviceRepr for ViewOut {}

impl Geometry {
    /// Shared memory of a block in bytes.
    pub fn shared(&self) -> usize {
        4 * (4 * self.size * self.size + 64)
    }

    fn out(&self, buffers: &ViewBuffers) -> Result<ViewOut> {
        let (b, k) = buffers.kept.dims2()?;
        let (n, p) = ((self.size / self.patch).pow(2), 3 * self.patch * self.patch);
        let whole = buffers.whole.as_ref().is_none_or(|whole| whole.dims() == [b, n, p]);
        let fits = buffers.draws.dims() == [b, DRAW_WORDS] && buffers.patches.dims() == [b, k, p];
        if !(fits && whole && buffers.target.dims() == [b, n, p]) {
            bail!("views of {b} images do not fit their buffers: {n} patches of {p} values, {k} of them kept")
        }
        Ok(ViewOut {
            draws: address(&buffers.draws)?,
            kept: address(&buffers.kept)?,
            patches: address(&buffers.patches)?,
            whole: address_or_null(buffers.whole.as_ref())?,
            target: address(&buffers.target)?,
            k: buffers.kept.dim(1)? as i32,
            target_view: i32::from(self.target_view),
        })
    }

    /// Makes both views of each image of the batch.
    ///
    /// # Shapes
    /// `pixels` (n, height, width, 3) u8.
    ///
    /// # Safety
    /// The draws name images of `pixels` and crops within them; kept patches are below N.
    ///
    /// # Errors
    /// Buffers of other shapes, or views too large for a block's shared memory.
    pub unsafe fn make(&self, pixels: &Tensor, strong: &ViewBuffers, weak: &ViewBuffers) -> Result<()> {
        let engine = Engine::at(pixels.device())?;
        if self.shared() > engine.shared_limit {
            bail!("views of {} pixels do not fit into the GPU's shared memory", self.size)
        }
        if pixels.dtype() != DType::U8 || pixels.dims()[1..] != [self.height, self.width, 3] {
            bail!("expected u8 images of {} x {} pixels, found {:?}", self.height, self.width, pixels.shape())
        }
        let of = ViewsOf {
            pixels: address(pixels)?,
            height: self.height as i32,
            width: self.width as i32,
            size: self.size as i32,
            patch: self.patch as i32,
            scale: self.scale,
            shift: self.shift,
        };
        let (scalar, images) = (ScalarType::of(strong.patches.dtype())?, strong.kept.dim(0)?);
        let grid = (2 * images as u32, 1);
        // SAFETY: as the caller promises.
        unsafe {
            launch!(engine, scalar.kernel("views"), grid, 256, self.shared(); of, self.out(strong)?, self.out(weak)?)
        }
    }
}
