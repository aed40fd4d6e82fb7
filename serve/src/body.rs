//! [`RequestBody`]: receives a request's body within the limits and tells what kind it is.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::budget::Reservation;
use crate::connection::Connection;
use crate::content_encoding::{codings, decode};
use crate::deadline::Deadline;
use crate::error::{ApiError, Failure};
use crate::state::{App, AppState};

/// The kind of a body, by its `Content-Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `image/*`: the body is one image.
    Image,
    /// `multipart/form-data`.
    Form,
    /// `application/json`.
    Json,
}

/// A complete body.  Its bytes count against the buffer budget until the last copy of them is dropped: an image's, once it is
/// decoded.
pub struct RequestBody {
    /// What the `Content-Type` says that the body is.
    pub kind: Kind,
    /// The request's method, URI and headers.
    pub parts: Parts,
    /// Its bytes, without their content coding.
    pub bytes: Bytes,
    reservation: Arc<Reservation>,
}

/// Bytes that keep a reservation.
struct Held {
    bytes: Bytes,
    _reservation: Arc<Reservation>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn hold(bytes: Bytes, reservation: &Arc<Reservation>) -> Bytes {
    Bytes::from_owner(Held { bytes, _reservation: reservation.clone() })
}

impl FromRequest<AppState> for RequestBody {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let kind = kind_of(&parts)?;
        let codings = codings(&parts.headers)?;
        let (mut bytes, mut reservation) = receive(&parts, body, state).await?;
        if !codings.is_empty() {
            let app = state.clone();
            let work = move || {
                let limit = app.settings.limits.body_bytes;
                let plain = decode(bytes, &codings, limit, &mut reservation, || app.queue_full())?;
                Ok::<_, ApiError>((plain, reservation))
            };
            (bytes, reservation) = state.pool.run(work).await?;
        }
        if let Some(deadline) = parts.extensions.get::<Arc<Deadline>>() {
            deadline.start();
        }
        let reservation = Arc::new(reservation);
        Ok(Self { kind, parts, bytes: hold(bytes, &reservation), reservation })
    }
}

impl RequestBody {
    /// Bytes that were made from a part of the body, with its reservation: they count until they are dropped.
    pub fn hold(&self, bytes: Bytes) -> Bytes {
        hold(bytes, &self.reservation)
    }

    /// The body as JSON, parsed on a blocking thread unless it is small.
    ///
    /// # Errors
    /// [`ApiError::Malformed`].
    pub async fn json<T: DeserializeOwned + Send + 'static>(&self, app: &App) -> Result<T, ApiError> {
        let bytes = self.bytes.clone();
        let parse = move || {
            serde_json::from_slice(&bytes).map_err(|e| ApiError::malformed(format!("the JSON cannot be read: {e}")))
        };
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

/// Receives the body, within the limits of size and time.
async fn receive(parts: &Parts, body: Body, state: &AppState) -> Result<(Bytes, Reservation), ApiError> {
    let limits = &state.settings.limits;
    let connection = parts.extensions.get::<Arc<Connection>>();
    connection.inspect(|connection| connection.start_body());
    let announced = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limits.body_bytes) {
        return Err(ApiError::BodyTooLarge(limits.body_bytes));
    }
    let reading = collect(body, announced.unwrap_or(0), state);
    let slow = |_| ApiError::SlowBody(limits.body_timeout.as_secs());
    let received = tokio::time::timeout(limits.body_timeout, reading).await.map_err(slow)?;
    connection.inspect(|connection| connection.start_response());
    received
}

async fn collect(mut body: Body, expected: usize, state: &AppState) -> Result<(Bytes, Reservation), ApiError> {
    let limit = state.settings.limits.body_bytes;
    let mut reservation = state.buffered.reservation();
    // A header may announce what is never sent: no more memory than for an average image is allocated in advance.
    let mut bytes = Vec::with_capacity(expected.min(1 << 20));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::malformed("the body ended before it was complete"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(ApiError::BodyTooLarge(limit));
        }
        if !reservation.grow(data.len()) {
            return Err(state.queue_full());
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.into(), reservation))
}
