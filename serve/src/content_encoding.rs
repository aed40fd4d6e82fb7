//! Decodes bodies with a `Content-Encoding`, within the limits for a plain body.

use std::io::{self, Read};

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use brotli_decompressor::Decompressor;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use crate::budget::Reservation;
use crate::error::ApiError;

/// Codings of one body; more are refused.
const MAX_CODINGS: usize = 3;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Coding {
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// The codings of a body in the order in which they were applied.
pub(crate) fn codings(headers: &HeaderMap) -> Result<Vec<Coding>, ApiError> {
    let mut found = Vec::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        for name in value.split(',').map(str::trim) {
            found.push(match name {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => Coding::Gzip,
                "deflate" => Coding::Deflate,
                "br" => Coding::Brotli,
                "zstd" => Coding::Zstd,
                other => {
                    return Err(ApiError::UnsupportedEncoding(format!(
                        "`{}`",
                        other.chars().take(100).collect::<String>()
                    )));
                }
            });
        }
    }
    if found.len() > MAX_CODINGS {
        return Err(ApiError::UnsupportedEncoding(format!("{} codings, one upon the other", found.len())));
    }
    Ok(found)
}

/// Decodes a body.  `reservation` grows with the decoded bytes; `full` makes the error for an exhausted budget.
pub(crate) fn decode(
    mut bytes: Bytes,
    codings: &[Coding],
    limit: usize,
    reservation: &mut Reservation,
    full: impl Fn() -> ApiError,
) -> Result<Bytes, ApiError> {
    for coding in codings.iter().rev() {
        let broken = |e: io::Error| ApiError::malformed(format!("the {} body cannot be unpacked: {e}", coding.name()));
        let mut out = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        let mut reader = reader(*coding, &bytes).map_err(broken)?;
        loop {
            let read = reader.read(&mut chunk).map_err(broken)?;
            if read == 0 {
                break;
            }
            if out.len() + read > limit {
                return Err(ApiError::BodyTooLarge(limit));
            }
            if !reservation.grow(read) {
                return Err(full());
            }
            out.extend_from_slice(&chunk[..read]);
        }
        drop(reader);
        bytes = out.into();
    }
    Ok(bytes)
}

fn reader<'a>(coding: Coding, bytes: &'a [u8]) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match coding {
        Coding::Gzip => Box::new(MultiGzDecoder::new(bytes)),
        // HTTP's `deflate` has zlib's header, but some clients omit it.
        Coding::Deflate if has_zlib_header(bytes) => Box::new(ZlibDecoder::new(bytes)),
        Coding::Deflate => Box::new(DeflateDecoder::new(bytes)),
        Coding::Brotli => Box::new(Decompressor::new(bytes, 4096)),
        Coding::Zstd => Box::new(ZstdFrames(frame(bytes)?)),
    })
}

/// Reads all frames of a zstd body.
struct ZstdFrames<'a>(StreamingDecoder<&'a [u8], FrameDecoder>);

/// Largest window of a frame; `zstd -19` uses 8 MiB.
const ZSTD_WINDOW: u64 = 32 << 20;

fn frame(bytes: &[u8]) -> io::Result<StreamingDecoder<&[u8], FrameDecoder>> {
    StreamingDecoder::new_with_max_window_size(bytes, ZSTD_WINDOW).map_err(io::Error::other)
}

impl Read for ZstdFrames<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.0.read(buffer)?;
            let rest = *self.0.get_ref();
            if read > 0 || rest.is_empty() {
                return Ok(read);
            }
            self.0 = frame(rest)?;
        }
    }
}

