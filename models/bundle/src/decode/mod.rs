//! Bytes of unknown origin -> 8-bit RGB pixels, the same way for training, evaluation and serving.
//!
//! Formats: JPEG, PNG, WebP, GIF, BMP, TIFF, PNM, recognised by content.  EXIF orientation is applied.  The first frame
//! of an animation counts.  Transparent pixels are laid over **black** (the padding colour of `Fit::Pad`).  16-bit
//! samples keep their high byte's rounding; grey is repeated over the channels; CMYK is converted by the decoder.  An
//! embedded colour profile is applied: the result is sRGB.
//!
//! HEIC and AVIF are read by libheif where that library is installed ([`heif`]).

mod color;
pub mod heif;
mod jpeg;

use std::io::{BufRead, Cursor, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::error::{ImageError, LimitErrorKind};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};

/// What an image may cost before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Largest width x height that a header may announce.
    pub max_pixels: u64,
    /// Largest width or height.
    pub max_edge: u32,
    /// Bytes that a decoder may allocate (output included).
    pub max_alloc: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl DecodeLimits {
    /// 50 megapixels (a large camera's photo), 512 MiB.
    pub const DEFAULT: Self = Self { max_pixels: 50_000_000, max_edge: 65_535, max_alloc: 512 << 20 };

    /// With another number of pixels, and the memory that formats of 16-bit samples need for them.
    pub fn of_pixels(max_pixels: u64) -> Self {
        Self { max_pixels, max_alloc: max_pixels.saturating_mul(11).max(Self::DEFAULT.max_alloc), ..Self::DEFAULT }
    }

    /// Refuses a picture by its size.
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

/// Why bytes did not become pixels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// None of the formats that are read.
    #[error("not an image in a known format (JPEG, PNG, WebP, GIF, BMP, TIFF, PNM), found {found}")]
    Format {
        /// The first bytes, or "no bytes".
        found: String,
    },
    /// The header announces more than the limits allow.
    #[error("image too large: {width} x {height} pixels, at most {max_pixels} pixels and {max_edge} on an edge")]
    TooLarge {
        /// As the header says.
        width: u32,
        /// As the header says.
        height: u32,
        /// The limit.
        max_pixels: u64,
        /// The limit.
        max_edge: u32,
    },
    /// The decoder would need more memory than is allowed.
    #[error("decoding this image needs more memory than the {max_alloc} bytes allowed")]
    TooMuchMemory {
        /// The limit.
        max_alloc: u64,
    },
    /// A format that needs a library which is not installed.
    #[error("{format} images are read where libheif is installed, and {cause}")]
    NeedsLibheif {
        /// HEIC or AVIF.
        format: &'static str,
        /// What is missing.
        cause: String,
    },
    /// A known format, but broken or of a kind that is not supported.
    #[error("{format} image cannot be decoded: {cause}")]
    Broken {
        /// Name of the format.
        format: &'static str,
        /// What the decoder said, in one line.
        cause: String,
    },
}

/// Bytes for an image's header where only its size is wanted: a PNG's is unpacked with its colour profile, which nobody
/// uses; one that does not fit is left out.
const PEEK_ALLOC: u64 = 256 << 10;

/// First bytes of a file that its format is known by.
const HEAD: u64 = 256;

/// Bytes for an image's header where its pixels are wanted too.
const HEADER_ALLOC: u64 = 32 << 20;

/// Decodes one image; never panics, whatever the bytes.
///
/// # Shapes
/// Result: (height, width, 3) u8, rows from the top, R G B, at least 1 x 1.
///
/// # Errors
/// Every [`DecodeError`]; sizes are checked on the header, before pixels are decoded.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    if let Some(format) = heif::format(bytes) {
        return heif::decode(bytes, format, limits);
    }
    let format = image::guess_format(bytes).ok().filter(|f| f.reading_enabled());
    let Some(format) = format else {
        return Err(DecodeError::Format { found: found(bytes, bytes.len() as u64) });
    };
    let name = format_name(format);
    // A decoder is somebody else's code reading hostile bytes: its panic is a broken image.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_known(bytes, format, name, limits)));
    decoded.unwrap_or_else(|_| Err(DecodeError::Broken { format: name, cause: "the decoder gave up".into() }))
}

/// Width x height as the header says, without decoding anything; `None` where it cannot be read.
pub fn announced_pixels(bytes: &[u8]) -> Option<u64> {
    if let Some(format) = heif::format(bytes) {
        return heif::announced(bytes, format, &DecodeLimits { max_pixels: u64::MAX, ..DecodeLimits::DEFAULT }).ok();
    }
    let format = image::guess_format(bytes).ok().filter(|f| f.reading_enabled())?;
    let read = || reader(bytes, format, PEEK_ALLOC).into_dimensions().ok();
    let (width, height) = catch_unwind(AssertUnwindSafe(read)).ok()??;
    Some(u64::from(width) * u64::from(height))
}

/// Width x height as the header says, of a file that need not be in memory; errors are those of [`decode`].
///
/// # Errors
/// Every [`DecodeError`] that a header can give.
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
    let read = read.map_err(|_| DecodeError::Broken { format: name, cause: "the decoder gave up".into() })?;
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
) -> Result<RgbImage, DecodeError> {
    let fault = |e: ImageError| from_image_error(e, name, limits);
    let mut decoder = reader(bytes, format, limits.max_alloc.min(HEADER_ALLOC)).into_decoder().map_err(fault)?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height, name)?;
    let mut strict = allocating(limits.max_alloc);
    // The output is ours to allocate: it counts too.
    strict.reserve(decoder.total_bytes()).map_err(fault)?;
    decoder.set_limits(strict).map_err(fault)?;
    let orientation = orientation(&mut decoder, format);
    let profile = decoder.icc_profile().ok().flatten().unwrap_or_default();
    let mut pixels = DynamicImage::from_decoder(decoder).map_err(fault)?;
    let again =
        |longer: &[u8]| DynamicImage::from_decoder(reader(longer, format, limits.max_alloc).into_decoder().ok()?).ok();
    if format == image::ImageFormat::Jpeg && !jpeg::is_whole(bytes, &pixels, again) {
        let cause = "the file ends before the image does".into();
        return Err(DecodeError::Broken { format: name, cause });
    }
    pixels.apply_orientation(orientation);
    Ok(over_black(color::to_srgb(pixels, &profile)))
}

/// What EXIF, or TIFF's own tag, says about the picture's top; a broken block is no reason to refuse the picture.
fn orientation(decoder: &mut impl ImageDecoder, format: image::ImageFormat) -> Orientation {
    if format == image::ImageFormat::Tiff {
        return decoder.orientation().unwrap_or(Orientation::NoTransforms);
    }
    let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
    // WebP files written by some programs keep JPEG's prefix in front of the block.
    let block = exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif);
    Orientation::from_exif_chunk(block).unwrap_or(Orientation::NoTransforms)
}

/// Any colour type -> RGB8, alpha over black.
fn over_black(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (out, pixel) in rgb.pixels_mut().zip(rgba.pixels()) {
        let alpha = u32::from(pixel[3]);
        for c in 0..3 {
            // Rounded x * a / 255.
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

/// What a file is instead of an image, by its first bytes.
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
        // Unpacked whole, it takes tens of ms each time.
        let since = Instant::now();
        assert!((0..20).all(|_| announced_pixels(&png) == Some(16)));
        assert!(since.elapsed() < Duration::from_millis(150), "{:?}", since.elapsed());
        assert_eq!(decode(&png, &DecodeLimits::default()).unwrap().as_raw(), &pixels);
    }
}
