//! Every way in which a request can fail, and the HTTP answer that reports it.

use axum::Json;
use axum::body::Body;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use macrl_bundle::decode::DecodeError;

use crate::api::errors::{ErrorBody, ErrorDetail, OpenAiErrorBody, OpenAiErrorDetail};
use crate::engine::EmbedError;
use crate::index::IndexError;
use crate::keys::Role;
use crate::pool::WorkError;

/// Declares [`ErrorKind`] with the status, the code and the description of each kind.
macro_rules! error_kinds {
    ($($kind:ident = $status:ident, $code:literal, $description:literal;)+) => {
        /// The kinds of errors; an [`ApiError`] is one of them with its details.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ErrorKind {
            $(#[doc = $description] $kind,)+
        }

        impl ErrorKind {
            /// The status of the answer.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$kind => StatusCode::$status,)+ }
            }

            /// The code in the answer, for programs.
            pub fn code(self) -> &'static str {
                match self { $(Self::$kind => $code,)+ }
            }

            /// What the kind means, for the API description.
            pub fn description(self) -> &'static str {
                match self { $(Self::$kind => $description,)+ }
            }
        }
    };
}

error_kinds! {
    Malformed = BAD_REQUEST, "malformed", "the query, the form or the JSON is not what the route takes";
    Unauthorized = UNAUTHORIZED, "unauthorized", "the server asks for a key, and none or a wrong one was given";
    Forbidden = FORBIDDEN, "forbidden", "the key's role does not allow it";
    ForeignOrigin = FORBIDDEN, "foreign_origin", "a web page of an origin that is not allowed sent the request";
    UnknownHost = MISDIRECTED_REQUEST, "unknown_host", "without a key, the server does not answer under this Host";
    NotFound = NOT_FOUND, "not_found", "there is no such route or item, or the bundle has no probe";
    Method = METHOD_NOT_ALLOWED, "method_not_allowed", "the route does not take this method";
    SlowBody = REQUEST_TIMEOUT, "body_timeout", "the body arrived too slowly";
    Dimension = CONFLICT, "dimension_mismatch", "the vector's length is not the model's";
    Conflict = CONFLICT, "conflict", "the request contradicts what the server holds";
    BodyTooLarge = PAYLOAD_TOO_LARGE, "body_too_large", "the body has too many bytes";
    ImageTooLarge = PAYLOAD_TOO_LARGE, "image_too_large", "an image has too many pixels";
    TooManyImages = PAYLOAD_TOO_LARGE, "too_many_images", "the request has too many images";
    IndexFull = PAYLOAD_TOO_LARGE, "index_full", "the items of the index take all the memory that they may";
    UnsupportedType = UNSUPPORTED_MEDIA_TYPE, "unsupported_type", "the body is neither an image, nor a form, nor JSON";
    UnsupportedEncoding = UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", "the Content-Encoding is not supported";
    Undecodable = UNPROCESSABLE_ENTITY, "image_undecodable", "an image cannot be decoded";
    QueueFull = TOO_MANY_REQUESTS, "queue_full", "the queue has no room; try again after Retry-After";
    Starting = SERVICE_UNAVAILABLE, "starting", "the model is being loaded";
    Stopping = SERVICE_UNAVAILABLE, "stopping", "the server is stopping";
    IndexUnavailable = SERVICE_UNAVAILABLE, "index_unavailable", "the index does not answer";
    Timeout = SERVICE_UNAVAILABLE, "timeout", "there was no result in time";
    Internal = INTERNAL_SERVER_ERROR, "internal", "the server failed";
}

