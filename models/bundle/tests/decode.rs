//! Images as users have them: rotated, truncated, with colour profiles, from a phone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage};
use macrl_bundle::decode::{DecodeError, DecodeLimits, announced, announced_pixels, decode, heif};
use moxcms::ColorProfile;

fn read(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    decode(bytes, &DecodeLimits::default())
}

/// A little-endian RGB TIFF of one strip.
fn tiff(width: u16, height: u16, orientation: u16, pixels: &[u8]) -> Vec<u8> {
    let entries: [(u16, u16, u32, u32); 11] = [
        (256, 3, 1, width.into()),
        (257, 3, 1, height.into()),
        (258, 3, 3, 8 + 2 + 11 * 12 + 4), // offset of the bits per sample (8, 8, 8), after the directory
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8 + 2 + 11 * 12 + 4 + 6),
        (274, 3, 1, orientation.into()),
        (277, 3, 1, 3),
        (278, 3, 1, height.into()),
        (279, 4, 1, pixels.len() as u32),
        (284, 3, 1, 1),
    ];
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        bytes.extend(tag.to_le_bytes().iter().chain(&kind.to_le_bytes()));
        bytes.extend(count.to_le_bytes().iter().chain(&value.to_le_bytes()));
    }
    bytes.extend([0; 4]);
    bytes.extend([8, 0, 8, 0, 8, 0]);
    bytes.extend(pixels);
    bytes
}

#[test]
fn a_tiffs_orientation_is_applied() {
    // Rows: 1 2 3 / 4 5 6, as red values.
    let pixels: Vec<u8> = (1..=6u8).flat_map(|red| [red, 0, 0]).collect();
    let reds = |orientation| -> (u32, Vec<u8>) {
        let image = read(&tiff(3, 2, orientation, &pixels)).unwrap();
        (image.width(), image.pixels().map(|p| p[0]).collect())
    };
    // PIL.ImageOps.exif_transpose of the same files gives these values.
    assert_eq!(reds(1), (3, vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(reds(2), (3, vec![3, 2, 1, 6, 5, 4]));
    assert_eq!(reds(3), (3, vec![6, 5, 4, 3, 2, 1]));
    assert_eq!(reds(4), (3, vec![4, 5, 6, 1, 2, 3]));
    assert_eq!(reds(5), (2, vec![1, 4, 2, 5, 3, 6]));
    assert_eq!(reds(6), (2, vec![4, 1, 5, 2, 6, 3]));
    assert_eq!(reds(7), (2, vec![6, 3, 5, 2, 4, 1]));
    assert_eq!(reds(8), (2, vec![3, 6, 2, 5, 1, 4]));
}

/// A baseline JPEG of `width` x 40 pixels with detail in every block.
fn jpeg(width: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(width, 40, |x, y| Rgb([(x * 5 + y) as u8, (x ^ y) as u8, (x * y % 251) as u8]));
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(&image).unwrap();
    bytes
}

#[test]
fn a_jpeg_without_its_end_marker_is_read_if_all_of_the_image_is_there() {
    let telephone: Vec<u8> = b"SEFH".iter().copied().chain((0..180).map(|i| (i * 7 % 255) as u8)).collect();
    let trailers: [&[u8]; 5] = [b"", b"\xff", &[0; 5000], b"written behind the image", &telephone];
    for width in [8, 57, 64] {
        let whole = jpeg(width);
        let expected = read(&whole).unwrap();
        let image = &whole[..whole.len() - 2];
        for trailer in trailers {
            let file = [image, trailer].concat();
            assert_eq!(read(&file).as_ref(), Ok(&expected), "width {width}, {} bytes behind it", trailer.len());
        }
    }
}

#[test]
fn a_jpeg_that_was_cut_short_is_refused() {
    let whole = jpeg(57);
    for cut in [20, 21, 22, 23, 50, 100, 400] {
        let found = read(&whole[..whole.len() - 2 - cut]);
        assert!(matches!(&found, Err(DecodeError::Broken { format: "JPEG", .. })), "{cut} bytes short: {found:?}");
    }
}

/// A PNG of six RGB or grey pixels with a colour profile.
fn with_profile(profile: &ColorProfile, kind: ExtendedColorType, samples: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = PngEncoder::new(&mut bytes);
    encoder.set_icc_profile(profile.encode().unwrap()).unwrap();
    encoder.write_image(samples, 6, 1, kind).unwrap();
    bytes
}

const SIX: [[u8; 3]; 6] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 40], [12, 34, 56], [128, 128, 128]];

/// ```python
/// profile, srgb = ImageCms.ImageCmsProfile("the profile's bytes in a file"), ImageCms.createProfile("sRGB")
/// ImageCms.profileToProfile(Image.fromarray(six), profile, srgb, outputMode="RGB")             # Pillow 13
/// ```
#[test]
fn embedded_profiles_are_applied_as_pillow_does() {
    let p3 = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [213, 115, 0], [3, 35, 58], [128, 128, 128]];
    let adobe = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [224, 121, 25], [0, 28, 54], [129, 129, 129]];
    let profiles = [(ColorProfile::new_display_p3(), p3), (ColorProfile::new_adobe_rgb(), adobe)];
    for (profile, expected) in profiles {
        let opaque = read(&with_profile(&profile, ExtendedColorType::Rgb8, SIX.as_flattened())).unwrap();
        let with_alpha: Vec<u8> = SIX.iter().flat_map(|[r, g, b]| [*r, *g, *b, 255]).collect();
        let over = read(&with_profile(&profile, ExtendedColorType::Rgba8, &with_alpha)).unwrap();
        let expected: &[[u8; 3]] = &expected;
        for found in [opaque, over] {
            let pairs = found.as_raw().iter().zip(expected.as_flattened());
            let largest = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(largest <= 2, "{largest}: {found:?}");
        }
    }
    let grays =
        with_profile(&ColorProfile::new_gray_with_gamma(1.8), ExtendedColorType::L8, &[0, 40, 100, 128, 200, 255]);
    for (found, expected) in read(&grays).unwrap().pixels().zip([0u8, 53, 119, 146, 210, 255]) {
        assert!(found.0.iter().all(|v| v.abs_diff(expected) <= 2), "{found:?}, not {expected}");
    }
}

