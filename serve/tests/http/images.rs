//! Unusual but valid image files give the same embedding as a plain one.

use image::codecs::gif::GifEncoder;
use image::{DynamicImage, Frame, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use macrl_bundle::decode::{DecodeLimits, decode};

use crate::support::*;

async fn embedding(server: &Server, bytes: Vec<u8>) -> Vec<f32> {
    let answer = server.post_image("/embed", bytes).await;
    assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&answer.body));
    floats(&answer.json()["embeddings"][0])
}

#[tokio::test]
async fn lossless_formats_agree() {
    let server = server();
    let expected = embedding(&server, png(0)).await;
    for format in [ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP, ImageFormat::Pnm] {
        let found = embedding(&server, encode(pattern(0), format)).await;
        assert!(close(&found, &expected), "{format:?}");
    }
}

#[tokio::test]
async fn sixteen_bits_grey_and_palettes_become_rgb8() {
    let server = server();
    let wide = image::ImageBuffer::from_fn(8, 8, |x, y| {
        let Rgb(p) = *pattern(0).get_pixel(x, y);
        // v * 257 is v in 16 bits.
        Rgb(p.map(|v| u16::from(v) * 257))
    });
    let deep = encode(DynamicImage::ImageRgb16(wide), ImageFormat::Png);
    assert!(close(&embedding(&server, deep).await, &embedding(&server, png(0)).await));
    let grey = image::GrayImage::from_fn(8, 8, |x, y| Luma([(x * 20 + y) as u8]));
    let colour = RgbImage::from_fn(8, 8, |x, y| Rgb([(x * 20 + y) as u8; 3]));
    let (grey, colour) = (encode(grey, ImageFormat::Png), encode(colour, ImageFormat::Png));
    assert!(close(&embedding(&server, grey).await, &embedding(&server, colour).await));
}

#[test]
fn transparent_images_are_composed_over_black() {
    let image =
        RgbaImage::from_fn(2, 1, |x, _| if x == 0 { Rgba([200, 100, 50, 128]) } else { Rgba([200, 100, 50, 0]) });
    let decoded = decode(&encode(image, ImageFormat::Png), &DecodeLimits::default()).unwrap();
    // 200 * 128 / 255 = 100.4, 100 * 128 / 255 = 50.2, 50 * 128 / 255 = 25.1.
    assert_eq!(decoded.into_raw(), [100, 50, 25, 0, 0, 0]);
}

#[test]
fn the_first_frame_of_an_animation_is_used() {
    let mut bytes = Vec::new();
    {
        let mut encoder = GifEncoder::new(&mut bytes);
        for value in [200u8, 10] {
            encoder.encode_frame(Frame::new(RgbaImage::from_pixel(4, 4, Rgba([value, value, value, 255])))).unwrap();
        }
    }
    let decoded = decode(&bytes, &DecodeLimits::default()).unwrap();
    assert!(decoded.pixels().all(|p| p[0].abs_diff(200) <= 2), "{:?}", decoded.get_pixel(0, 0));
}

/// A JPEG with an EXIF block that says `orientation`.
fn oriented(image: &RgbImage, orientation: u8) -> Vec<u8> {
    let jpeg = encode(image.clone(), ImageFormat::Jpeg);
    // APP1: "Exif", big-endian TIFF header, one entry: tag 0x0112, type SHORT, count 1, the value.
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let mut bytes = jpeg[..2].to_vec();
    bytes.extend([0xff, 0xe1]);
    bytes.extend(((exif.len() + 2) as u16).to_be_bytes());
    bytes.extend(exif);
    bytes.extend(&jpeg[2..]);
    bytes
}

#[test]
fn exif_orientation_is_applied() {
    // Left half bright, right half dark, 32 x 16.
    let image = RgbImage::from_fn(32, 16, |x, _| Rgb([if x < 16 { 220 } else { 20 }; 3]));
    let upright = decode(&oriented(&image, 1), &DecodeLimits::default()).unwrap();
    assert_eq!(upright.dimensions(), (32, 16));
    // 6: turn clockwise; the left half comes to the top.
    let turned = decode(&oriented(&image, 6), &DecodeLimits::default()).unwrap();
    assert_eq!(turned.dimensions(), (16, 32));
    assert!(turned.get_pixel(8, 2)[0] > 200 && turned.get_pixel(8, 30)[0] < 40);
    // 3: upside down; the left half comes to the right.
    let around = decode(&oriented(&image, 3), &DecodeLimits::default()).unwrap();
    assert!(around.get_pixel(2, 8)[0] < 40 && around.get_pixel(30, 8)[0] > 200);
}