/// Why a request failed.  4xx: the client's mistake; 5xx: the server's state.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// [`ErrorKind::Malformed`]
    #[error("{0}")]
    Malformed(String),
    /// [`ErrorKind::Unauthorized`]
    #[error("this server asks for `Authorization: Bearer KEY`, found no valid key")]
    Unauthorized,
    /// [`ErrorKind::Forbidden`]
    #[error("this needs a key with the role {needed}, found one with the role {role}")]
    Forbidden {
        /// The role that the route needs.
        needed: Role,
        /// The role of the given key.
        role: Role,
    },
    /// [`ErrorKind::ForeignOrigin`]
    #[error("a web page of another origin sent this; the server's --cors-origin ORIGIN allows one")]
    ForeignOrigin,
    /// [`ErrorKind::UnknownHost`]; the name in the request.
    #[error("without a key, this server does not answer as `{0}`; its --allowed-host NAME allows a name")]
    UnknownHost(String),
    /// [`ErrorKind::NotFound`]
    #[error("{0}")]
    NotFound(String),
    /// [`ErrorKind::Method`]
    #[error("this route does not take that method")]
    Method,
    /// [`ErrorKind::SlowBody`]; after so many seconds.
    #[error("the body did not arrive within {0} s")]
    SlowBody(u64),
    /// [`ErrorKind::Dimension`]
    #[error("expected a vector of {expected} numbers, found {found}")]
    Dimension {
        /// Length of the model's vectors, D.
        expected: usize,
        /// Length of the given vector.
        found: usize,
    },
    /// [`ErrorKind::Conflict`]
    #[error("{0}")]
    Conflict(String),
    /// [`ErrorKind::BodyTooLarge`]; the limit in bytes.
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    /// [`ErrorKind::ImageTooLarge`]
    #[error("{0}")]
    ImageTooLarge(String),
    /// [`ErrorKind::TooManyImages`]
    #[error("at most {limit} images per request, found {found}")]
    TooManyImages {
        /// Images that a request may have.
        limit: usize,
        /// Images that it had.
        found: usize,
    },
    /// [`ErrorKind::IndexFull`]; the limit in bytes.
    #[error("the index is full: its items may take {0} bytes")]
    IndexFull(usize),
    /// [`ErrorKind::UnsupportedEncoding`]
    #[error("expected Content-Encoding gzip, deflate, br, zstd or none, found {0}")]
    UnsupportedEncoding(String),
    /// [`ErrorKind::UnsupportedType`]
    #[error("{0}")]
    UnsupportedType(String),
    /// [`ErrorKind::Undecodable`]
    #[error("{0}")]
    Undecodable(String),
    /// [`ErrorKind::QueueFull`]
    #[error("the queue is full; try again in {retry_after} s")]
    QueueFull {
        /// Seconds after which there is probably room.
        retry_after: u64,
    },
    /// [`ErrorKind::Starting`]
    #[error("the model is still being loaded")]
    Starting,
    /// [`ErrorKind::Stopping`]
    #[error("the server is stopping")]
    Stopping,
    /// [`ErrorKind::IndexUnavailable`]
    #[error("the index is not available: {0}")]
    IndexUnavailable(String),
    /// [`ErrorKind::Timeout`]; after so many seconds.
    #[error("no answer within {0} s")]
    Timeout(u64),
    /// [`ErrorKind::Internal`]
    #[error("internal error: {0}")]
    Internal(String),
}

impl ApiError {
    /// [`ApiError::Malformed`] with this message.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::Malformed(message.into())
    }

    /// The kind, which decides the status and the code of the answer.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Malformed(_) => ErrorKind::Malformed,
            Self::Unauthorized => ErrorKind::Unauthorized,
            Self::Forbidden { .. } => ErrorKind::Forbidden,
            Self::ForeignOrigin => ErrorKind::ForeignOrigin,
            Self::UnknownHost(_) => ErrorKind::UnknownHost,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Method => ErrorKind::Method,
            Self::SlowBody(_) => ErrorKind::SlowBody,
            Self::Dimension { .. } => ErrorKind::Dimension,
            Self::Conflict(_) => ErrorKind::Conflict,
            Self::BodyTooLarge(_) => ErrorKind::BodyTooLarge,
            Self::ImageTooLarge(_) => ErrorKind::ImageTooLarge,
            Self::TooManyImages { .. } => ErrorKind::TooManyImages,
            Self::IndexFull(_) => ErrorKind::IndexFull,
            Self::UnsupportedType(_) => ErrorKind::UnsupportedType,
            Self::UnsupportedEncoding(_) => ErrorKind::UnsupportedEncoding,
            Self::Undecodable(_) => ErrorKind::Undecodable,
            Self::QueueFull { .. } => ErrorKind::QueueFull,
            Self::Starting => ErrorKind::Starting,
            Self::Stopping => ErrorKind::Stopping,
            Self::IndexUnavailable(_) => ErrorKind::IndexUnavailable,
            Self::Timeout(_) => ErrorKind::Timeout,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.kind().status()
    }

    /// Seconds after which the same request will probably succeed, if it may.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::QueueFull { retry_after } => Some(*retry_after),
            Self::Starting | Self::IndexUnavailable(_) => Some(1),
            _ => None,
        }
    }

    /// The kind of error in OpenAI's terms.
    fn openai_type(&self) -> &'static str {
        match self.status() {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// This error, caused by the request's image number `index`, counted from 0.
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

impl From<WorkError> for ApiError {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Panicked => Self::Undecodable(error.to_string()),
            WorkError::Closed => Self::Stopping,
            WorkError::NoThread => Self::Internal(error.to_string()),
        }
    }
}

