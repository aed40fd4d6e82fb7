//! Both views of a batch, from a data set of equally large u8 images that lies on the device.

use candle_core::cuda::cudarc::driver::DeviceRepr;
use candle_core::{Result, Tensor, bail};
use macrl_nn::cuda::{Engine, Real, address, address_or_null};

use super::kernels::launch;

/// What is done to one image in one view; mirrors `Draw` in `views.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Draw {
    /// Which image of the data set.
    pub image: u32,
    /// Crop: first row, first column, rows, columns.
    pub crop: [u32; 4],
    /// Sum of 1: mirrored, 2: grey, 4: solarised.
    pub flags: u32,
    /// Count of jitter steps, then a hexadecimal digit each: 0 brightness, 1 contrast, 2 saturation, 3 hue.
    pub steps: u32,
    /// Of the blur in pixels; 0: none.
    pub radius: u32,
    /// Factor of each step (hue: turns).
    pub factors: [f32; 4],
    /// Standard deviation of the blur in pixels.
    pub sigma: f32,
    /// Room.
    pub unused: [f32; 3],
}

const _: () = assert!(size_of::<Draw>() == 64, "views.cuh says so");

/// Words of a [`Draw`].
pub const DRAW_WORDS: usize = size_of::<Draw>() / 4;

/// One branch of a batch of B images, on the device.
#[derive(Debug, Clone)]
pub struct ViewRoom {
    /// (B, [`DRAW_WORDS`]) u32
    pub draws: Tensor,
    /// (B, K) u32
    pub kept: Tensor,
    /// (B, K, P)
    pub patches: Tensor,
    /// (B, N, P), where the key branch sees all patches.
    pub whole: Option<Tensor>,
    /// (B, N, P) f32
    pub target: Tensor,
}

/// What all views share.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    /// Of the data set's images.
    pub height: usize,
    /// Of the data set's images.
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

    fn out(&self, room: &ViewRoom) -> Result<ViewOut> {
        Ok(ViewOut {
            draws: address(&room.draws)?,
            kept: address(&room.kept)?,
            patches: address(&room.patches)?,
            whole: address_or_null(room.whole.as_ref())?,
            target: address(&room.target)?,
            k: room.kept.dim(1)? as i32,
            target_view: i32::from(self.target_view),
        })
    }

    /// Makes both views of each image that the rooms' draws name.
    ///
    /// # Shapes
    /// `pixels` (n, height, width, 3) u8.
    ///
    /// # Safety
    /// The rooms' tensors have the shapes that [`ViewRoom`] says, for one B; their draws name images of `pixels` and crops
    /// within them.
    ///
    /// # Errors
    /// Views too large for a block's shared memory.
    pub unsafe fn make(&self, pixels: &Tensor, strong: &ViewRoom, weak: &ViewRoom) -> Result<()> {
        let engine = Engine::at(pixels.device())?;
        if self.shared() > engine.shared_limit {
            bail!("views of {} pixels do not fit into the GPU's shared memory", self.size)
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
        let (real, images) = (Real::of(strong.patches.dtype())?, strong.kept.dim(0)?);
        let grid = (2 * images as u32, 1);
        // SAFETY: as the caller promises.
        unsafe {
            launch!(engine, real.kernel("views"), grid, 256, self.shared(); of, self.out(strong)?, self.out(weak)?)
        }
    }
}
