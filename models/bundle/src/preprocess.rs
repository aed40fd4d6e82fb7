//! The one evaluation transform: an image -> S x S pixels -> normalised floats.  Training, evaluation, export and
//! serving all call this file; `preprocessor_config.json` says the same in Hugging Face's vocabulary.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Fit};

/// How an image becomes the encoder's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// S, edge of the result in pixels.
    pub image_size: usize,
    /// How an image is brought to S x S.
    pub fit: Fit,
    /// Per-channel mean of pixels in [0, 1].
    pub mean: [f32; 3],
    /// Per-channel standard deviation of pixels in [0, 1].
    pub std: [f32; 3],
}

impl Preprocess {
    /// The transform that a run was evaluated with.
    pub fn from_config(config: &Config) -> Self {
        Self {
            image_size: config.encoder.image_size,
            fit: config.data.fit,
            mean: config.data.mean,
            std: config.data.std,
        }
    }

    /// Brings an image to S x S as [`Fit`] says.
    ///
    /// The resize is Pillow's `BICUBIC` (antialiased, a = -0.5), within one grey level; shortest edge to S, longest to
    /// `floor(S * longest / shortest)`, then the centre square from `floor((edge - S) / 2)`.  Padding puts the image
    /// at `ceil((S - edge) / 2)`.  Both offsets are those of Hugging Face's `center_crop`.
    ///
    /// # Shapes
    /// (h, w, 3) -> (S, S, 3), u8; an image without pixels becomes black.
    pub fn fit(&self, image: &RgbImage) -> RgbImage {
        let size = self.image_size as u32;
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return RgbImage::new(size, size);
        }
        if self.fit == Fit::Pad && width <= size && height <= size {
            return pad(image, size);
        }
        if (width, height) == (size, size) {
            return image.clone();
        }
        resize_and_crop(image, size)
    }

    /// u8 pixels -> the encoder's input: `(x / 255 - mean) / std`.
    ///
    /// # Shapes
    /// `rgb` (S, S, 3) interleaved, as [`Preprocess::fit`] gives -> `out` (3, S, S), planes R, G, B.  Reads and writes
    /// as many pixels as both have room for.
    pub fn normalize(&self, rgb: &[u8], out: &mut [f32]) {
        let plane = (rgb.len() / 3).min(out.len() / 3);
        if plane == 0 {
            return;
        }
        for (channel, values) in out.chunks_exact_mut(plane).take(3).enumerate() {
            let scale = 1.0 / (255.0 * self.std[channel]);
            let shift = -self.mean[channel] / self.std[channel];
            for (value, pixel) in values.iter_mut().zip(rgb.chunks_exact(3)) {
                *value = f32::from(pixel[channel]) * scale + shift;
            }
        }
    }

    /// Number of floats that [`Preprocess::normalize`] writes for one image: 3 * S * S.
    pub fn values(&self) -> usize {
        3 * self.image_size * self.image_size
    }

    /// The file's content in Hugging Face's vocabulary.
    ///
    /// Padding is `center_crop` of an image that is not resized: it fills up with black where the image is smaller than
    /// the crop.  (A larger image is resized here; Hugging Face's own class would crop it, hence `do_pad` beside.)
    pub fn to_hugging_face(&self) -> PreprocessorConfig {
        let (size, pad) = (self.image_size, self.fit == Fit::Pad);
        PreprocessorConfig {
            image_processor_type: "ViTImageProcessor".into(),
            do_convert_rgb: true,
            do_resize: !pad,
            size: ShortestEdge { shortest_edge: size },
            resample: BICUBIC,
            do_center_crop: true,
            crop_size: HeightWidth { height: size, width: size },
            do_pad: pad,
            pad_size: pad.then_some(HeightWidth { height: size, width: size }),
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: self.mean,
            image_std: self.std,
        }
    }

    /// Reads what [`Preprocess::to_hugging_face`] wrote.
    ///
    /// # Errors
    /// One sentence that says which entry describes a transform that this file cannot do.
    pub fn from_hugging_face(config: &PreprocessorConfig) -> Result<Self, String> {
        let size = config.size.shortest_edge;
        let square = HeightWidth { height: size, width: size };
        let expect = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_string()) };
        expect((1..=4096).contains(&size), &format!("size.shortest_edge must be in 1..=4096, found {size}"))?;
        expect(config.resample == BICUBIC, &format!("resample must be 3 (bicubic), found {}", config.resample))?;
        expect(config.do_center_crop && config.crop_size == square, "crop_size must be the square of size")?;
        expect(config.do_resize != config.do_pad, "exactly one of do_resize and do_pad must be true")?;
        expect(!config.do_pad || config.pad_size == Some(square), "pad_size must be the square of size")?;
        let rescaled = config.do_rescale && (config.rescale_factor * 255.0 - 1.0).abs() < 1e-6;
        expect(rescaled, "do_rescale must be true with rescale_factor 1/255")?;
        expect(config.do_normalize, "do_normalize must be true")?;
        let sane = config.image_std.iter().all(|s| s.is_finite() && *s > 0.0)
            && config.image_mean.iter().all(|m| m.is_finite());
        expect(sane, "image_mean must be finite and image_std above 0")?;
        let fit = if config.do_pad { Fit::Pad } else { Fit::Resize };
        Ok(Self { image_size: size, fit, mean: config.image_mean, std: config.image_std })
    }
}

