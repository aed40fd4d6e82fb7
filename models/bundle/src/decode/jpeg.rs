//! Whether a JPEG holds all of its image.  The decoder fills up a file that was cut short with grey, and an embedding of
//! grey looks like any other.

use image::DynamicImage;

/// What stands behind the bytes when it is asked whether they are enough: samples that no image goes on with, and no 0xff,
/// which would be a marker.
const NOISE: [u8; 16] =
    [0x9d, 0x31, 0xe6, 0x5b, 0x0c, 0xa7, 0x72, 0xd8, 0x1f, 0xb4, 0x68, 0xc3, 0x2e, 0xf5, 0x46, 0x8a];

/// Bytes of noise: more than a few blocks of the largest kind take.
const NOISE_BYTES: usize = 4096;

/// Whether the decoder had all of the image that it made of `bytes`.
///
/// A file whose markers lead to the end marker is whole.  Some telephones leave the end marker out, with or without data
/// of their own behind the image.  Then the image is whole if what follows the bytes makes no difference to it.
/// Without an end marker a progressive image is never whole, since any of its scans could be missing.
pub(super) fn is_whole(bytes: &[u8], image: &DynamicImage, again: impl Fn(&[u8]) -> Option<DynamicImage>) -> bool {
    match walk(bytes) {
        End::Marker => true,
        End::Nowhere { progressive: true } => false,
        End::Nowhere { progressive: false } => {
            let noise = NOISE.iter().cycle().take(NOISE_BYTES);
            // A 0xff at the end, half of an end marker, would make a marker of the noise.
            let kept = bytes.iter().rposition(|b| *b != 0xff).map_or(0, |last| last + 1);
            let longer: Vec<u8> = bytes[..kept].iter().chain(noise).copied().chain([0xff, 0xd9]).collect();
            again(&longer).is_some_and(|image_again| image_again.as_bytes() == image.as_bytes())
        }
    }
}

enum End {
    /// The end-of-image marker is there.
    Marker,
    /// It is not.
    Nowhere { progressive: bool },
}

/// Follows the markers.
fn walk(bytes: &[u8]) -> End {
    let (mut at, mut progressive) = (2, false);
    while let Some(offset) = bytes.get(at..).and_then(|rest| rest.iter().position(|b| *b == 0xff)) {
        at += offset + 1;
        match bytes.get(at) {
            // End of the image.
            Some(0xd9) => return End::Marker,
            // A stuffed byte, padding, a restart, a stray start: data goes on.
            Some(0x00 | 0x01 | 0xff | 0xd0..=0xd8) => {}
            // A segment with its length; after the one that starts a scan, its data are searched for the next marker.
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
