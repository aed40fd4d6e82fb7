//! The thumbnail that an item keeps of its image.

use std::io::Cursor;
use std::sync::Arc;

use image::imageops::FilterType;
use image::{ImageError, ImageFormat, RgbImage};

/// Longest edge, pixels.
const EDGE: u32 = 96;

/// Scales an image down, if it is larger than a thumbnail, and encodes it as PNG.
///
/// # Errors
/// Those of the PNG encoder.
pub fn encode(image: &RgbImage) -> Result<Arc<[u8]>, ImageError> {
    let (width, height) = image.dimensions();
    let scale = f64::from(EDGE) / f64::from(width.max(height).max(1));
    let mut png = Vec::new();
    let write = |image: &RgbImage, png: &mut Vec<u8>| image.write_to(&mut Cursor::new(png), ImageFormat::Png);
    if scale < 1.0 {
        let edge = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
        write(&image::imageops::resize(image, edge(width), edge(height), FilterType::Triangle), &mut png)?;
    } else {
        write(image, &mut png)?;
    }
    Ok(png.into())
}
