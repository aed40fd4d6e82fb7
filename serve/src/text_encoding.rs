//! Base64 and percent encoding.

use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// Base64 with or without its final `=`.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);

/// The URL-safe alphabet: `-` and `_` for `+` and `/`.
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

/// Decodes base64 in either alphabet, with white space and percent encoding as they occur in data URIs.
pub(crate) fn decode_base64(text: &str) -> Result<Vec<u8>, base64::DecodeError> {
    let either = |text: &[u8]| {
        BASE64.decode(text).or_else(|error| match error {
            base64::DecodeError::InvalidByte(_, b'-' | b'_') => BASE64_URL.decode(text),
            base64::DecodeError::InvalidByte(_, b'%') => BASE64.decode(decode_percent(text)),
            error => Err(error),
        })
    };
    if text.bytes().any(|b| b.is_ascii_whitespace()) {
        either(text.split_ascii_whitespace().collect::<String>().as_bytes())
    } else {
        either(text.as_bytes())
    }
}

/// Vectors in OpenAI's `encoding_format: base64`: little-endian f32.
pub(crate) fn encode_vector(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    BASE64.encode(bytes)
}

/// Replaces `%41` by `A`; a `%` that begins no such code stays.
pub(crate) fn decode_percent(bytes: &[u8]) -> Vec<u8> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out
}

/// Percent-encodes everything but letters, digits and `-._~`.
pub(crate) fn encode_percent(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