#[test]
fn exif_of_webp_with_the_prefix_of_jpeg_is_read() {
    let plain = encode(RgbImage::from_fn(6, 4, |x, _| Rgb([if x < 3 { 220 } else { 20 }; 3])), ImageFormat::WebP);
    // RIFF, VP8X with the EXIF flag and the canvas size less one, the image's own chunk, EXIF.
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    exif.truncate(32);
    let mut body = b"WEBPVP8X\x0a\0\0\0\x08\0\0\0\x05\0\0\x03\0\0".to_vec();
    body.extend(&plain[12..]);
    body.extend(b"EXIF");
    body.extend((exif.len() as u32).to_le_bytes());
    body.extend(exif);
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    let turned = decode(&bytes, &DecodeLimits::default()).unwrap();
    assert_eq!(turned.dimensions(), (4, 6));
    assert_eq!((turned.get_pixel(0, 0)[0], turned.get_pixel(0, 5)[0]), (220, 20));
}

#[test]
fn a_truncated_file_is_refused() {
    let noisy = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 97 + y * 61) as u8, (x * y) as u8, y as u8]));
    for format in
        [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Gif]
    {
        let whole = encode(noisy.clone(), format);
        assert!(decode(&whole, &DecodeLimits::default()).is_ok(), "{format:?}");
        for part in [2, 3] {
            let cut = &whole[..whole.len() * part / 4];
            assert!(decode(cut, &DecodeLimits::default()).is_err(), "{part}/4 of a {format:?}");
        }
    }
    // Bytes after the end are ignored.
    let mut jpeg = oriented(&noisy, 1);
    jpeg.extend(b"appended");
    let expected = decode(&jpeg, &DecodeLimits::default()).unwrap();
    // Without the end marker all of the image is there, twenty bytes earlier it is not.
    assert_eq!(decode(&jpeg[..jpeg.len() - 10], &DecodeLimits::default()), Ok(expected));
    assert!(decode(&jpeg[..jpeg.len() - 30], &DecodeLimits::default()).is_err());
}

#[test]
fn sizes_are_checked_on_the_header() {
    // A PNG that announces 65,000 x 65,000 pixels and holds none.
    let mut bomb = encode(RgbImage::new(1, 1), ImageFormat::Png);
    bomb[16..24].copy_from_slice(&[0, 0, 0xfd, 0xe8, 0, 0, 0xfd, 0xe8]);
    let crc = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    let error = decode(&bomb, &DecodeLimits::default()).unwrap_err().to_string();
    assert!(error.contains("65000 x 65000"), "{error}");
    let edge = DecodeLimits { max_edge: 5, ..DecodeLimits::default() };
    assert!(decode(&encode(RgbImage::new(6, 1), ImageFormat::Png), &edge).is_err());
    assert!(decode(&encode(RgbImage::new(5, 5), ImageFormat::Png), &edge).is_ok());
}

/// PNG's checksum, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
    })
}

#[tokio::test]
async fn mutated_images_never_give_a_server_error() {
    let server = server();
    let mut sources: Vec<Vec<u8>> =
        [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP, ImageFormat::Pnm, ImageFormat::Gif]
            .into_iter()
            .map(|format| encode(pattern(1), format))
            .collect();
    sources.push(oriented(&pattern(1), 6));
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for round in 0..700 {
        let mut bytes = sources[round % sources.len()].clone();
        for _ in 0..=random(6) {
            let place = random(bytes.len());
            bytes[place] = random(256) as u8;
        }
        if random(4) == 0 {
            bytes.truncate(random(bytes.len()));
        }
        let answer = server.post_image("/embed", bytes.clone()).await;
        assert!(matches!(answer.status.as_u16(), 200 | 413 | 422), "{} for {bytes:?}", answer.status);
    }
}