/// `PIL.Image.Resampling.BICUBIC`.
const BICUBIC: u32 = 3;

/// `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are Hugging Face's")]
pub struct PreprocessorConfig {
    pub image_processor_type: String,
    pub do_convert_rgb: bool,
    pub do_resize: bool,
    pub size: ShortestEdge,
    pub resample: u32,
    pub do_center_crop: bool,
    pub crop_size: HeightWidth,
    pub do_pad: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_size: Option<HeightWidth>,
    pub do_rescale: bool,
    pub rescale_factor: f64,
    pub do_normalize: bool,
    pub image_mean: [f32; 3],
    pub image_std: [f32; 3],
}

/// A size by its shortest edge, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShortestEdge {
    /// Pixels.
    pub shortest_edge: usize,
}

/// A size by both edges, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeightWidth {
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
}

/// Centres an image that is no larger than S x S on black.
fn pad(image: &RgbImage, size: u32) -> RgbImage {
    let mut out = RgbImage::new(size, size);
    let (width, height) = image.dimensions();
    let left = (size - width).div_ceil(2) as usize;
    let top = (size - height).div_ceil(2) as usize;
    let row = width as usize * 3;
    for (y, source) in image.as_raw().chunks_exact(row).enumerate() {
        let start = ((top + y) * size as usize + left) * 3;
        out.as_mut()[start..start + row].copy_from_slice(source);
    }
    out
}

/// The part of one axis that the result is made of, in source pixels: (start, length).
fn window(edge: u32, shortest: u32, size: u32) -> (f64, f64) {
    let resized = u64::from(size) * u64::from(edge) / u64::from(shortest);
    let cut = resized - u64::from(size);
    if cut == 0 {
        return (0.0, f64::from(edge));
    }
    let scale = f64::from(edge) / resized as f64;
    ((cut / 2) as f64 * scale, f64::from(size) * scale)
}

/// Shortest edge to S and centre square.  Only the pixels of the result are computed, so that a strip of
/// 1 x 60,000 pixels costs no more than a square.
///
/// Columns first, then rows, rounding to u8 between: Pillow's order, which shows where the cubic overshoots.
fn resize_and_crop(image: &RgbImage, size: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let shortest = width.min(height);
    let (left, across) = window(width, shortest, size);
    let (top, down) = window(height, shortest, size);
    // The cubic reaches two (scaled) pixels beyond the window; rows further away do not matter.
    let reach = 2.0 * (down / f64::from(size)).max(1.0) + 1.0;
    let first = (top - reach).floor().max(0.0);
    let last = (top + down + reach).ceil().min(f64::from(height));
    let narrow = convolve(image, (size, (last - first) as u32), [left, first, across, last - first]);
    convolve(&narrow, (size, size), [0.0, top - first, f64::from(size), down])
}

/// Resizes the box [left, top, width, height] of an image; an axis whose length stays is copied.
fn convolve(image: &RgbImage, (width, height): (u32, u32), [left, top, across, down]: [f64; 4]) -> RgbImage {
    let options = ResizeOptions::new()
        // Catmull-Rom is the cubic with a = -0.5: Pillow's BICUBIC.
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .crop(left, top, across, down);
    let mut values = vec![0u8; 3 * width as usize * height as usize];
    // The typed call compiles the convolution for this pixel type alone; the untyped one for all of them.
    let resized = TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.as_raw())
        .and_then(|source| TypedImage::<U8x3>::from_buffer(width, height, &mut values).map(|out| (source, out)))
        .map_err(|e| e.to_string())
        .and_then(|(source, mut out)| {
            Resizer::new().resize_typed(&source, &mut out, &options).map_err(|e| e.to_string())
        });
    // Both can only fail on a box outside of the image or a buffer of the wrong length, which neither is.
    debug_assert!(resized.is_ok(), "{resized:?}");
    RgbImage::from_raw(width, height, values).unwrap_or_else(|| RgbImage::new(width, height))
}
