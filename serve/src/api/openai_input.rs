//! `input` of `/v1/embeddings`: parses what OpenAI's clients send, and keeps nothing of it but the images.
//!
//! The types at the end describe the accepted form in the API document.  The parser accepts more, to be able to say what was
//! found instead.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use utoipa::ToSchema;

use crate::limits::MAX_INPUTS;

/// The hint in every message about a wrong input.
pub(crate) const EXPECTED: &str = "images are expected as data URIs (data:image/png;base64,...)";

/// The images of a request.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Input {
    /// Data URIs or base64; of more than [`MAX_INPUTS`] only the first.
    pub(crate) images: Vec<String>,
    /// Number of entries of the list; 1 if there is no list.
    pub(crate) count: usize,
    /// The first entry that is not an image, and what it is instead.
    pub(crate) wrong: Option<(usize, String)>,
}

impl Input {
    fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Image(image) if self.images.len() < MAX_INPUTS => self.images.push(image),
            Entry::Tokens if self.wrong.is_none() => self.wrong = Some((self.count, TOKENS.into())),
            Entry::Other(what) if self.wrong.is_none() => self.wrong = Some((self.count, what.into())),
            _ => {}
        }
        self.count += 1;
    }
}

/// One entry of the list.
enum Entry {
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
        input.add(EntryVisitor.visit_map(map)?);
        Ok(input)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut entries: S) -> Result<Input, S::Error> {
        let mut input = Input::default();
        while let Some(entry) = entries.next_element()? {
            let number = matches!(entry, Entry::Tokens);
            input.add(entry);
            if number {
                // One list of token ids is one input, however long.
                while entries.next_element::<IgnoredAny>()?.is_some() {}
            }
        }
        Ok(input)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "an image; {EXPECTED}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Entry, E> {
        Ok(Entry::Image(text.to_string()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Entry, E> {
        Ok(Entry::Image(text))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Entry, E> {
        Ok(Entry::Tokens)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Entry, E> {
        Ok(Entry::Tokens)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Entry, E> {
        Ok(Entry::Other("numbers"))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Entry, E> {
        Ok(Entry::Other("true or false"))
    }

    fn visit_unit<E: Error>(self) -> Result<Entry, E> {
        Ok(Entry::Other("null"))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut entries: S) -> Result<Entry, S::Error> {
        while entries.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Entry::Tokens)
    }

    /// `{"type": "image_url", "image_url": {"url": ...}}`, the URL without its object, or `{"image": ...}`.
    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entry, M::Error> {
        let (mut image, mut text) = (None, false);
        while let Some(key) = map.next_key::<Cow<str>>()? {
            match key.as_ref() {
                "image_url" | "image" => image = Some(map.next_value::<ImageUrl>()?.0),
                other => {
                    text |= other == "text";
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(match image {
            Some(image) => Entry::Image(image),
            None if text => Entry::Other("an object of type `text`"),
            None => Entry::Other("an object without `image_url`"),
        })
    }
}

/// A text, or `{"url": text}`.
struct ImageUrl(String);

impl<'de> Deserialize<'de> for ImageUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UrlVisitor)
    }
}

struct UrlVisitor;

impl<'de> Visitor<'de> for UrlVisitor {
    type Value = ImageUrl;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "a data URI or {{\"url\": data URI}}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ImageUrl, E> {
        Ok(ImageUrl(text.to_string()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<ImageUrl, E> {
        Ok(ImageUrl(text))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<ImageUrl, M::Error> {
        let mut url = None;
        while let Some(key) = map.next_key::<Cow<str>>()? {
            if key == "url" {
                url = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        url.map(ImageUrl).ok_or_else(|| M::Error::missing_field("url"))
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes what `Input` parses")]
pub(crate) enum OneOrManyImages {
    One(OpenAiImage),
    Many(Vec<OpenAiImage>),
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes what `Input` parses")]
pub(crate) enum OpenAiImage {
    /// A data URI, or base64.
    Text(String),
    /// As in OpenAI's messages.
    Object(OpenAiImagePart),
}

#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "describes what `Input` parses")]
pub(crate) struct OpenAiImagePart {
    /// image_url
    #[schema(example = "image_url")]
    r#type: String,
    image_url: OpenAiImageUrl,
}

#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "describes what `Input` parses")]
pub(crate) struct OpenAiImageUrl {
    /// A data URI; URLs are not fetched.
    url: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(json: &str) -> Input {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn images_are_found_in_every_form() {
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
    fn what_is_not_an_image_is_named() {
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
    fn images_beyond_the_limit_are_counted_but_not_kept() {
        let json = format!("[{}\"\"]", "\"\",".repeat(5000));
        let input = input(&json);
        assert_eq!((input.images.len(), input.count), (MAX_INPUTS, 5001));
    }
}
