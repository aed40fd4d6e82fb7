//! Parses query strings, filters and images in JSON.

use axum::body::Bytes;
use axum::extract::Query;
use axum::http::Uri;
use serde::de::DeserializeOwned;

use crate::api::bounded::RawObject;
use crate::budget::Reservation;
use crate::error::ApiError;
use crate::index::{Filter, JsonMap, Metadata};
use crate::limits::Limits;
use crate::state::App;
use crate::text_encoding;

/// The query string as `T`.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    Query::try_from_uri(uri).map(|Query(value)| value).map_err(|e| {
        let cause = e.body_text();
        let cause = cause.trim_start_matches("Failed to deserialize query string: ");
        ApiError::malformed(format!("the query cannot be read: {cause}"))
    })
}

/// A filter, and the memory that it is charged for.
pub(super) type ChargedFilter = (Filter, Reservation);

/// Bytes that a filter may take for each byte of its text: numbers in a list take 36, and a list's room may be twice its length.
const FILTER_EXPANSION: usize = 96;

/// A filter from a JSON body.
pub(super) fn filter(json: Option<&RawObject>, app: &App) -> Result<ChargedFilter, ApiError> {
    filter_text(json.map(RawObject::text), app)
}

/// A filter from a query string.
pub(super) fn filter_text(text: Option<&str>, app: &App) -> Result<ChargedFilter, ApiError> {
    let mut charge = app.buffered.reservation();
    let Some(text) = text else { return Ok((Filter::default(), charge)) };
    let (limit, found) = (app.settings.limits.filter_bytes, text.len());
    if found > limit {
        return Err(ApiError::malformed(format!("filter must be at most {limit} bytes of JSON, found {found}")));
    }
    if !charge.grow(FILTER_EXPANSION * found) {
        return Err(app.queue_full());
    }
    let map: JsonMap =
        serde_json::from_str(text).map_err(|e| ApiError::malformed(format!("filter must be a JSON object: {e}")))?;
    Ok((Filter::parse(map).map_err(ApiError::malformed)?, charge))
}

/// White space and escapes may make metadata so many times longer than its compact form, which the limit is for.
const MAX_METADATA_EXPANSION: usize = 4;

/// Most fields of an item's metadata.  Each may take a kilobyte of the index.
const MAX_FIELDS: usize = 256;

/// An item's metadata, in compact form.  Its length is checked before it is parsed, and again in compact form.
pub(super) fn metadata(text: &str, limits: &Limits) -> Result<Metadata, ApiError> {
    let limit = limits.metadata_bytes;
    let too_long =
        |found: usize| ApiError::malformed(format!("metadata must be at most {limit} bytes of JSON, found {found}"));
    if text.len() > limit.saturating_mul(MAX_METADATA_EXPANSION) {
        return Err(too_long(text.len()));
    }
    let map: JsonMap =
        serde_json::from_str(text).map_err(|e| ApiError::malformed(format!("metadata must be a JSON object: {e}")))?;
    if map.len() > MAX_FIELDS {
        let found = map.len();
        return Err(ApiError::malformed(format!("metadata must have at most {MAX_FIELDS} fields, found {found}")));
    }
    let metadata = Metadata::from(map);
    let found = metadata.as_str().len();
    if found <= limit { Ok(metadata) } else { Err(too_long(found)) }
}

/// The bytes of an image that is given as base64 or as a `data:` URI.  URLs are not fetched.
pub(super) fn image(text: &str) -> Result<Bytes, ApiError> {
    let text = text.trim();
    let scheme = |name: &str| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    let encoded = if scheme("data:") {
        match text.split_once(',') {
            Some((head, data)) if head.to_ascii_lowercase().ends_with(";base64") => data,
            _ => return Err(ApiError::malformed("a data: URI must be data:image/...;base64,...")),
        }
    } else if scheme("http://") || scheme("https://") {
        return Err(ApiError::malformed("addresses are not fetched; send the image itself, as base64"));
    } else {
        text
    };
    let decoded = text_encoding::decode_base64(encoded);
    decoded.map(Bytes::from).map_err(|e| ApiError::malformed(format!("expected an image as base64: {e}")))
}