#[test]
fn a_profile_that_is_srgb_or_damaged_changes_nothing() {
    let same = read(&with_profile(&ColorProfile::new_srgb(), ExtendedColorType::Rgb8, SIX.as_flattened())).unwrap();
    assert_eq!(same.as_raw(), SIX.as_flattened());
    let whole = ColorProfile::new_display_p3().encode().unwrap();
    for length in (0..whole.len()).step_by(5) {
        let mut png = Vec::new();
        let mut encoder = PngEncoder::new(&mut png);
        encoder.set_icc_profile(whole[..length].to_vec()).unwrap();
        encoder.write_image(SIX.as_flattened(), 6, 1, ExtendedColorType::Rgb8).unwrap();
        read(&png).unwrap();
    }
}

/// Images of 64 x 48: red on the left, green above blue on the right; one is marked to be rotated by a quarter turn.
/// Made by pillow-heif (libheif 1.23): `Image.save(f, "HEIF", quality=60)`, and with `exif[0x0112] = 6`.
const COLORS: &[u8] = include_bytes!("data/colors.heic");
const TURNED: &[u8] = include_bytes!("data/colors-turned.heic");

#[test]
fn heic_is_known_by_its_brand() {
    assert_eq!(heif::format(COLORS), Some("HEIC"));
    assert_eq!(heif::format(b"\0\0\0\x1cftypavif\0\0\0\0mif1miaf"), Some("AVIF"));
    // A file whose major brand says only "still image" names its codec in a later brand.
    assert_eq!(heif::format(b"\0\0\0\x18ftypmif1\0\0\0\0heic"), Some("HEIC"));
    assert_eq!(heif::format(b"\0\0\0\x18ftypisom\0\0\0\0mp42"), None);
    for length in 0..COLORS.len().min(40) {
        let _ = heif::format(&COLORS[..length]);
    }
}

#[test]
fn heic_is_read_where_libheif_is() {
    if let Err(cause) = heif::available("HEIC") {
        let found = read(COLORS);
        assert!(matches!(&found, Err(DecodeError::NeedsLibheif { format: "HEIC", .. })), "{found:?}");
        eprintln!("not tested: libheif: {cause}");
        return;
    }
    let near = |image: &RgbImage, x, y, color: [u8; 3]| {
        let found = image.get_pixel(x, y).0;
        assert!(found.iter().zip(color).all(|(a, b)| a.abs_diff(b) <= 3), "({x}, {y}): {found:?}, not {color:?}");
    };
    let (red, green, blue) = ([200, 40, 30], [30, 180, 60], [40, 60, 210]);
    let image = read(COLORS).unwrap();
    assert_eq!((image.dimensions(), announced_pixels(COLORS)), ((64, 48), Some(64 * 48)));
    [(5, 5, red), (5, 40, red), (60, 5, green), (60, 40, blue)].iter().for_each(|(x, y, c)| near(&image, *x, *y, *c));
    let turned = read(TURNED).unwrap();
    assert_eq!(turned.dimensions(), (48, 64));
    [(5, 5, red), (40, 5, red), (40, 60, green), (5, 60, blue)].iter().for_each(|(x, y, c)| near(&turned, *x, *y, *c));

    for max_pixels in [64 * 48 - 1, 10] {
        let refused = decode(COLORS, &DecodeLimits::of_pixels(max_pixels));
        assert!(matches!(refused, Err(DecodeError::TooLarge { width: 64, height: 48, .. })), "{refused:?}");
    }
    let tight = DecodeLimits { max_alloc: 1000, ..DecodeLimits::default() };
    assert_eq!(decode(COLORS, &tight), Err(DecodeError::TooMuchMemory { max_alloc: 1000 }));
    // Damaged data give an error or an image, and never end the process.
    for length in (0..COLORS.len()).step_by(7) {
        let _ = read(&COLORS[..length]);
        let mut bytes = COLORS.to_vec();
        bytes[length] ^= 0x5a;
        let _ = read(&bytes);
    }
}

#[test]
fn a_header_is_refused_with_the_message_of_the_whole_file() {
    let ask = |bytes: &[u8], limits: &DecodeLimits| announced(std::io::Cursor::new(bytes), limits);
    let png = with_profile(&ColorProfile::new_srgb(), ExtendedColorType::Rgb8, SIX.as_flattened());
    assert_eq!(ask(&png, &DecodeLimits::DEFAULT), Ok(6));
    let small = DecodeLimits::of_pixels(5);
    for (bytes, limits) in [
        (&png[..], &small),
        (&png[..20], &small),
        (b"no image at all", &small),
        (b"", &small),
        (&jpeg(8)[..30], &small),
    ] {
        assert_eq!(ask(bytes, limits).unwrap_err(), decode(bytes, limits).unwrap_err(), "{} bytes", bytes.len());
    }
    assert_eq!(ask(COLORS, &small).unwrap_err(), decode(COLORS, &small).unwrap_err());
    assert_eq!(ask(&COLORS[..40], &small).unwrap_err(), decode(&COLORS[..40], &small).unwrap_err());
    if heif::available("HEIC").is_ok() {
        assert_eq!(ask(COLORS, &DecodeLimits::DEFAULT), Ok(64 * 48));
    }
}
