//! Headers that tell browsers what a response may do.

use std::sync::LazyLock;

use axum::http::header::{
    CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderValue, Response};
use axum::response::{Html, IntoResponse};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

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

/// A page with its policy: it runs and applies its own script and style only, and talks to this server only.
pub(super) struct Page {
    html: &'static str,
    policy: LazyLock<HeaderValue, Box<dyn FnOnce() -> HeaderValue + Send>>,
}

impl Page {
    pub(super) fn new(html: &'static str) -> Self {
        Self { html, policy: LazyLock::new(Box::new(|| policy(html))) }
    }

    pub(super) fn response(&self) -> axum::response::Response {
        let headers: HeaderMap = [(CONTENT_SECURITY_POLICY, self.policy.clone())].into_iter().collect();
        (headers, Html(self.html)).into_response()
    }
}

fn policy(html: &str) -> HeaderValue {
    let hash = |tag: &str| {
        let inner = html.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
        let digest = Sha256::digest(inner.map_or("", |(inner, _)| inner).as_bytes());
        format!("'sha256-{}'", STANDARD.encode(digest))
    };
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; img-src 'self' blob: data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style"),
    );
    // It is ASCII; if it were not, nothing would be allowed.
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}
