//! Decodes untrusted bytes to 8-bit RGB pixels, in the same way for training, evaluation and serving.
//!
//! Formats: JPEG, PNG, WebP, GIF, BMP, TIFF and PNM, detected by content.  EXIF orientation is applied.  Of an
//! animation the first frame is used.  Transparent pixels are blended with **black** (the padding colour of
//! `Fit::Pad`).  16-bit samples are rounded to 8 bits; grey is copied to all three channels; the decoder converts
//! CMYK.  An embedded colour profile is applied, so the result is sRGB.
//!
//! A photograph that is much larger than needed is decoded at 1/2, 1/4 or 1/8 of its size by [`decode_to`].
//!
//! HEIC and AVIF need an installed libheif ([`heif`]).

mod color;
pub mod heif;
mod jpeg;
mod scaled;

use std::io::{BufRead, Cursor, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::error::{ImageError, LimitErrorKind};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};

/// Limits on the size and memory of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Largest width x height.
    pub max_pixels: u64,
    /// Largest width or height in pixels.
    pub max_edge: u32,
    /// Bytes that a decoder may allocate, output included.
    pub max_alloc: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl DecodeLimits {
    /// 50 megapixels (a large camera's photograph), 512 MiB.
    pub const DEFAULT: Self = Self { max_pixels: 50_000_000, max_edge: 65_535, max_alloc: 512 << 20 };

    /// Limits for another number of pixels; the memory limit allows for formats with 16-bit samples.
    pub fn of_pixels(max_pixels: u64) -> Self {
        Self { max_pixels, max_alloc: max_pixels.saturating_mul(11).max(Self::DEFAULT.max_alloc), ..Self::DEFAULT }
    }

    /// Refuses an image that is too large or empty, by its size.
    fn check(&self, width: u32, height: u32, format: &'static str) -> Result<(), DecodeError> {
        let Self { max_pixels, max_edge, .. } = *self;
        if u64::from(width) * u64::from(height) > max_pixels || width.max(height) > max_edge {
            return Err(DecodeError::TooLarge { width, height, max_pixels, max_edge });
        }
        match width == 0 || height == 0 {
            true => Err(DecodeError::Broken { format, cause: format!("it has {width} x {height} pixels") }),
            false => Ok(()),
        }
    }
}