impl From<EmbedError> for ApiError {
    fn from(error: EmbedError) -> Self {
        match error {
            EmbedError::Decode(error) => error.into(),
            EmbedError::Work(error) => error.into(),
            EmbedError::Inference(cause) => Self::Internal(cause),
            EmbedError::Stopped => Self::Stopping,
        }
    }
}

impl From<IndexError> for ApiError {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::Dimension { expected, found } => Self::Dimension { expected, found },
            IndexError::EncoderMismatch { .. } => Self::Conflict(error.to_string()),
            IndexError::Full { limit } => Self::IndexFull(limit),
            IndexError::Open(cause) | IndexError::Unavailable(cause) => Self::IndexUnavailable(cause),
            IndexError::Storage(cause) => Self::Internal(cause),
        }
    }
}

/// An [`ApiError`] and which part of the request caused it.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// The kind of error, its message, and the entry that it concerns.
    pub error: ApiError,
    /// The image that caused it, counted from 0, if it was one of several.
    pub index: Option<usize>,
    /// The field that caused it; only OpenAI's form of errors reports it.
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
    /// This failure, caused by the field `param`.
    pub fn of(self, param: &'static str) -> Self {
        Self { param: Some(param), ..self }
    }

    /// The body of the answer.
    pub(crate) fn body(&self) -> ErrorBody {
        let (code, message) = (self.error.kind().code(), self.error.to_string());
        ErrorBody { error: ErrorDetail { code, message, index: self.index } }
    }

    /// The body of the answer in OpenAI's form.
    fn openai_body(&self) -> OpenAiErrorBody {
        let ErrorDetail { code, message, index } = self.body().error;
        let (r#type, param) = (self.error.openai_type(), self.param);
        OpenAiErrorBody { error: OpenAiErrorDetail { code, message, index, r#type, param } }
    }

    /// `response`, which reports this failure, with its body in OpenAI's form.
    pub(crate) fn with_openai_body(&self, mut response: Response) -> Response {
        *response.body_mut() = Json(self.openai_body()).into_response().into_body();
        response.headers_mut().remove(CONTENT_LENGTH); // the other body's
        response
    }
}

/// The content codings that are supported.
const CODINGS: &str = "gzip, deflate, br, zstd";

/// The error's code, for the request counters and the log.
#[derive(Debug, Clone, Copy)]
pub struct ErrorCode(pub &'static str);

impl IntoResponse for Failure {
    fn into_response(self) -> Response<Body> {
        if let ApiError::Internal(cause) | ApiError::IndexUnavailable(cause) = &self.error {
            tracing::error!(cause, "a request failed");
        }
        let mut response = (self.error.status(), Json(self.body())).into_response();
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
        let extensions = response.extensions_mut();
        extensions.insert(ErrorCode(self.error.kind().code()));
        // Routes below /v1 answer in OpenAI's form; the middleware needs the details for that.
        extensions.insert(self);
        response
    }
}
