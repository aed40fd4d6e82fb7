//! Checks that a JPEG file contains its whole image.  The decoder fills a truncated image with grey, and the embedding
//! of a grey area looks like any other.

use image::DynamicImage;

/// Bytes that are appended to test whether the image is complete: unlikely as image data, and without 0xff, which would
/// start a marker.
const NOISE: [u8; 16] =
    [0x9d, 0x31, 0xe6, 0x5b, 0x0c, 0xa7, 0x72, 0xd8, 0x1f, 0xb4, 0x68, 0xc3, 0x2e, 0xf5, 0x46, 0x8a];

/// Number of appended bytes: more than several blocks of the largest kind need.
const NOISE_BYTES: usize = 4096;

/// Whether `bytes` contain all of the image that the decoder made of them.
///
/// A file whose markers lead to the end marker is complete.  Some phones omit the end marker and may add data of their
/// own after the image.  Such an image is complete if other bytes after it decode to the same pixels.  A progressive
/// image without an end marker counts as incomplete, since any of its scans could be missing.
pub(super) fn is_whole(bytes: &[u8], image: &DynamicImage, again: impl Fn(&[u8]) -> Option<DynamicImage>) -> bool {
    match walk(bytes) {
        End::Marker => true,
        End::Nowhere { progressive: true } => false,
        End::Nowhere { progressive: false } => {
            let noise = NOISE.iter().cycle().take(NOISE_BYTES);
            // A final 0xff, half of an end marker, would turn the first appended byte into a marker.
            let kept = bytes.iter().rposition(|b| *b != 0xff).map_or(0, |last| last + 1);
            let longer: Vec<u8> = bytes[..kept].iter().chain(noise).copied().chain([0xff, 0xd9]).collect();
            again(&longer).is_some_and(|image_again| image_again.as_bytes() == image.as_bytes())
        }
    }
}

enum End {
    /// The end-of-image marker was found.
    Marker,
    /// The file has no end-of-image marker.
    Nowhere { progressive: bool },
}

/// Follows the markers from the start of the file to the end-of-image marker.
fn walk(bytes: &[u8]) -> End {
    let (mut at, mut progressive) = (2, false);
    while let Some(offset) = bytes.get(at..).and_then(|rest| rest.iter().position(|b| *b == 0xff)) {
        at += offset + 1;
        match bytes.get(at) {
            // End of the image.
            Some(0xd9) => return End::Marker,
            // A stuffed byte, padding, a restart marker or a stray start marker: the data continue.
            Some(0x00 | 0x01 | 0xff | 0xd0..=0xd8) => {}
            // A segment with its length.  After a start-of-scan segment, its data are searched for the next marker.
            Some(kind) => {
                progressive |= matches!(kind, 0xc2 | 0xc6 | 0xca | 0xce);
                match bytes.get(at + 1..at + 3) {
                    Some(length) => at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                    None => break,
                }
            }
            None => break,
        }
    }
    End::Nowhere { progressive }
}
