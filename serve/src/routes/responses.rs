//! The error responses of each route, for the API document.
//!
//! A route lists the kinds of errors that it can answer with; statuses, codes and descriptions come from [`ErrorKind`].

use std::collections::BTreeMap;

use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};

use crate::error::ErrorKind;

/// Errors of all routes but the open ones: who asks (the key, the web page, the host name), and the time.
pub(super) const KEY: &[ErrorKind] = &[
    ErrorKind::Unauthorized,
    ErrorKind::Forbidden,
    ErrorKind::ForeignOrigin,
    ErrorKind::UnknownHost,
    ErrorKind::Timeout,
];

/// Errors while a body is received and parsed.
pub(super) const BODY: &[ErrorKind] = &[
    ErrorKind::Malformed,
    ErrorKind::SlowBody,
    ErrorKind::BodyTooLarge,
    ErrorKind::UnsupportedType,
    ErrorKind::UnsupportedEncoding,
    ErrorKind::QueueFull,
];

/// Errors while images are embedded.
pub(super) const IMAGES: &[ErrorKind] = &[
    ErrorKind::TooManyImages,
    ErrorKind::ImageTooLarge,
    ErrorKind::Undecodable,
    ErrorKind::QueueFull,
    ErrorKind::Timeout,
];

/// Errors of routes that need a model.
pub(super) const MODEL: &[ErrorKind] = &[ErrorKind::Starting, ErrorKind::Stopping];

/// Errors of routes that use the index.
pub(super) const INDEX: &[ErrorKind] = &[ErrorKind::IndexUnavailable];

/// The responses for these kinds; kinds with the same status share one.  `schema` is the name of the body's schema.
pub(super) fn responses(groups: &[&[ErrorKind]], schema: &str) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<ErrorKind>> = BTreeMap::new();
    for kind in groups.iter().copied().flatten() {
        let kinds = by_status.entry(kind.status().as_u16()).or_default();
        if !kinds.contains(kind) {
            kinds.push(*kind);
        }
    }
    let response = |(status, kinds): (u16, Vec<ErrorKind>)| {
        let lines: Vec<String> =
            kinds.iter().map(|kind| format!("`{}`: {}", kind.code(), kind.description())).collect();
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
        let response = ResponseBuilder::new().description(lines.join("; ")).content("application/json", content);
        (status.to_string(), response.build().into())
    };
    by_status.into_iter().map(response).collect()
}

/// Declares the error responses of a route: `error_responses!(EmbedErrors, ErrorBody, [KEY, BODY, &[ErrorKind::NotFound]])`.
macro_rules! error_responses {
    ($name:ident, $body:ident, [$($group:expr),+ $(,)?]) => {
        pub(crate) struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses()
            -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::Response>> {
                $crate::routes::responses::responses(&[$($group),+], stringify!($body))
            }
        }
    };
}
pub(super) use error_responses;
