//! Every way in which a request can fail, and the HTTP status that says so: the one place where they meet.

use axum::Json;
use axum::http::header::{ACCEPT_ENCODING, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use macrl_bundle::decode::DecodeError;
use serde_json::{Map, Value, json};

use crate::index::IndexError;

/// Why a request failed.  4xx: the client's mistake; 5xx: the server's state.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// 400: not the JSON, query or form that the route takes.
    #[error("{0}")]
    Malformed(String),
    /// 401: a key is asked for and was not given, or is wrong.
    #[error("this server asks for `Authorization: Bearer KEY`, found no valid key")]
    Unauthorized,
    /// 404: no such route, item, or no probe in the bundle.
    #[error("{0}")]
    NotFound(String),
    /// 405: the route exists with another method.
    #[error("this route does not take that method")]
    Method,
    /// 408: the client sent its body too slowly.
    #[error("the body did not arrive within {0} s")]
    SlowBody(u64),
    /// 409: a vector of another length than the model's.
    #[error("expected a vector of {expected} numbers, found {found}")]
    Dimension {
        /// D.
        expected: usize,
        /// Numbers sent.
        found: usize,
    },
    /// 409: the request contradicts what the server holds.
    #[error("{0}")]
    Conflict(String),
    /// 413: bytes.
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    /// 413: pixels.
    #[error("{0}")]
    ImageTooLarge(String),
    /// 413: images in one request.
    #[error("at most {limit} images per request, found {found}")]
    TooManyImages {
        /// Allowed.
        limit: usize,
        /// Sent.
        found: usize,
    },
    /// 413: items.
    #[error("the index is full: its items may take {0} bytes")]
    IndexFull(usize),
    /// 415: a coding that is not read.
    #[error("expected Content-Encoding gzip, deflate, br, zstd or none, found {0}")]
    UnsupportedEncoding(String),
    /// 415: neither an image, nor a form, nor JSON.
    #[error("{0}")]
    UnsupportedType(String),
    /// 422: bytes that are not an image, or a broken one.
    #[error("{0}")]
    Undecodable(String),
    /// 429: the queue has no room for these images.
    #[error("the queue is full; try again in {retry_after} s")]
    QueueFull {
        /// Seconds.
        retry_after: u64,
    },
    /// 503: the model is being loaded.
    #[error("the model is still being loaded")]
    Starting,
    /// 503: the server was told to end.
    #[error("the server is stopping")]
    Stopping,
    /// 503: the index's storage does not answer.
    #[error("the index is not available: {0}")]
    IndexUnavailable(String),
    /// 503: no answer in time.
    #[error("no answer within {0} s")]
    Timeout(u64),
    /// 500: our mistake.
    #[error("internal error: {0}")]
    Internal(String),
}

impl ApiError {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::SlowBody(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Dimension { .. } | Self::Conflict(_) => StatusCode::CONFLICT,
            Self::BodyTooLarge(_) | Self::ImageTooLarge(_) | Self::TooManyImages { .. } | Self::IndexFull(_) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::UnsupportedType(_) | Self::UnsupportedEncoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Undecodable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Starting | Self::Stopping | Self::IndexUnavailable(_) | Self::Timeout(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The word that programs compare.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Unauthorized => "unauthorized",
            Self::NotFound(_) => "not_found",
            Self::Method => "method_not_allowed",
            Self::SlowBody(_) => "body_timeout",
            Self::Dimension { .. } => "dimension_mismatch",
            Self::Conflict(_) => "conflict",
            Self::BodyTooLarge(_) => "body_too_large",
            Self::ImageTooLarge(_) => "image_too_large",
            Self::TooManyImages { .. } => "too_many_images",
            Self::IndexFull(_) => "index_full",
            Self::UnsupportedType(_) => "unsupported_type",
            Self::UnsupportedEncoding(_) => "unsupported_encoding",
            Self::Undecodable(_) => "image_undecodable",
            Self::QueueFull { .. } => "queue_full",
            Self::Starting => "starting",
            Self::Stopping => "stopping",
            Self::IndexUnavailable(_) => "index_unavailable",
            Self::Timeout(_) => "timeout",
            Self::Internal(_) => "internal",
        }
    }

