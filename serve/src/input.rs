//! A request's body -> its kind and its parts, within the limits.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::http::request::Parts;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::door::Guest;
use crate::error::{ApiError, Failure};
use crate::pool::Share;
use crate::state::{App, AppState};

/// Base64 with or without its final `=`.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How long, and how much, of the rest of a body that is too large is taken in before the answer.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_BYTES: usize = 256 << 20;

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

/// One part of a form.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// The field's name.
    pub name: String,
    /// The file's name, where it is a file.
    pub file_name: Option<String>,
    /// Whether it is to be read as an image.
    pub image: bool,
    /// Its content.
    pub bytes: Bytes,
}

impl Part {
    /// The content as text.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] where it is not UTF-8.
    pub fn text(&self) -> Result<&str, ApiError> {
        std::str::from_utf8(&self.bytes).map_err(|_| malformed(format!("field `{}` is not text", self.name)))
    }

    /// The content as JSON.
    ///
    /// # Errors
    /// [`ApiError::Malformed`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.bytes).map_err(|e| malformed(format!("field `{}`: {e}", self.name)))
    }
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
        let (bytes, share) = read_body(&parts, body, state).await?;
        Ok(Self { kind, parts, bytes, _share: share })
    }
}

impl Received {
    /// The form's parts, in order.
    ///
    /// # Errors
    /// [`ApiError::Malformed`].
    pub async fn form(&self) -> Result<Vec<Part>, ApiError> {
        let request = Request::from_parts(self.parts.clone(), Body::from(self.bytes.clone()));
        let fault = |e: &dyn std::fmt::Display| malformed(format!("the form cannot be read: {e}"));
        let mut form = Multipart::from_request(request, &()).await.map_err(|e| fault(&e.body_text()))?;
        let mut parts = Vec::new();
        while let Some(field) = form.next_field().await.map_err(|e| fault(&e.body_text()))? {
            let name = field.name().unwrap_or_default().to_string();
            let file_name = field.file_name().map(str::to_string);
            let typed = field.content_type().is_some_and(|t| t.starts_with("image/"));
            let named = matches!(name.as_str(), "image" | "images" | "image[]" | "images[]" | "file" | "files");
            let bytes = field.bytes().await.map_err(|e| fault(&e.body_text()))?;
            parts.push(Part { image: file_name.is_some() || typed || named, name, file_name, bytes });
        }
        Ok(parts)
    }

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
        return Err(ApiError::UnsupportedType("none".into()));
    };
    let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    let essence = value.split(';').next().unwrap_or_default().trim();
    match essence {
        "multipart/form-data" => Ok(Kind::Form),
        "application/json" => Ok(Kind::Json),
        other if other.starts_with("application/") && other.ends_with("+json") => Ok(Kind::Json),
        other if other.starts_with("image/") => Ok(Kind::Image),
        other => Err(ApiError::UnsupportedType(format!("`{}`", other.chars().take(100).collect::<String>()))),
    }
}

async fn read_body(parts: &Parts, body: Body, state: &AppState) -> Result<(Bytes, Share), ApiError> {
    let limits = &state.settings.limits;
    let guest = parts.extensions.get::<Arc<Guest>>();
    guest.inspect(|guest| guest.owes());
    let announced = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limits.body_bytes) {
        if !parts.headers.contains_key(EXPECT) {
            discard(body).await;
        }
        return Err(ApiError::BodyTooLarge(limits.body_bytes));
    }
    let reading = collect(body, announced.unwrap_or(0), state);
    let slow = |_| ApiError::SlowBody(limits.body_timeout.as_secs());
    let received = tokio::time::timeout(limits.body_timeout, reading).await.map_err(slow)?;
    guest.inspect(|guest| guest.is_owed());
    received
}

/// Takes in what a client is sending already, for a while: an answer beside a closed door would be lost on most clients,
/// who write the whole body before they read.
async fn discard(mut body: Body) {
    let mut left = PATIENCE_BYTES;
    let rest = async {
        while let Some(Ok(frame)) = body.frame().await
            && left > 0
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    let _ = tokio::time::timeout(PATIENCE, rest).await;
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
            discard(body).await;
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
    let encoded = match text.strip_prefix("data:") {
        Some(rest) => match rest.split_once(',') {
            Some((head, data)) if head.to_ascii_lowercase().ends_with(";base64") => data,
            _ => return Err(malformed("a data: URI must be data:image/...;base64,...")),
        },
        None if text.starts_with("http://") || text.starts_with("https://") => {
            return Err(malformed("addresses are not fetched; send the image itself, as base64"));
        }
        None => text,
    };
    let decoded = if encoded.bytes().any(|b| b.is_ascii_whitespace()) {
        BASE64.decode(encoded.split_ascii_whitespace().collect::<String>())
    } else {
        BASE64.decode(encoded)
    };
    decoded.map(Bytes::from).map_err(|e| malformed(format!("expected an image as base64: {e}")))
}

/// Values as OpenAI's `encoding_format: base64` has them: little-endian f32.
pub fn encode_base64(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    BASE64.encode(bytes)
}