/// Whether the bytes begin as RFC 1950 says: method 8, and the first two bytes as a number divisible by 31.
fn has_zlib_header(bytes: &[u8]) -> bool {
    matches!(bytes, [first, second, ..] if first & 15 == 8 && ((u16::from(*first) << 8) | u16::from(*second)) % 31 == 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;
    use crate::budget::Budget;

    fn written<W: Write>(mut encoder: W, finish: impl FnOnce(W) -> io::Result<Vec<u8>>) -> Vec<u8> {
        encoder.write_all(TEXT).unwrap();
        finish(encoder).unwrap()
    }

    const TEXT: &[u8] = b"a body, a body, a body, and a body";

    /// RFC 7932: window 16, one uncompressed meta-block, an empty last one.
    fn brotli() -> Vec<u8> {
        let head = (((TEXT.len() as u32 - 1) << 4) | (1 << 20)).to_le_bytes();
        [&head[..3], TEXT, &[3]].concat()
    }

    /// RFC 8878: one segment with its size, one raw block, which is the last.
    fn zstd() -> Vec<u8> {
        let (size, block) = ((TEXT.len() as u32).to_le_bytes(), (((TEXT.len() as u32) << 3) | 1).to_le_bytes());
        [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0], &size[..], &block[..3], TEXT].concat()
    }

    fn encoded() -> Vec<(Coding, Vec<u8>)> {
        vec![
            (Coding::Gzip, written(GzEncoder::new(Vec::new(), Compression::default()), GzEncoder::finish)),
            (Coding::Deflate, written(ZlibEncoder::new(Vec::new(), Compression::default()), ZlibEncoder::finish)),
            (Coding::Deflate, written(DeflateEncoder::new(Vec::new(), Compression::default()), DeflateEncoder::finish)),
            (Coding::Brotli, brotli()),
            (Coding::Zstd, zstd()),
        ]
    }

    fn decoded(bytes: Vec<u8>, codings: &[Coding], limit: usize, budget: usize) -> Result<Bytes, ApiError> {
        let budget = Budget::new(budget);
        let outcome =
            decode(bytes.into(), codings, limit, &mut budget.reservation(), || ApiError::QueueFull { retry_after: 1 });
        assert_eq!(budget.used(), 0);
        outcome
    }

    #[test]
    fn every_coding_is_decoded_within_the_limits() {
        for (coding, bytes) in encoded() {
            assert_eq!(decoded(bytes.clone(), &[coding], TEXT.len(), 1000).unwrap(), TEXT, "{coding:?}");
            let large = decoded(bytes.clone(), &[coding], TEXT.len() - 1, 1000);
            assert_eq!(large, Err(ApiError::BodyTooLarge(TEXT.len() - 1)), "{coding:?}");
            let full = decoded(bytes.clone(), &[coding], 1000, TEXT.len() - 1);
            assert_eq!(full, Err(ApiError::QueueFull { retry_after: 1 }), "{coding:?}");
            // A truncated or corrupted body gives an error that names the coding, or other bytes, but never a panic.
            for end in 0..bytes.len() {
                if let Err(error) = decoded(bytes[..end].to_vec(), &[coding], 1000, 1000) {
                    assert!(error.to_string().contains(coding.name()), "{error}");
                }
                let mut spoilt = bytes.clone();
                spoilt[end] ^= 0x55;
                let _ = decoded(spoilt, &[coding], 1000, 1000);
            }
            assert!(decoded(bytes[..bytes.len() / 2].to_vec(), &[coding], 1000, 1000).is_err(), "{coding:?}");
        }
        let frames = decoded([zstd(), zstd()].concat(), &[Coding::Zstd], 1000, 1000).unwrap();
        assert_eq!(frames, [TEXT, TEXT].concat());
        let twice = written(GzEncoder::new(Vec::new(), Compression::fast()), GzEncoder::finish);
        let mut outer = GzEncoder::new(Vec::new(), Compression::fast());
        outer.write_all(&twice).unwrap();
        assert_eq!(decoded(outer.finish().unwrap(), &[Coding::Gzip, Coding::Gzip], 1000, 1000).unwrap(), TEXT);
    }

    #[test]
    fn codings_are_read_from_all_headers_and_unknown_ones_are_refused() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, value.parse().unwrap());
            }
            codings(&headers)
        };
        assert_eq!(of(&[]), Ok(vec![]));
        assert_eq!(of(&["identity", ""]), Ok(vec![]));
        assert_eq!(of(&["GZIP, br", "zstd"]), Ok(vec![Coding::Gzip, Coding::Brotli, Coding::Zstd]));
        assert_eq!(of(&["compress"]), Err(ApiError::UnsupportedEncoding("`compress`".into())));
        assert!(of(&["gzip,gzip,gzip,gzip"]).is_err());
    }
}
