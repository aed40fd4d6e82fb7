//! Headers that tell browsers what a response may do.

use axum::http::header::{
    CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderValue, Response};

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Adds the headers that a response does not have yet.  With `shared`, pages of other origins may show its images.
pub(super) fn add<B>(response: &mut Response<B>, shared: bool) {
    let headers = response.headers_mut();
    let mut add = |name, value| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    add(X_CONTENT_TYPE_OPTIONS, "nosniff");
    add(X_FRAME_OPTIONS, "DENY");
    add(REFERRER_POLICY, "same-origin");
    add(RESOURCE_POLICY, if shared { "cross-origin" } else { "same-origin" });
    // For what is no page: an answer that a browser shows nevertheless runs nothing and loads nothing.
    add(CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
}
