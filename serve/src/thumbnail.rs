//! The thumbnail that an item keeps of its image.

use std::io::Cursor;
use std::sync::Arc;

use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::{ImageError, ImageFormat, RgbImage};

/// Longest edge of a JPEG thumbnail, pixels: 128 on a screen with two pixels for each pixel of the page.
const EDGE: u32 = 256;
/// Images up to this edge are kept as they are, as PNG.
const SMALL: u32 = 96;
/// At this quality a JPEG of 256 pixels takes about as many bytes as a PNG of 96.
const QUALITY: u8 = 85;

/// Keeps a small image as PNG, and encodes any other as JPEG, scaled down if it is larger than a thumbnail.
///
/// # Errors
/// Those of the encoders.
pub fn encode(image: &RgbImage) -> Result<Arc<[u8]>, ImageError> {
    let (width, height) = image.dimensions();
    let longest = width.max(height).max(1);
    let mut bytes = Vec::new();
    if longest <= SMALL {
        image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?;
        return Ok(bytes.into());
    }
    let mut write = |image: &RgbImage| JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode_image(image);
    if longest > EDGE {
        let edge = |length: u32| ((u64::from(length) * u64::from(EDGE) / u64::from(longest)) as u32).max(1);
        write(&image::imageops::resize(image, edge(width), edge(height), FilterType::Triangle))?;
    } else {
        write(image)?;
    }
    Ok(bytes.into())
}

/// The media type of a thumbnail.
pub fn media_type(bytes: &[u8]) -> &'static str {
    if bytes.starts_with(&[0xff, 0xd8, 0xff]) { "image/jpeg" } else { "image/png" }
}
