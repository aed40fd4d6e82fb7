//! What an index holds: items, their vectors and metadata, and which encoder made the vectors.

use std::fmt;
use std::sync::Arc;

use macrl_bundle::bundle::Bundle;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// A parsed JSON object.
pub type JsonMap = Map<String, Value>;

/// An item's metadata: the text of a JSON object.
///
/// It stays text in the index and in answers.  Parsed, it would take up to 90 times the memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata(Arc<str>);

impl Metadata {
    /// Metadata that an index stored; the text was checked then.
    pub(super) fn from_stored(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The metadata as JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parsed object; empty if another program damaged the stored text.
    pub fn to_map(&self) -> JsonMap {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl Default for Metadata {
    fn default() -> Self {
        Self("{}".into())
    }
}

impl From<JsonMap> for Metadata {
    fn from(map: JsonMap) -> Self {
        Self(Value::Object(map).to_string().into())
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<&RawValue>(&self.0) {
            Ok(raw) => raw.serialize(serializer),
            Err(_) => JsonMap::new().serialize(serializer),
        }
    }
}

/// SHA-256 of the file that an item was made from.
pub type ContentHash = [u8; 32];

/// Identifies the encoder that made an index's vectors.  Vectors of two encoders cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderIdentity {
    /// SHA-256 of the encoder's weights, hexadecimal (`Provenance::encoder`).
    pub sha256: String,
    /// Length of its vectors, D.
    pub dim: usize,
}

impl EncoderIdentity {
    /// The identity of a bundle's encoder.
    pub fn of(bundle: &Bundle) -> Self {
        Self { sha256: bundle.config.macrl.encoder().to_string(), dim: bundle.config.hidden_size }
    }
}

impl fmt::Display for EncoderIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short: String = self.sha256.chars().take(12).collect();
        write!(f, "{short} ({} numbers)", self.dim)
    }
}

/// One item of an index.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Unique in the index; see [`check_id`].
    pub id: String,
    /// (D), L2-normalised; empty in a listing that did not ask for vectors.
    pub vector: Vec<f32>,
    /// Whatever the client stored with the item.
    pub metadata: Metadata,
    /// Thumbnail (PNG) of an item that was made from an image.  Listings leave it out and set `has_image` only.
    pub image: Option<Arc<[u8]>>,
    /// Whether the index has a thumbnail of it.  [`Index::put`](super::Index::put) ignores it and looks at `image`.
    pub has_image: bool,
    /// Hash of the file that the item was made from, if it was made from one.
    pub hash: Option<ContentHash>,
}

/// One result of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Id under which the item was stored.
    pub id: String,
    /// Cosine of the item's vector and the query, in [-1, 1].
    pub score: f32,
    /// Metadata that was stored with the item.
    pub metadata: Metadata,
    /// Whether the item has a thumbnail.
    pub has_image: bool,
}

/// An item's id and its score, without what else a [`Hit`] carries.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredId {
    /// Id under which the item was stored.
    pub id: String,
    /// Cosine of the item's vector and the query, in [-1, 1].
    pub score: f32,
}

/// Scales a vector to length 1.
///
/// # Errors
/// One sentence where a value is not finite or all are zero.
///
/// # Examples
/// ```
/// use macrl_serve::index::normalized;
///
/// assert_eq!(normalized(vec![3.0, 4.0]), Ok(vec![0.6, 0.8]));
/// assert!(normalized(vec![0.0, 0.0]).is_err());
/// ```
pub fn normalized(mut vector: Vec<f32>) -> Result<Vec<f32>, String> {
    let norm = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if !norm.is_finite() || norm == 0.0 {
        return Err("expected a vector of finite numbers that are not all zero".into());
    }
    for value in &mut vector {
        *value = (f64::from(*value) / norm) as f32;
    }
    Ok(vector)
}

/// Checks that an id is 1 to 512 bytes of text without control characters.
///
/// # Errors
/// One sentence about what is wrong with the id.
pub fn check_id(id: &str) -> Result<(), String> {
    if (1..=512).contains(&id.len()) && !id.chars().any(char::is_control) {
        return Ok(());
    }
    Err("an id must be 1 to 512 bytes of text without control characters".into())
}
