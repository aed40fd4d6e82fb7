//! Compares the evaluation transform with Pillow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use image::{Rgb, RgbImage};
use macrl_bundle::config::Fit;
use macrl_bundle::preprocess::{JpegDecoding, Preprocess, PreprocessorConfig};

fn preprocess(image_size: usize, fit: Fit) -> Preprocess {
    Preprocess { image_size, fit, mean: [0.5, 0.25, 0.0], std: [0.5, 0.25, 1.0], jpeg_decoding: JpegDecoding::Scaled }
}

/// The same pattern as `picture` in the Python code below.
fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let value = |c: u32| x * 37 + y * 59 + c * 83 + (x * y) % 7 * 31 + (x / 3 + y / 5) % 2 * 90;
        Rgb([0, 1, 2].map(|c| (value(c) % 256) as u8))
    })
}

// Pillow 12:
//   def picture(w, h):
//       y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij")
//       v = x * 37 + y * 59 + c * 83 + (x * y) % 7 * 31 + (x // 3 + y // 5) % 2 * 90
//       return Image.fromarray((v % 256).astype(np.uint8))
//   def fit(im, s):
//       w, h = im.size
//       r = (int(s * w / min(w, h)), int(s * h / min(w, h)))
//       im = im.resize(r, Image.Resampling.BICUBIC)
//       left, top = (r[0] - s) // 2, (r[1] - s) // 2
//       return np.asarray(im.crop((left, top, left + s, top + s)))
#[rustfmt::skip]
const PILLOW: &[(u32, u32, usize, &[u8])] = &[
    // width, height, s, fit(picture(width, height), s).ravel()
    (37, 23, 6, &[ 149, 101, 134, 137, 140, 113, 139, 131, 122, 147, 134, 123, 134, 136, 122, 122, 162, 128, 128, 121, 140, 124, 118, 140, 157, 98, 129, 152, 93, 130, 146, 106, 138, 146, 121, 108, 143, 117, 144, 155, 108, 133, 149, 125, 125, 127, 128, 122, 136, 113, 123, 102, 150, 119, 118, 124, 154, 129, 106, 150, 144, 99, 152, 139, 92, 150, 142, 109, 131, 127, 118, 135, 137, 126, 108, 123, 129, 129, 124, 127, 129, 138, 124, 137, 143, 127, 117, 128, 128, 138, 177, 114, 110, 168, 126, 116, 165, 110, 102, 146, 144, 112, 149, 127, 116, 119, 156, 115 ]),
    (19, 64, 6, &[ 105, 130, 138, 137, 117, 107, 130, 105, 149, 132, 151, 84, 119, 133, 97, 143, 120, 120, 130, 136, 121, 90, 148, 156, 119, 147, 116, 113, 153, 129, 129, 162, 81, 137, 147, 120, 116, 125, 147, 123, 125, 106, 109, 153, 142, 120, 116, 115, 123, 122, 110, 107, 143, 117, 125, 119, 97, 105, 126, 152, 123, 143, 93, 117, 133, 129, 138, 122, 108, 110, 132, 125, 138, 133, 124, 117, 158, 107, 142, 145, 118, 133, 123, 130, 145, 142, 136, 122, 121, 128, 141, 110, 166, 152, 102, 106, 130, 144, 125, 152, 95, 118, 123, 156, 114, 100, 136, 140 ]),
    (5, 7, 6, &[ 44, 126, 235, 89, 201, 90, 163, 98, 92, 155, 71, 78, 114, 185, 23, 181, 225, 91, 95, 206, 79, 192, 109, 80, 135, 98, 162, 134, 110, 179, 202, 141, 94, 141, 239, 32, 152, 87, 42, 126, 84, 166, 117, 71, 173, 176, 40, 129, 203, 53, 124, 84, 178, 149, 217, 1, 121, 106, 151, 138, 119, 122, 148, 153, 67, 148, 107, 88, 178, 30, 118, 234, 213, 111, 121, 147, 189, 88, 79, 188, 193, 76, 145, 244, 94, 125, 190, 46, 131, 133, 133, 192, 35, 88, 166, 180, 52, 152, 211, 103, 82, 153, 168, 54, 87, 116, 207, 49 ]),
    (100, 9, 6, &[ 107, 70, 126, 155, 83, 171, 115, 109, 189, 90, 134, 163, 162, 77, 110, 118, 76, 122, 133, 141, 94, 197, 76, 153, 113, 145, 131, 171, 167, 128, 79, 157, 129, 163, 193, 75, 109, 122, 171, 149, 86, 180, 83, 88, 156, 114, 141, 166, 127, 88, 125, 101, 189, 153, 127, 151, 68, 135, 110, 79, 112, 134, 119, 153, 141, 149, 176, 85, 76, 131, 150, 83, 78, 179, 72, 142, 144, 43, 171, 45, 133, 136, 78, 121, 101, 158, 76, 128, 120, 96, 153, 83, 173, 140, 121, 151, 109, 107, 186, 116, 187, 106, 149, 80, 127, 177, 122, 153 ]),
    (8, 13, 8, &[ 118, 201, 28, 217, 44, 127, 60, 143, 226, 249, 76, 159, 131, 214, 41, 230, 57, 140, 239, 66, 149, 121, 204, 31, 177, 4, 87, 51, 134, 217, 181, 8, 91, 184, 11, 94, 58, 141, 224, 227, 54, 137, 11, 94, 177, 180, 7, 90, 236, 63, 146, 141, 224, 51, 85, 168, 251, 80, 163, 246, 24, 107, 190, 185, 12, 95, 39, 122, 205, 239, 66, 149, 129, 212, 39, 65, 148, 231, 40, 123, 206, 181, 8, 91, 117, 200, 27, 92, 175, 2, 157, 240, 67, 132, 215, 42, 188, 15, 98, 155, 238, 65, 161, 244, 71, 77, 160, 243, 83, 166, 249, 89, 172, 255, 185, 12, 95, 191, 18, 101, 247, 74, 157, 28, 111, 194, 65, 148, 231, 12, 95, 178, 49, 132, 215, 86, 169, 252, 213, 40, 123, 250, 77, 160, 50, 133, 216, 118, 201, 28, 186, 13, 96, 164, 247, 74, 232, 59, 142, 44, 127, 210, 202, 29, 112, 53, 136, 219, 109, 192, 19, 208, 35, 118, 51, 134, 217, 60, 143, 226, 198, 25, 108, 41, 124, 207, 230, 57, 140, 112, 195, 22 ]),
];

