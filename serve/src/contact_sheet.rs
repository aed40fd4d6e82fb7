//! Draws a contact sheet: a row for each query, with the query at the left and its neighbours beside it.  The colour of a
//! neighbour's frame says whether it has the query's label.

use image::imageops::{FilterType, overlay, resize};
use image::{Rgb, RgbImage};

/// Edge of a cell, pixels.
const CELL: u32 = 96;
/// Width of a frame.
const FRAME: u32 = 4;
/// Space between framed cells.
const GAP: u32 = 6;
/// Additional space to the right of the query.
const MARGIN: u32 = 14;

/// The meaning of a frame's colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// The image that was searched for.
    Query,
    /// A neighbour with the query's label.
    Same,
    /// A neighbour with another label, or none.
    Other,
}

impl Frame {
    fn colour(self) -> Rgb<u8> {
        match self {
            Self::Query => Rgb([70, 90, 120]),
            Self::Same => Rgb([40, 160, 80]),
            Self::Other => Rgb([210, 60, 50]),
        }
    }
}

/// A query and its neighbours.
#[derive(Debug, Clone)]
pub struct Row {
    /// The query first.
    pub cells: Vec<(RgbImage, Frame)>,
}

/// Draws all rows on a white background.
pub fn draw(rows: &[Row]) -> RgbImage {
    let pitch = CELL + 2 * FRAME + GAP;
    let columns = rows.iter().map(|r| r.cells.len()).max().unwrap_or(0) as u32;
    let width = columns * pitch + GAP + MARGIN;
    let mut sheet = RgbImage::from_pixel(width, rows.len() as u32 * pitch + GAP, Rgb([255; 3]));
    for (y, row) in rows.iter().enumerate() {
        for (x, (image, frame)) in row.cells.iter().enumerate() {
            let left = GAP + x as u32 * pitch + if x > 0 { MARGIN } else { 0 };
            overlay(&mut sheet, &framed(image, *frame), i64::from(left), i64::from(GAP + y as u32 * pitch));
        }
    }
    sheet
}

/// A cell with its frame.  Small images are enlarged without smoothing, to show what the encoder sees; large ones are reduced.
fn framed(image: &RgbImage, frame: Frame) -> RgbImage {
    let (width, height) = image.dimensions();
    let scale = f64::from(CELL) / f64::from(width.max(height).max(1));
    let edge = |length: u32| ((f64::from(length) * scale) as u32).clamp(1, CELL);
    let filter = if scale >= 1.0 { FilterType::Nearest } else { FilterType::Triangle };
    let scaled = resize(image, edge(width), edge(height), filter);
    let mut cell = RgbImage::from_pixel(CELL + 2 * FRAME, CELL + 2 * FRAME, frame.colour());
    overlay(&mut cell, &RgbImage::new(CELL, CELL), i64::from(FRAME), i64::from(FRAME));
    let centre = |length: u32| i64::from(FRAME + (CELL - length) / 2);
    overlay(&mut cell, &scaled, centre(scaled.width()), centre(scaled.height()));
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_surround_images_at_their_positions() {
        let white = RgbImage::from_pixel(2, 2, Rgb([255; 3]));
        let row = Row { cells: vec![(white.clone(), Frame::Query), (white, Frame::Other)] };
        let sheet = draw(&[row.clone(), row]);
        assert_eq!(sheet.dimensions(), (2 * 110 + 6 + 14, 2 * 110 + 6));
        assert_eq!(*sheet.get_pixel(6, 6), Frame::Query.colour());
        assert_eq!(*sheet.get_pixel(6 + FRAME, 6 + FRAME), Rgb([255; 3]));
        assert_eq!(*sheet.get_pixel(6 + 110 + 14, 6 + 110), Frame::Other.colour());
    }
}