    /// Seconds after which the same request may succeed, where it is likely to.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::QueueFull { retry_after } => Some(*retry_after),
            Self::Starting | Self::IndexUnavailable(_) => Some(1),
            _ => None,
        }
    }

    /// OpenAI's word for the kind of error.
    fn openai_type(&self) -> &'static str {
        match self.status() {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// This error, caused by the `index`-th image of the request.
    pub fn at(self, index: usize) -> Failure {
        Failure { error: self, index: Some(index), param: None }
    }

    /// This error, caused by the field `param` of the request.
    pub fn of(self, param: &'static str) -> Failure {
        Failure { error: self, index: None, param: Some(param) }
    }
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::TooLarge { .. } | DecodeError::TooMuchMemory { .. } => Self::ImageTooLarge(error.to_string()),
            DecodeError::Format { .. } | DecodeError::NeedsLibheif { .. } | DecodeError::Broken { .. } => {
                Self::Undecodable(error.to_string())
            }
        }
    }
}

impl From<IndexError> for ApiError {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::Dimension { expected, found } => Self::Dimension { expected, found },
            IndexError::Encoder { .. } => Self::Conflict(error.to_string()),
            IndexError::Full { limit } => Self::IndexFull(limit),
            IndexError::Open(cause) | IndexError::Unavailable(cause) => Self::IndexUnavailable(cause),
            IndexError::Storage(cause) => Self::Internal(cause),
        }
    }
}

/// An [`ApiError`] and, where one image of several is at fault, which.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What happened.
    pub error: ApiError,
    /// Position in the request, from 0.
    pub index: Option<usize>,
    /// The field at fault, where OpenAI's shape has a place for it.
    pub param: Option<&'static str>,
}

impl From<IndexError> for Failure {
    fn from(error: IndexError) -> Self {
        ApiError::from(error).into()
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self { error, index: None, param: None }
    }
}

impl Failure {
    /// `{"code", "message", "index"?}`.
    pub fn to_json(&self) -> Value {
        let mut inner = Map::new();
        inner.insert("code".into(), self.error.code().into());
        inner.insert("message".into(), self.error.to_string().into());
        if let Some(index) = self.index {
            inner.insert("index".into(), index.into());
        }
        Value::Object(inner)
    }

    /// This failure, caused by the field `param`.
    pub fn of(self, param: &'static str) -> Self {
        Self { param: Some(param), ..self }
    }

    /// The answer in OpenAI's shape: `{"message", "type", "param", "code", "index"?}`.
    pub fn into_openai_response(self) -> Response {
        let mut inner = self.to_json();
        inner["type"] = self.error.openai_type().into();
        inner["param"] = self.param.into();
        self.respond(inner)
    }

    fn respond(self, inner: Value) -> Response {
        let mut response = (self.error.status(), Json(json!({ "error": inner }))).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.error.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        match self.error {
            ApiError::Unauthorized => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            ApiError::UnsupportedEncoding(_) => {
                drop(headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(CODINGS)))
            }
            _ => {}
        }
        response.extensions_mut().insert(ErrorCode(self.error.code()));
        response
    }
}

/// Codings of bodies that are read.
const CODINGS: &str = "gzip, deflate, br, zstd";

/// The error's code, for the request counters and the log.
#[derive(Debug, Clone, Copy)]
pub struct ErrorCode(pub &'static str);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if let ApiError::Internal(cause) | ApiError::IndexUnavailable(cause) = &self.error {
            tracing::error!(cause, "a request failed");
        }
        let mut response = self.clone().respond(self.to_json());
        // Below `/v1` it is written in another shape.
        response.extensions_mut().insert(self);
        response
    }
}
