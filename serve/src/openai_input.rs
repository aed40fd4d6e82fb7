//! `input` of `/v1/embeddings`: what OpenAI's clients put there, read without holding more of it than its images.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::limits::MOST_INPUTS;

/// What an input should be.
pub(crate) const EXPECTED: &str = "images are expected as data URIs (data:image/png;base64,...)";

/// The images of a request.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Input {
    /// Data URIs or base64; none beyond the [`MOST_INPUTS`] first.
    pub(crate) images: Vec<String>,
    /// Entries of the list, or 1.
    pub(crate) count: usize,
    /// The first entry that is no image, and what it is instead.
    pub(crate) wrong: Option<(usize, String)>,
}

impl Input {
    fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Image(image) if self.images.len() < MOST_INPUTS => self.images.push(image),
            Piece::Tokens if self.wrong.is_none() => self.wrong = Some((self.count, TOKENS.into())),
            Piece::Other(what) if self.wrong.is_none() => self.wrong = Some((self.count, what.into())),
            _ => {}
        }
        self.count += 1;
    }
}

/// One entry.
enum Piece {
    Image(String),
    Tokens,
    Other(&'static str),
}

const TOKENS: &str =
    "token ids; this model embeds images, not text (LangChain tokenizes unless check_embedding_ctx_length is False)";

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "`input` to be an image or a list of images; {EXPECTED}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Input, E> {
        self.visit_string(text.to_string())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Input, E> {
        Ok(Input { images: vec![text], count: 1, wrong: None })
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Input, M::Error> {
        let mut input = Input::default();
        input.add(PieceVisitor.visit_map(map)?);
        Ok(input)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut entries: S) -> Result<Input, S::Error> {
        let mut input = Input::default();
        while let Some(piece) = entries.next_element()? {
            let number = matches!(piece, Piece::Tokens);
            input.add(piece);
            if number {
                // One list of token ids is one input, however long.
                while entries.next_element::<IgnoredAny>()?.is_some() {}
            }
        }
        Ok(input)
    }
}

impl<'de> Deserialize<'de> for Piece {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PieceVisitor)
    }
}

struct PieceVisitor;

impl<'de> Visitor<'de> for PieceVisitor {
    type Value = Piece;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "an image; {EXPECTED}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Piece, E> {
        Ok(Piece::Image(text.to_string()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Piece, E> {
        Ok(Piece::Image(text))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Piece, E> {
        Ok(Piece::Tokens)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Piece, E> {
        Ok(Piece::Tokens)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Piece, E> {
        Ok(Piece::Other("numbers"))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Piece, E> {
        Ok(Piece::Other("true or false"))
    }

    fn visit_unit<E: Error>(self) -> Result<Piece, E> {
        Ok(Piece::Other("null"))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut entries: S) -> Result<Piece, S::Error> {
        while entries.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Piece::Tokens)
    }

    /// `{"type": "image_url", "image_url": {"url": ...}}`, the address without its object, or `{"image": ...}`.
    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Piece, M::Error> {
        let (mut image, mut text) = (None, false);
        while let Some(key) = map.next_key::<Cow<str>>()? {
            match key.as_ref() {
                "image_url" | "image" => image = Some(map.next_value::<Address>()?.0),
                other => {
                    text |= other == "text";
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(match image {
            Some(image) => Piece::Image(image),
            None if text => Piece::Other("an object of type `text`"),
            None => Piece::Other("an object without `image_url`"),
        })
    }
}

/// A string, or `{"url": string}`.
struct Address(String);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AddressVisitor)
    }
}

struct AddressVisitor;

impl<'de> Visitor<'de> for AddressVisitor {
    type Value = Address;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "a data URI or {{\"url\": data URI}}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Address, E> {
        Ok(Address(text.to_string()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Address, E> {
        Ok(Address(text))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Address, M::Error> {
        let mut url = None;
        while let Some(key) = map.next_key::<Cow<str>>()? {
            if key == "url" {
                url = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        url.map(Address).ok_or_else(|| M::Error::missing_field("url"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(json: &str) -> Input {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn images_are_found_in_every_shape() {
        for json in [
            r#""x""#,
            r#"["x"]"#,
            r#"[{"type": "image_url", "image_url": {"url": "x", "detail": "low"}}]"#,
            r#"{"type": "image_url", "image_url": {"url": "x"}}"#,
            r#"[{"type": "input_image", "image_url": "x"}]"#,
            r#"[{"image": "x"}]"#,
        ] {
            assert_eq!(input(json), Input { images: vec!["x".into()], count: 1, wrong: None }, "{json}");
        }
    }

    #[test]
    fn everything_else_is_named() {
        for (json, index, word, count) in [
            ("[1, 2, 3]", 0, "token ids", 1),
            ("[[1, 2], [3]]", 0, "token ids", 1),
            (r#"["x", [1]]"#, 1, "token ids", 2),
            (r#"["x", null]"#, 1, "null", 2),
            (r#"[{"type": "text", "text": "a cat"}]"#, 0, "type `text`", 1),
            (r#"[{}, {}]"#, 0, "without `image_url`", 2),
        ] {
            let input = input(json);
            let (found, what) = input.wrong.unwrap();
            assert!(found == index && what.contains(word) && input.count == count, "{json}: {what}");
        }
        for json in ["3", "true", r#"[{"image_url": 3}]"#, r#"[{"image_url": {"href": "x"}}]"#] {
            assert!(serde_json::from_str::<Input>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn no_more_than_the_most_are_held() {
        let json = format!("[{}\"\"]", "\"\",".repeat(5000));
        let input = input(&json);
        assert_eq!((input.images.len(), input.count), (MOST_INPUTS, 5001));
    }
}