/// Why an image was not decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message shows its fields")]
pub enum DecodeError {
    /// The format is unknown.
    #[error("not an image in a known format (JPEG, PNG, WebP, GIF, BMP, TIFF, PNM), found {found}")]
    Format {
        /// Length and first bytes of the file, or "no bytes".
        found: String,
    },
    /// The size in the header exceeds the limits.
    #[error("image too large: {width} x {height} pixels, at most {max_pixels} pixels and {max_edge} on an edge")]
    TooLarge { width: u32, height: u32, max_pixels: u64, max_edge: u32 },
    /// The decoder needs more memory than the limits allow.
    #[error("decoding this image needs more memory than the {max_alloc} bytes allowed")]
    TooMuchMemory { max_alloc: u64 },
    /// The format needs libheif, which is not installed or cannot decode it.
    #[error("{format} images need libheif, but {cause}")]
    NeedsLibheif { format: &'static str, cause: String },
    /// The format is known, but the file is damaged or uses an unsupported feature.
    #[error("{format} image cannot be decoded: {cause}")]
    Broken { format: &'static str, cause: String },
}

/// Memory limit for reading only an image's size.  A PNG header is decompressed with its colour profile, which is not
/// needed for the size; a profile that does not fit is skipped.
const PEEK_ALLOC: u64 = 256 << 10;

/// Number of leading bytes that the format is detected from.
const HEAD: u64 = 256;

/// Memory limit for reading an image's header before its pixels.
const HEADER_ALLOC: u64 = 32 << 20;

/// Decodes one image; never panics, whatever the bytes are.
///
/// # Shapes
/// The result (height, width, 3) u8, rows from the top, R G B, at least 1 x 1.
///
/// # Errors
/// [`DecodeError`]; the size in the header is checked before pixels are decoded.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    decode_to(bytes, limits, None)
}

/// [`decode`] of an image that will be reduced, at a part of its size where that saves time: a JPEG whose shorter edge has at
/// least twice the pixels of `shortest` is decoded at 1/2, 1/4 or 1/8, with no fewer than those; `None`: at its full size.
///
/// # Shapes
/// As [`decode`]; both edges divided by the same number and rounded.
///
/// # Errors
/// As [`decode`], for the same files.
pub fn decode_to(bytes: &[u8], limits: &DecodeLimits, shortest: Option<u32>) -> Result<RgbImage, DecodeError> {
    if let Some(format) = heif::format(bytes) {
        return heif::decode(bytes, format, limits);
    }
    let format = image::guess_format(bytes).ok().filter(|f| f.reading_enabled());
    let Some(format) = format else {
        return Err(DecodeError::Format { found: found(bytes, bytes.len() as u64) });
    };
    let name = format_name(format);
    // Decoders are foreign code that reads untrusted bytes: a panic counts as a damaged image.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_known(bytes, format, name, limits, shortest)));
    decoded
        .unwrap_or_else(|_| Err(DecodeError::Broken { format: name, cause: "the decoder failed unexpectedly".into() }))
}

/// Width x height from the header, without decoding pixels; `None` if the header cannot be read.
pub fn announced_pixels(bytes: &[u8]) -> Option<u64> {
    if let Some(format) = heif::format(bytes) {
        return heif::announced(bytes, format, &DecodeLimits { max_pixels: u64::MAX, ..DecodeLimits::DEFAULT }).ok();
    }
    let format = image::guess_format(bytes).ok().filter(|f| f.reading_enabled())?;
    let read = || reader(bytes, format, PEEK_ALLOC).into_dimensions().ok();
    let (width, height) = catch_unwind(AssertUnwindSafe(read)).ok()??;
    Some(u64::from(width) * u64::from(height))
}

/// Width x height from the header of a file that need not be in memory, with the errors of [`decode`].
///
/// # Errors
/// Every [`DecodeError`] that the header alone can cause.
pub fn announced(mut source: impl BufRead + Seek, limits: &DecodeLimits) -> Result<u64, DecodeError> {
    let unread = |e: std::io::Error| DecodeError::Broken { format: "this", cause: e.to_string() };
    let mut head = Vec::new();
    source.by_ref().take(HEAD).read_to_end(&mut head).map_err(unread)?;
    let length = source.seek(SeekFrom::End(0)).map_err(unread)?;
    source.rewind().map_err(unread)?;
    if let Some(format) = heif::format(&head) {
        let mut bytes = Vec::new();
        source.take(limits.max_alloc).read_to_end(&mut bytes).map_err(unread)?;
        return heif::announced(&bytes, format, limits);
    }
    let Some(format) = image::guess_format(&head).ok().filter(|f| f.reading_enabled()) else {
        return Err(DecodeError::Format { found: found(&head, length) });
    };
    let name = format_name(format);
    let mut reader = ImageReader::with_format(source, format);
    reader.limits(allocating(PEEK_ALLOC));
    let read = catch_unwind(AssertUnwindSafe(|| reader.into_dimensions()));
    let read =
        read.map_err(|_| DecodeError::Broken { format: name, cause: "the decoder failed unexpectedly".into() })?;
    let (width, height) = read.map_err(|e| from_image_error(e, name, limits))?;
    limits.check(width, height, name)?;
    Ok(u64::from(width) * u64::from(height))
}

fn allocating(bytes: u64) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(bytes);
    limits
}

fn reader(bytes: &[u8], format: image::ImageFormat, max_alloc: u64) -> ImageReader<Cursor<&[u8]>> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(allocating(max_alloc));
    reader
}

