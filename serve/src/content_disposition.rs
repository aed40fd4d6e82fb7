//! Parses the `Content-Disposition` of a form's part, in every encoding of names that clients use.
//!
//! Browsers, curl and Python send plain UTF-8.  .NET sends both RFC 2047's `=?utf-8?B?...?=` and RFC 5987's `filename*`.

use base64::Engine as _;
use encoding_rs::{Encoding, UTF_8, mem::decode_latin1};

use crate::text_encoding::{BASE64, decode_percent};

/// The names of a part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ContentDisposition {
    /// Name of the form field.
    pub(crate) name: Option<String>,
    /// Name of the uploaded file, as the client gives it.
    pub(crate) file_name: Option<String>,
}

impl ContentDisposition {
    pub(crate) fn parse(value: &[u8]) -> Self {
        let (mut name, mut plain, mut extended) = (None, None, None);
        for (attribute, value) in parameters(value) {
            match attribute.as_str() {
                "name" => name = Some(decode_words(&text(&value))),
                "filename" => plain = Some(decode_words(&text(&value))),
                "filename*" => extended = ext_value(&value),
                _ => {}
            }
        }
        Self { name, file_name: extended.or(plain) }
    }
}

/// The parameters after the first `;`: names in lower case, values without their quotes.
fn parameters(value: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = after(value, b';');
    while let Some(at) = rest.iter().position(|b| *b == b'=') {
        // An attribute without a value may stand before this one.
        let attribute = String::from_utf8_lossy(&rest[..at]).to_ascii_lowercase();
        let attribute = attribute.rsplit(';').next().unwrap_or_default().trim().to_string();
        rest = rest[at + 1..].trim_ascii_start();
        let content = if rest.first() == Some(&b'"') {
            let (content, left) = quoted(&rest[1..]);
            rest = left;
            content
        } else {
            let end = rest.iter().position(|b| *b == b';').unwrap_or(rest.len());
            let content = rest[..end].trim_ascii().to_vec();
            rest = &rest[end..];
            content
        };
        rest = after(rest, b';');
        found.push((attribute, content));
    }
    found
}

fn after(bytes: &[u8], separator: u8) -> &[u8] {
    bytes.iter().position(|b| *b == separator).map_or(&[], |at| &bytes[at + 1..])
}

/// The text before the closing quote, and what follows it.  `\` escapes quotes and itself; before other characters it is
/// literal, as in a Windows path.
fn quoted(bytes: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut content = Vec::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, bytes.get(at + 1)) {
            (b'\\', Some(next @ (b'"' | b'\\'))) => {
                content.push(*next);
                at += 1;
            }
            (b'"', _) => return (content, &bytes[at + 1..]),
            _ => content.push(*byte),
        }
        at += 1;
    }
    (content, &[])
}

/// UTF-8, or Latin-1 if the bytes are not UTF-8: different bytes stay different names.
fn text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| decode_latin1(bytes).into_owned(), str::to_string)
}

fn in_charset(label: &[u8], bytes: &[u8]) -> Option<String> {
    let encoding = Encoding::for_label(label)?;
    encoding.decode_without_bom_handling_and_without_replacement(bytes).map(|text| text.into_owned())
}

