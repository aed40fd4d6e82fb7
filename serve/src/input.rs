//! A request's body -> its kind and its parts, within the limits.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::coding::{codings, unpack};
use crate::connection::Connection;
use crate::disposition::percent_decoded;
use crate::error::{ApiError, Failure};
use crate::pool::Share;
use crate::state::{App, AppState};

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// Base64 with or without its final `=`.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);

/// The same with `-` and `_` for `+` and `/`, as addresses and tokens have it.
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

/// What the `Content-Type` announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `image/*`: the body is one image.
    Image,
    /// `multipart/form-data`.
    Form,
    /// `application/json`.
    Json,
}

/// A whole body, which counts against the buffer budget for as long as it is held.
pub struct Received {
    /// From the `Content-Type`.
    pub kind: Kind,
    /// The request's header.
    pub parts: Parts,
    /// The body.
    pub bytes: Bytes,
    _share: Share,
}

/// 400 with this message.
pub fn malformed(message: impl Into<String>) -> ApiError {
    ApiError::Malformed(message.into())
}

impl FromRequest<AppState> for Received {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let kind = kind_of(&parts)?;
        let codings = codings(&parts.headers)?;
        let (mut bytes, mut share) = read_body(&parts, body, state).await?;
        if !codings.is_empty() {
            let app = state.clone();
            let work = move || {
                let limit = app.settings.limits.body_bytes;
                let plain = unpack(bytes, &codings, limit, &mut share, || app.queue_full())?;
                Ok((plain, share))
            };
            (bytes, share) = state.pool.run(work).await?;
        }
        Ok(Self { kind, parts, bytes, _share: share })
    }
}

impl Received {
    /// The body as JSON, parsed on a blocking thread: it may be megabytes.
    ///
    /// # Errors
    /// [`ApiError::Malformed`].
    pub async fn json<T: DeserializeOwned + Send + 'static>(&self, app: &App) -> Result<T, ApiError> {
        let bytes = self.bytes.clone();
        let parse =
            move || serde_json::from_slice(&bytes).map_err(|e| malformed(format!("the JSON cannot be read: {e}")));
        if self.bytes.len() < 4096 { parse() } else { app.pool.run(parse).await }
    }
}

fn kind_of(parts: &Parts) -> Result<Kind, ApiError> {
    let Some(value) = parts.headers.get(CONTENT_TYPE) else {
        return Err(unsupported("none"));
    };
    let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    let essence = value.split(';').next().unwrap_or_default().trim();
    match essence {
        "multipart/form-data" => Ok(Kind::Form),
        "application/json" => Ok(Kind::Json),
        other if other.starts_with("application/") && other.ends_with("+json") => Ok(Kind::Json),
        other if other.starts_with("image/") => Ok(Kind::Image),
        other => Err(unsupported(&format!("`{}`", other.chars().take(100).collect::<String>()))),
    }
}

fn unsupported(found: &str) -> ApiError {
    let expected = "image/*, multipart/form-data or application/json";
    ApiError::UnsupportedType(format!("expected Content-Type {expected}, found {found}"))
}

async fn read_body(parts: &Parts, body: Body, state: &AppState) -> Result<(Bytes, Share), ApiError> {
    let limits = &state.settings.limits;
    let connection = parts.extensions.get::<Arc<Connection>>();
    connection.inspect(|connection| connection.awaits_body());
    let announced = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limits.body_bytes) {
        return Err(ApiError::BodyTooLarge(limits.body_bytes));
    }
    let reading = collect(body, announced.unwrap_or(0), state);
    let slow = |_| ApiError::SlowBody(limits.body_timeout.as_secs());
    let received = tokio::time::timeout(limits.body_timeout, reading).await.map_err(slow)?;
    connection.inspect(|connection| connection.serves());
    received
}

async fn collect(mut body: Body, expected: usize, state: &AppState) -> Result<(Bytes, Share), ApiError> {
    let limit = state.settings.limits.body_bytes;
    let mut share = state.buffered.share();
    // What a header announces is not yet sent: reserve no more than a moderate image.
    let mut bytes = Vec::with_capacity(expected.min(1 << 20));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| malformed("the body ended before it was complete"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(ApiError::BodyTooLarge(limit));
        }
        if !share.grow(data.len()) {
            return Err(state.queue_full());
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.into(), share))
}

/// Base64 or a `data:` URI -> the image's bytes.
///
/// # Errors
/// [`ApiError::Malformed`]; addresses are not fetched.
pub fn decode_base64(text: &str) -> Result<Bytes, ApiError> {
    let text = text.trim();
    let scheme = |name: &str| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    let encoded = if scheme("data:") {
        match text.split_once(',') {
            Some((head, data)) if head.to_ascii_lowercase().ends_with(";base64") => data,
            _ => return Err(malformed("a data: URI must be data:image/...;base64,...")),
        }
    } else if scheme("http://") || scheme("https://") {
        return Err(malformed("addresses are not fetched; send the image itself, as base64"));
    } else {
        text
    };
    base64_bytes(encoded).map(Bytes::from).map_err(|e| malformed(format!("expected an image as base64: {e}")))
}

fn base64_bytes(text: &str) -> Result<Vec<u8>, base64::DecodeError> {
    let either = |text: &[u8]| {
        BASE64.decode(text).or_else(|error| match error {
            base64::DecodeError::InvalidByte(_, b'-' | b'_') => BASE64_URL.decode(text),
            // A data: URI may be written as addresses are.
            base64::DecodeError::InvalidByte(_, b'%') => BASE64.decode(percent_decoded(text)),
            error => Err(error),
        })
    };
    if text.bytes().any(|b| b.is_ascii_whitespace()) {
        either(text.split_ascii_whitespace().collect::<String>().as_bytes())
    } else {
        either(text.as_bytes())
    }
}

/// Values as OpenAI's `encoding_format: base64` has them: little-endian f32.
pub fn encode_base64(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    BASE64.encode(bytes)
}
