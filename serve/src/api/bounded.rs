//! Types for parts of a request whose memory must be limited while they are parsed.
//!
//! Parsed JSON can take 90 times the memory of its text.  Lists are therefore cut off while they are parsed, and objects of
//! free form stay text until their length was checked.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Unexpected, Visitor};
use serde_json::value::RawValue;

/// Most images or items of a request that are kept, whatever `--max-images` says.
pub(crate) const MAX_LIST: usize = 10_000;

/// Most numbers of a vector that are kept; no model's vectors are longer.
pub(crate) const MAX_NUMBERS: usize = 1 << 16;

/// A list that keeps its first `MAX` elements and counts the others.
#[derive(Debug, PartialEq)]
pub(crate) struct CappedList<T, const MAX: usize> {
    pub(crate) kept: Vec<T>,
    /// Number of all elements.
    pub(crate) count: usize,
}

/// A vector of a request.
pub(crate) type Numbers = CappedList<f32, MAX_NUMBERS>;

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for CappedList<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
    type Value = CappedList<T, MAX>;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("a sequence")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut elements: S) -> Result<Self::Value, S::Error> {
        let mut kept = Vec::new();
        while kept.len() < MAX {
            let Some(element) = elements.next_element()? else {
                return Ok(CappedList { count: kept.len(), kept });
            };
            kept.push(element);
        }
        let mut count = kept.len();
        while elements.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(CappedList { kept, count })
    }
}

/// The text of a JSON object that is not parsed yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RawObject(Box<str>);

impl RawObject {
    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

impl Default for RawObject {
    fn default() -> Self {
        Self("{}".into())
    }
}

impl<'de> Deserialize<'de> for RawObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        if raw.get().starts_with('{') {
            return Ok(Self(raw.into()));
        }
        let found = match raw.get().as_bytes().first() {
            Some(b'[') => Unexpected::Seq,
            Some(b'"') => Unexpected::Other("string"),
            Some(b't' | b'f') => Unexpected::Other("boolean"),
            Some(b'n') => Unexpected::Unit,
            _ => Unexpected::Other("number"),
        };
        Err(D::Error::invalid_type(found, &"a map"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_off_and_counted() {
        let parse = |text: &str| serde_json::from_str::<CappedList<u8, 3>>(text);
        assert_eq!(parse("[]").unwrap(), CappedList { kept: vec![], count: 0 });
        assert_eq!(parse("[1,2,3]").unwrap(), CappedList { kept: vec![1, 2, 3], count: 3 });
        assert_eq!(parse("[1,2,3,4,\"x\"]").unwrap(), CappedList { kept: vec![1, 2, 3], count: 5 });
        assert!(parse("[1,\"x\"]").is_err() && parse("[1,2,3,4").is_err() && parse("3").is_err());
    }

    #[test]
    fn a_raw_object_keeps_its_text_and_nothing_else_is_one() {
        let parse = |text: &str| serde_json::from_str::<RawObject>(text);
        assert_eq!(parse(" {\"a\" : [1, 2]} ").unwrap().text(), "{\"a\" : [1, 2]}");
        for wrong in ["3", "[1]", "\"x\"", "null", "true", "{\"a\"}", "{"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let message = parse("[1]").unwrap_err().to_string();
        assert!(message.starts_with("invalid type: sequence, expected a map"), "{message}");
    }
}
