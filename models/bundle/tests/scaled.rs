//! JPEGs decoded at a part of their size, beside the same files decoded whole.
//!
//! The files in data/scaled are waves and two flat boxes, 157 x 93 pixels, written by Pillow 13 with quality 85: the samplings by
//! `subsampling=0` (444), 1 (422) and 2 (420, and the others in colour), `restart_marker_blocks=3`, `exif` with orientation 6,
//! `progressive=True`, mode CMYK, and `keep_rgb=True`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use image::RgbImage;
use macrl_bundle::decode::{DecodeError, DecodeLimits, decode, decode_to};
use moxcms::ColorProfile;

const FILES: [(&str, &[u8]); 5] = [
    ("444", include_bytes!("data/scaled/444.jpg")),
    ("422", include_bytes!("data/scaled/422.jpg")),
    ("420", include_bytes!("data/scaled/420.jpg")),
    ("restart", include_bytes!("data/scaled/restart.jpg")),
    ("grey", include_bytes!("data/scaled/grey.jpg")),
];
const TURNED: &[u8] = include_bytes!("data/scaled/turned.jpg");
const OTHERS: [&[u8]; 3] = [
    include_bytes!("data/scaled/progressive.jpg"),
    include_bytes!("data/scaled/cmyk.jpg"),
    include_bytes!("data/scaled/rgb.jpg"),
];
/// The shorter edge of 157 x 93 pixels, and what it must keep for 1/2, 1/4 and 1/8.
const SHORTEST: u32 = 93;
const FACTORS: [(u32, u32); 3] = [(2, 46), (4, 23), (8, 11)];

fn whole(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    decode(bytes, &DecodeLimits::default())
}

fn reduced(bytes: &[u8], shortest: u32) -> Result<RgbImage, DecodeError> {
    decode_to(bytes, &DecodeLimits::default(), Some(shortest))
}

/// Mean difference in grey levels between a reduced image and the means of the whole one's squares; edges that are no whole
/// square are left out.
fn difference(whole: &RgbImage, reduced: &RgbImage, factor: u32) -> f64 {
    let (mut total, mut count) = (0.0, 0.0);
    for y in 0..whole.height() / factor {
        for x in 0..whole.width() / factor {
            for channel in 0..3 {
                let square = (0..factor * factor).map(|i| (factor * x + i % factor, factor * y + i / factor));
                let sum: f64 = square.map(|(x, y)| f64::from(whole.get_pixel(x, y)[channel])).sum();
                total += (sum / f64::from(factor * factor) - f64::from(reduced.get_pixel(x, y)[channel])).abs();
                count += 1.0;
            }
        }
    }
    total / count
}

#[test]
fn a_reduced_image_is_the_whole_one_made_smaller() {
    for (name, bytes) in FILES {
        let exact = whole(bytes).unwrap();
        for (factor, shortest) in FACTORS {
            let small = reduced(bytes, shortest).unwrap();
            let rounded = |length: u32| (length + factor / 2) / factor;
            assert_eq!(small.dimensions(), (rounded(exact.width()), rounded(exact.height())), "{name} 1/{factor}");
            let difference = difference(&exact, &small, factor);
            assert!(difference < 2.0, "{name} 1/{factor}: {difference}");
        }
    }
}

#[test]
fn a_picture_is_turned_as_its_file_says() {
    for (_, shortest) in FACTORS {
        let upright = image::imageops::rotate90(&reduced(FILES[2].1, shortest).unwrap());
        assert_eq!(reduced(TURNED, shortest).unwrap(), upright);
    }
}

#[test]
fn what_is_not_more_than_twice_as_large_stays_as_it_is() {
    for (_, bytes) in FILES {
        for shortest in [47, SHORTEST, 1000, u32::MAX] {
            assert_eq!(reduced(bytes, shortest), whole(bytes));
        }
        assert_eq!(decode_to(bytes, &DecodeLimits::default(), None), whole(bytes));
        assert_eq!(reduced(bytes, 0).unwrap().width().min(reduced(bytes, 0).unwrap().height()), 12);
    }
}

#[test]
fn other_kinds_are_decoded_whole() {
    for bytes in OTHERS {
        assert_eq!(reduced(bytes, 11), whole(bytes));
        assert_eq!(whole(bytes).unwrap().dimensions(), (157, 93));
    }
}

#[test]
fn an_embedded_profile_is_applied() {
    let profile = ColorProfile::new_display_p3().encode().unwrap();
    let mut segment = b"ICC_PROFILE\0\x01\x01".to_vec();
    segment.extend(profile);
    let mut bytes = vec![0xff, 0xd8, 0xff, 0xe2];
    bytes.extend((segment.len() as u16 + 2).to_be_bytes());
    bytes.extend(segment);
    bytes.extend(&FILES[2].1[2..]);
    let (with, without) = (reduced(&bytes, 11).unwrap(), reduced(FILES[2].1, 11).unwrap());
    assert!(difference(&without, &with, 1) > 3.0, "display P3 is no sRGB");
    let difference = difference(&whole(&bytes).unwrap(), &with, 8);
    assert!(difference < 3.0, "{difference}");
}

#[test]
fn a_file_that_ends_early_is_what_it_is_when_decoded_whole() {
    for (name, bytes) in FILES {
        for length in (0..bytes.len()).step_by(23).chain(bytes.len() - 40..bytes.len()) {
            let cut = &bytes[..length];
            match (whole(cut), reduced(cut, 11)) {
                (Ok(exact), Ok(small)) => assert_eq!(exact, small, "{name} of {length} bytes is no whole file"),
                (exact, small) => assert_eq!(exact, small, "{name} of {length} bytes"),
            }
        }
    }
}

#[test]
fn damaged_files_are_refused_or_read_without_a_panic() {
    let mut state = 1u32;
    let mut next = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    let (mut read, mut refused) = (0, 0);
    for (_, bytes) in FILES {
        for _ in 0..150 {
            let mut bytes = bytes.to_vec();
            for _ in 0..=next(3) {
                let at = next(bytes.len());
                bytes[at] = next(256) as u8;
            }
            for (_, shortest) in FACTORS {
                match reduced(&bytes, shortest) {
                    Ok(image) => read += usize::from(image.width() > 0),
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(read > 500 && refused > 50, "{read} read, {refused} refused");
}