fn decode_known(
    bytes: &[u8],
    format: image::ImageFormat,
    name: &'static str,
    limits: &DecodeLimits,
    shortest: Option<u32>,
) -> Result<RgbImage, DecodeError> {
    let fault = |e: ImageError| from_image_error(e, name, limits);
    let mut decoder = reader(bytes, format, limits.max_alloc.min(HEADER_ALLOC)).into_decoder().map_err(fault)?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height, name)?;
    let mut strict = allocating(limits.max_alloc);
    // This module allocates the output, which counts towards the limit.
    strict.reserve(decoder.total_bytes()).map_err(fault)?;
    decoder.set_limits(strict).map_err(fault)?;
    let orientation = orientation(&mut decoder, format);
    let profile = decoder.icc_profile().ok().flatten().unwrap_or_default();
    let factor = shortest.map_or(1, |shortest| scaled::factor(width.min(height), shortest));
    if format == image::ImageFormat::Jpeg
        && factor > 1
        && let Some(pixels) = scaled::decode(bytes, factor)
    {
        return Ok(finished(pixels, orientation, &profile));
    }
    let pixels = DynamicImage::from_decoder(decoder).map_err(fault)?;
    let again =
        |longer: &[u8]| DynamicImage::from_decoder(reader(longer, format, limits.max_alloc).into_decoder().ok()?).ok();
    if format == image::ImageFormat::Jpeg && !jpeg::is_whole(bytes, &pixels, again) {
        let cause = "the file ends before the image does".into();
        return Err(DecodeError::Broken { format: name, cause });
    }
    Ok(finished(pixels, orientation, &profile))
}

/// Upright, sRGB, without transparency.
fn finished(mut pixels: DynamicImage, orientation: Orientation, profile: &[u8]) -> RgbImage {
    pixels.apply_orientation(orientation);
    over_black(color::to_srgb(pixels, profile))
}

/// Orientation from EXIF or TIFF's own tag; a damaged EXIF block is ignored.
fn orientation(decoder: &mut impl ImageDecoder, format: image::ImageFormat) -> Orientation {
    if format == image::ImageFormat::Tiff {
        return decoder.orientation().unwrap_or(Orientation::NoTransforms);
    }
    let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
    // Some programs write JPEG's prefix before the EXIF block of a WebP file.
    let block = exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif);
    Orientation::from_exif_chunk(block).unwrap_or(Orientation::NoTransforms)
}

/// Converts any colour type to RGB8; transparent pixels are blended with black.
fn over_black(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (out, pixel) in rgb.pixels_mut().zip(rgba.pixels()) {
        let alpha = u32::from(pixel[3]);
        for c in 0..3 {
            // x * a / 255, rounded.
            out[c] = ((u32::from(pixel[c]) * alpha + 127) / 255) as u8;
        }
    }
    rgb
}

fn from_image_error(error: ImageError, format: &'static str, limits: &DecodeLimits) -> DecodeError {
    if let ImageError::Limits(e) = &error
        && matches!(e.kind(), LimitErrorKind::InsufficientMemory)
    {
        return DecodeError::TooMuchMemory { max_alloc: limits.max_alloc };
    }
    let text = error.to_string();
    let cause: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect();
    DecodeError::Broken { format, cause }
}

/// Describes a file that is not an image, for messages: its length and first bytes.
fn found(head: &[u8], length: u64) -> String {
    if head.is_empty() {
        return "no bytes".into();
    }
    let head: Vec<String> = head.iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("{length} bytes that begin with {}", head.join(" "))
}

fn format_name(format: image::ImageFormat) -> &'static str {
    use image::ImageFormat as F;
    match format {
        F::Jpeg => "JPEG",
        F::Png => "PNG",
        F::WebP => "WebP",
        F::Gif => "GIF",
        F::Bmp => "BMP",
        F::Tiff => "TIFF",
        F::Pnm => "PNM",
        _ => "this",
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use image::codecs::png::PngEncoder;
    use image::{ExtendedColorType, ImageEncoder};

    use super::*;

    #[test]
    fn a_colour_profile_that_unfolds_to_much_costs_little() {
        let (pixels, mut png) = ([70u8; 4 * 4 * 3], Vec::new());
        let mut encoder = PngEncoder::new(&mut png);
        encoder.set_icc_profile(vec![0; 100 << 20]).unwrap();
        encoder.write_image(&pixels, 4, 4, ExtendedColorType::Rgb8).unwrap();
        assert!(png.len() > 90 << 10, "{} bytes: no profile", png.len());
        // Decompressing the whole profile takes tens of milliseconds each time.
        let since = Instant::now();
        assert!((0..20).all(|_| announced_pixels(&png) == Some(16)));
        assert!(since.elapsed() < Duration::from_millis(150), "{:?}", since.elapsed());
        assert_eq!(decode(&png, &DecodeLimits::default()).unwrap().as_raw(), &pixels);
    }
}
