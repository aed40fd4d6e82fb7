//! JPEG at 1/2, 1/4 or 1/8 of its size, without the pixels in between.
//!
//! What costs time in a photograph of 12 megapixels is not its file but its pixels.  Here a block of 8 x 8 becomes 4 x 4, 2 x 2
//! or one pixel at once, and coefficients of frequencies that those cannot show are passed over.  This is what libjpeg calls
//! scaling, in Rust alone, and faster where its result is small.
//!
//! Read are the files of cameras and telephones: baseline and extended sequential JPEG with 8 bits, grey or Y Cb Cr, all in one
//! scan that is whole to its end marker.  For all others, and whenever anything is odd, [`decode`] gives `None`, and the
//! ordinary decoder has the say, as it has in what is an error.

mod bits;
mod block;
mod header;
mod huffman;

use image::{DynamicImage, GrayImage, RgbImage};

use self::bits::{Bits, Entropy};
use self::block::Plan;
use self::header::Header;

/// The largest of 8, 4 and 2 by which an edge may be divided and keep `least` pixels; 1 where it is not more than twice as long.
pub(super) fn factor(shortest: u32, least: u32) -> usize {
    [8, 4, 2].into_iter().find(|factor| u64::from(shortest) >= *factor as u64 * u64::from(least.max(1))).unwrap_or(1)
}

/// An image at 1 / `factor` (2, 4 or 8) of its width and height, rounded; grey, or RGB.
pub(super) fn decode(bytes: &[u8], factor: usize) -> Option<DynamicImage> {
    let header = Header::read(bytes)?;
    let mut image = Scaled::new(&header, factor)?;
    image.read(&Entropy::read(header.data)?, header.restart)?;
    image.finish(&header, factor)
}

/// One component at its reduced size, with whole blocks at the edges.
struct Plane<'a> {
    plan: Plan<'a>,
    /// Blocks of an MCU.
    h: usize,
    v: usize,
    pixels: Vec<u8>,
    stride: usize,
}

struct Scaled<'a> {
    planes: Vec<Plane<'a>>,
    /// MCUs of a row.
    columns: usize,
    /// MCUs.
    count: usize,
}

impl<'a> Scaled<'a> {
    fn new(header: &'a Header, factor: usize) -> Option<Self> {
        // The MCU of a single component is one block, whatever its sampling says (T.81, A.2.2).
        let single = header.components.len() == 1;
        let (h, v) = if single { (1, 1) } else { header.sampling() };
        let (columns, rows) = (header.width.div_ceil(8 * h), header.height.div_ceil(8 * v));
        let mut planes = Vec::new();
        for component in &header.components {
            let (own_h, own_v) = if single { (1, 1) } else { (component.h, component.v) };
            // A component of fewer samples is reduced less, so that all have the same size.
            let size = (8 / factor * h / own_h, 8 / factor * v / own_v);
            let [dc, ac] = [(&header.dc, component.dc), (&header.ac, component.ac)];
            let quant = header.quant.get(component.quant)?.as_ref()?;
            let plan = Plan::new(dc.0.get(dc.1)?.as_ref()?, ac.0.get(ac.1)?.as_ref()?, quant, size)?;
            let stride = columns * own_h * plan.across;
            let pixels = vec![0; stride * rows * own_v * plan.down];
            planes.push(Plane { plan, h: own_h, v: own_v, pixels, stride });
        }
        Some(Self { planes, columns, count: columns * rows })
    }

    /// Reads all blocks; `restart`: MCUs of an interval, 0: all.
    fn read(&mut self, entropy: &Entropy, restart: usize) -> Option<()> {
        let each = if restart == 0 { self.count } else { restart };
        if entropy.intervals() != self.count.div_ceil(each) {
            return None;
        }
        for interval in 0..entropy.intervals() {
            let mut bits = entropy.interval(interval)?;
            self.interval(&mut bits, interval * each..((interval + 1) * each).min(self.count))?;
            if !bits.is_within() {
                return None;
            }
        }
        Some(())
    }

    fn interval(&mut self, bits: &mut Bits, mcus: std::ops::Range<usize>) -> Option<()> {
        let mut last = [0; 3];
        for mcu in mcus {
            let (row, column) = (mcu / self.columns, mcu % self.columns);
            for (plane, dc) in self.planes.iter_mut().zip(&mut last) {
                let Plane { plan, h, v, pixels, stride } = plane;
                for block in 0..*h * *v {
                    let (y, x) = (row * *v + block / *h, column * *h + block % *h);
                    let at = y * plan.down * *stride + x * plan.across;
                    plan.block(bits, dc, &mut pixels[at..], *stride)?;
                }
            }
        }
        Some(())
    }

    /// Cuts the edges off and makes RGB of Y Cb Cr.
    fn finish(self, header: &Header, factor: usize) -> Option<DynamicImage> {
        let rounded = |length: usize| ((length + factor / 2) / factor).max(1);
        let (width, height) = (rounded(header.width), rounded(header.height));
        let (w, h) = (u32::try_from(width).ok()?, u32::try_from(height).ok()?);
        let row = |plane: &Plane, y: usize| -> Option<std::ops::Range<usize>> {
            let start = y * plane.stride;
            (start + width <= plane.pixels.len()).then_some(start..start + width)
        };
        if let [grey] = self.planes.as_slice() {
            let mut pixels = Vec::with_capacity(width * height);
            for y in 0..height {
                pixels.extend_from_slice(&grey.pixels[row(grey, y)?]);
            }
            return GrayImage::from_raw(w, h, pixels).map(DynamicImage::ImageLuma8);
        }
        let [luma, blue, red] = self.planes.as_slice() else { return None };
        let mut pixels = vec![0; 3 * width * height];
        for (y, out) in pixels.chunks_exact_mut(3 * width).enumerate() {
            to_rgb(&luma.pixels[row(luma, y)?], &blue.pixels[row(blue, y)?], &red.pixels[row(red, y)?], out);
        }
        RgbImage::from_raw(w, h, pixels).map(DynamicImage::ImageRgb8)
    }
}

/// JFIF's Y Cb Cr -> R G B, with 16 bits behind the point.
fn to_rgb(luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    let clamp = |value: i32| (value >> 16).clamp(0, 255) as u8;
    for (((out, y), cb), cr) in out.chunks_exact_mut(3).zip(luma).zip(blue).zip(red) {
        let (y, cb, cr) = ((i32::from(*y) << 16) + HALF, i32::from(*cb) - 128, i32::from(*cr) - 128);
        out[0] = clamp(y + 91_881 * cr);
        out[1] = clamp(y - 22_554 * cb - 46_802 * cr);
        out[2] = clamp(y + 116_130 * cb);
    }
}