/// RFC 5987: `charset'language'percent-encoded`.
fn ext_value(value: &[u8]) -> Option<String> {
    let mut parts = value.splitn(3, |b| *b == b'\'');
    let (charset, _, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    in_charset(charset, &decode_percent(encoded))
}

/// Decodes RFC 2047's `=?charset?B|Q?text?=`, several of which are separated by spaces.  If one cannot be decoded, the text
/// stays as it is.
fn decode_words(text: &str) -> String {
    if !text.trim_start().starts_with("=?") {
        return text.to_string();
    }
    let mut runs: Vec<(String, Vec<u8>)> = Vec::new();
    for word in text.split_ascii_whitespace() {
        let Some((charset, bytes)) = word_bytes(word) else { return text.to_string() };
        match runs.last_mut() {
            // The bytes of one character may be split between two words.
            Some((last, all)) if *last == charset => all.extend(bytes),
            _ => runs.push((charset, bytes)),
        }
    }
    let decoded: Option<String> = runs.iter().map(|(charset, bytes)| in_charset(charset.as_bytes(), bytes)).collect();
    decoded.unwrap_or_else(|| text.to_string())
}

fn word_bytes(word: &str) -> Option<(String, Vec<u8>)> {
    let mut parts = word.strip_prefix("=?")?.strip_suffix("?=")?.split('?');
    let (charset, coding, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    // RFC 2231 allows a language behind the charset.
    let charset = charset.split('*').next().unwrap_or(UTF_8.name()).to_ascii_lowercase();
    let bytes = match coding {
        "B" | "b" => BASE64.decode(encoded).ok()?,
        "Q" | "q" => decode_percent(encoded.replace('_', " ").replace('%', "%25").replace('=', "%").as_bytes()),
        _ => return None,
    };
    parts.next().is_none().then_some((charset, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(value: &[u8]) -> (String, String) {
        let ContentDisposition { name, file_name } = ContentDisposition::parse(value);
        (name.unwrap_or_default(), file_name.unwrap_or_default())
    }

    #[test]
    fn every_encoding_of_a_name_is_decoded() {
        for (value, file_name) in [
            (r#"form-data; name="n"; filename="a b.png""#, "a b.png"),
            ("form-data;name=n;filename=a.png", "a.png"),
            ("form-data; NAME=n; FileName = a.png", "a.png"),
            ("form-data; odd; name=n; odd; filename=a.png", "a.png"),
            (r#"form-data; name="n"; filename="Größe.png""#, "Größe.png"),
            (r#"form-data; name="n"; filename="a\"b\\c;d=e.png""#, r#"a"b\c;d=e.png"#),
            (r#"form-data; name="n"; filename="C:\photos\a.png""#, r"C:\photos\a.png"),
            (
                r#"form-data; name=n; filename="=?utf-8?B?R3LDtsOfZS5wbmc=?="; filename*=utf-8''Gr%C3%B6%C3%9Fe.png"#,
                "Größe.png",
            ),
            (r#"form-data; name=n; filename="=?utf-8?B?R3LDtsOfZS5wbmc=?=""#, "Größe.png"),
            (r#"form-data; name=n; filename="=?UTF-8?Q?Gr=C3=B6=C3=9Fe_2.png?=""#, "Größe 2.png"),
            // One character is split between two words.
            (r#"form-data; name=n; filename="=?utf-8?B?R3LD?= =?utf-8?B?tsOfZS5wbmc=?=""#, "Größe.png"),
            (r#"form-data; name=n; filename="=?iso-8859-1?Q?Gr=F6=DFe.png?=""#, "Größe.png"),
            (r#"form-data; name=n; filename*="ISO-8859-1'de'Gr%F6%DFe.png""#, "Größe.png"),
            ("form-data; name=n; filename*=UTF-8''%e2%82%ac%20rates.png; filename=rates.png", "€ rates.png"),
            // What cannot be decoded stays as it is.
            (r#"form-data; name=n; filename="=?utf-8?B?%%?=""#, "=?utf-8?B?%%?="),
            (r#"form-data; name=n; filename="=?klingon?B?R3LD?=""#, "=?klingon?B?R3LD?="),
            ("form-data; name=n; filename=a.png; filename*=utf-8''%ff", "a.png"),
            ("form-data; name=n; filename=100%25.png", "100%25.png"),
            (r#"form-data; name=n; filename="unclosed"#, "unclosed"),
        ] {
            assert_eq!(names(value.as_bytes()), ("n".into(), file_name.into()), "{value}");
        }
        assert_eq!(names(b"form-data; name=n; filename=\"Gr\xf6\xdfe.png\""), ("n".into(), "Größe.png".into()));
        assert_eq!(names(r#"form-data; name="=?utf-8?B?R3LDtsOfZQ==?=""#.as_bytes()), ("Größe".into(), String::new()));
        for value in ["", ";", "form-data", "form-data; =", "form-data; name", "=;=;=\"", "form-data; filename*=x"] {
            assert_eq!(ContentDisposition::parse(value.as_bytes()).file_name, None, "{value}");
        }
    }
}