#[test]
fn resizing_is_pillows_within_one_grey_level() {
    for &(width, height, size, expected) in PILLOW {
        let fitted = preprocess(size, Fit::Resize).fit(&picture(width, height));
        let differences = fitted.as_raw().iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
        assert_eq!(fitted.as_raw().len(), expected.len());
        assert!(differences.max().unwrap() <= 1, "{width} x {height}: {:?} is not {expected:?}", fitted.as_raw());
    }
}

#[test]
fn an_image_of_the_right_size_is_left_alone() {
    for fit in [Fit::Resize, Fit::Pad] {
        assert_eq!(preprocess(8, fit).fit(&picture(8, 8)), picture(8, 8));
    }
}

#[test]
fn padding_centres_on_black_and_resizes_what_is_larger() {
    let source = picture(3, 4);
    let padded = preprocess(8, Fit::Pad).fit(&source);
    for (x, y, pixel) in padded.enumerate_pixels() {
        // ceil((8 - 3) / 2) = 3 from the left, (8 - 4) / 2 = 2 from the top.
        let inside = (3..6).contains(&x) && (2..6).contains(&y);
        let expected = if inside { *source.get_pixel(x - 3, y - 2) } else { Rgb([0, 0, 0]) };
        assert_eq!(*pixel, expected, "at {x}, {y}");
    }
    assert_eq!(preprocess(8, Fit::Pad).fit(&picture(9, 4)), preprocess(8, Fit::Resize).fit(&picture(9, 4)));
}

#[test]
fn a_strip_costs_no_more_than_a_square() {
    // Resized whole, 1 x 60,000 pixels would become 224 x 13,440,000.
    let fitted = preprocess(224, Fit::Resize).fit(&RgbImage::from_pixel(1, 60_000, Rgb([7, 8, 9])));
    assert!(fitted.pixels().all(|p| *p == Rgb([7, 8, 9])));
}

#[test]
fn every_shape_fits_without_leaving_the_image() {
    // If rounding moved the box out of the image, the result would be black.
    for size in [7, 16, 32, 224] {
        for (width, height) in (1..60).flat_map(|w| [(w, 41), (w, 3), (w * 17 + 5, 97), (201, w)]) {
            let white = RgbImage::from_pixel(width, height, Rgb([255; 3]));
            let fitted = preprocess(size, Fit::Resize).fit(&white);
            assert!(fitted.pixels().all(|p| *p == Rgb([255; 3])), "{width} x {height} to {size}");
        }
    }
}

#[test]
fn normalising_follows_the_formula_and_the_plane_order() {
    let mut out = vec![f32::NAN; 12];
    preprocess(2, Fit::Resize).normalize(&[0, 51, 255, 255, 0, 0, 102, 255, 51, 51, 102, 153], &mut out);
    // (x / 255 - mean) / std by hand: red (x/255 - 0.5) / 0.5, green (x/255 - 0.25) / 0.25, blue x/255.
    let expected = [-1.0, 1.0, -0.2, -0.6, -0.2, -1.0, 3.0, 0.6, 1.0, 0.0, 0.2, 0.6];
    for (value, expected) in out.iter().zip(expected) {
        assert!((value - expected).abs() < 1e-6, "{out:?}");
    }
}

#[test]
fn the_hugging_face_file_says_the_same() {
    for fit in [Fit::Resize, Fit::Pad] {
        let before = preprocess(32, fit);
        let text = serde_json::to_string(&before.to_hugging_face()).unwrap();
        let file: PreprocessorConfig = serde_json::from_str(&text).unwrap();
        assert_eq!(Preprocess::from_hugging_face(&file).unwrap(), before);
    }
    let mut file = preprocess(32, Fit::Resize).to_hugging_face();
    file.resample = 2;
    assert_eq!(Preprocess::from_hugging_face(&file).unwrap_err(), "resample must be 3 (bicubic), found 2");
}
