//! The evaluation transform: image -> S x S pixels -> normalised floats.  Training, evaluation, export and serving all
//! use it; `preprocessor_config.json` describes it in Hugging Face's vocabulary.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Fit};

/// Parameters of the transform from an image to the encoder's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// S, height and width of the result in pixels.
    pub image_size: usize,
    /// How an image is resized to S x S.
    pub fit: Fit,
    /// Per-channel mean of pixels in [0, 1].
    pub mean: [f32; 3],
    /// Per-channel standard deviation of pixels in [0, 1].
    pub std: [f32; 3],
    /// Whether large JPEGs may be decoded at a part of their size.
    pub jpeg_decoding: JpegDecoding,
}

/// How JPEGs are decoded that are more than twice as large as needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JpegDecoding {
    /// At 1/2, 1/4 or 1/8 of their size, then resized: many times as fast.
    #[default]
    Scaled,
    /// At their full size, then resized.
    Exact,
}

/// Edges' ratio of a decoded image to the result: what scaled decoding rounds, resizing by this much averages away.
const MARGIN: u32 = 2;
/// Pixels of an edge that stay in any case: what is shown of an image needs them.
const SHOWN: u32 = 96;

impl Preprocess {
    /// The evaluation transform of a run.
    pub fn from_config(config: &Config) -> Self {
        Self {
            image_size: config.encoder.image_size,
            fit: config.data.fit,
            mean: config.data.mean,
            std: config.data.std,
            jpeg_decoding: if config.data.exact_decoding { JpegDecoding::Exact } else { JpegDecoding::Scaled },
        }
    }

    /// Pixels that the shorter edge of a decoded image must keep, for [`crate::decode::decode_to`].
    pub fn shortest(&self) -> Option<u32> {
        let edge = (MARGIN * self.image_size as u32).max(SHOWN);
        (self.jpeg_decoding == JpegDecoding::Scaled).then_some(edge)
    }

    /// Resizes an image to S x S by the rule of [`Fit`].
    ///
    /// The resize is Pillow's `BICUBIC` (antialiased, a = -0.5), within one grey level.  The shortest edge becomes S,
    /// the longest `floor(S * longest / shortest)`; then the centre square is cut out from `floor((edge - S) / 2)`.
    /// Padding puts the image at `ceil((S - edge) / 2)`.  Both offsets are those of Hugging Face's `center_crop`.
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
    /// `rgb` (S, S, 3) interleaved, the result of [`Preprocess::fit`] -> `out` (3, S, S), planes R, G, B.  If one slice
    /// is shorter, only the pixels that both can hold are processed.
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

    /// The content of `preprocessor_config.json`.
    ///
    /// Padding is written as `center_crop` without a resize: it pads an image that is smaller than the crop with black.
    /// (A larger image is resized here, but Hugging Face's class would crop it; `do_pad` marks the difference.)
    pub fn to_hugging_face(&self) -> PreprocessorConfig {
        let (size, pad) = (self.image_size, self.fit == Fit::Pad);
        PreprocessorConfig {
            image_processor_type: "BitImageProcessor".into(),
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
            jpeg_decoding: self.jpeg_decoding,
        }
    }

    /// The transform that a `preprocessor_config.json` describes.
    ///
    /// # Errors
    /// One sentence that names the entry that this implementation does not support.
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
        Ok(Self {
            image_size: size,
            fit,
            mean: config.image_mean,
            std: config.image_std,
            jpeg_decoding: config.jpeg_decoding,
        })
    }
}

/// `PIL.Image.Resampling.BICUBIC`, the only supported value of `resample`.
const BICUBIC: u32 = 3;

/// The content of `preprocessor_config.json`.
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
    #[serde(default)]
    pub jpeg_decoding: JpegDecoding,
}

/// A size by its shortest edge, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShortestEdge {
    /// Length of the shorter edge in pixels.
    pub shortest_edge: usize,
}

/// A size by both edges, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeightWidth {
    /// In pixels; macrl writes squares only.
    pub height: usize,
    /// In pixels; equal to `height`.
    pub width: usize,
}

/// Centres an image of at most S x S on a black square.
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

/// The part of one axis that is visible in the result, in source pixels: (start, length).
fn window(edge: u32, shortest: u32, size: u32) -> (f64, f64) {
    let resized = u64::from(size) * u64::from(edge) / u64::from(shortest);
    let cut = resized - u64::from(size);
    if cut == 0 {
        return (0.0, f64::from(edge));
    }
    let scale = f64::from(edge) / resized as f64;
    ((cut / 2) as f64 * scale, f64::from(size) * scale)
}

/// Resizes the shortest edge to S and crops to the centre square.  Only the pixels of the result are computed, so a
/// strip of 1 x 60,000 pixels costs no more than a square.
///
/// Columns first, then rows, with rounding to u8 in between: Pillow's order.  It matters where the cubic overshoots.
fn resize_and_crop(image: &RgbImage, size: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let shortest = width.min(height);
    let (left, across) = window(width, shortest, size);
    let (top, down) = window(height, shortest, size);
    // The cubic kernel reaches two (scaled) pixels beyond the window; rows further away have no influence.
    let reach = 2.0 * (down / f64::from(size)).max(1.0) + 1.0;
    let first = (top - reach).floor().max(0.0);
    let last = (top + down + reach).ceil().min(f64::from(height));
    let narrow = convolve(image, (size, (last - first) as u32), [left, first, across, last - first]);
    convolve(&narrow, (size, size), [0.0, top - first, f64::from(size), down])
}

/// Resizes the box [left, top, width, height] of an image; an axis whose length does not change is copied.
fn convolve(image: &RgbImage, (width, height): (u32, u32), [left, top, across, down]: [f64; 4]) -> RgbImage {
    let options = ResizeOptions::new()
        // Catmull-Rom is the cubic with a = -0.5: Pillow's BICUBIC.
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .crop(left, top, across, down);
    let mut values = vec![0u8; 3 * width as usize * height as usize];
    // The typed call compiles the convolution for this pixel type only, the untyped call for all types.
    let resized = TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.as_raw())
        .and_then(|source| TypedImage::<U8x3>::from_buffer(width, height, &mut values).map(|out| (source, out)))
        .map_err(|e| e.to_string())
        .and_then(|(source, mut out)| {
            Resizer::new().resize_typed(&source, &mut out, &options).map_err(|e| e.to_string())
        });
    // Both calls fail only for a box outside of the image or a buffer of the wrong length; neither happens here.
    debug_assert!(resized.is_ok(), "{resized:?}");
    RgbImage::from_raw(width, height, values).unwrap_or_else(|| RgbImage::new(width, height))
}
