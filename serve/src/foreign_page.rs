//! Refuses requests that a web page of another origin made in a user's browser.
//!
//! A browser sends a page's form, or its request without special headers, to any server that the user's machine reaches, also
//! to one on the loopback interface.  It says so in `Sec-Fetch-Site` and `Origin`, which pages cannot change.  Other clients
//! send neither, and are not affected.

use axum::http::header::{HOST, HeaderName, ORIGIN, REFERER};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Uri};

use crate::error::ApiError;
use crate::origin::Origin;
use crate::state::App;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Checks who made a request, as far as browsers tell.
///
/// # Errors
/// [`ApiError::UnknownHost`], if the server asks for no key; [`ApiError::ForeignOrigin`].
pub(crate) fn check(app: &App, request: &Parts) -> Result<(), ApiError> {
    let keyed = app.asks_for_key();
    if !keyed && let Some(host) = foreign_host(app, &request.headers, &request.uri) {
        return Err(ApiError::UnknownHost(host.chars().take(100).collect()));
    }
    let allowed = &app.settings.cors_origins;
    if is_foreign(request, allowed, keyed) { Err(ApiError::ForeignOrigin) } else { Ok(()) }
}

/// The `Host`, or the authority of an absolute URI, that is not the server's.  A request may have neither: a browser's always
/// has one.
fn foreign_host(app: &App, headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let hosts = headers.get_all(HOST).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let authority = uri.authority().map(|authority| authority.as_str().to_string());
    hosts.chain(authority).find(|host| !app.settings.hosts.allows(host))
}

/// Whether a page of an origin that is not in `allowed` made the request.
///
/// With a key, only what the browser itself calls cross-site is refused: a page cannot send the key without CORS, and a proxy
/// may have changed `Host`.
fn is_foreign(request: &Parts, allowed: &[Origin], keyed: bool) -> bool {
    let headers = &request.headers;
    let (site, origin) = (headers.get(SEC_FETCH_SITE), headers.get(ORIGIN));
    if site.is_none() && origin.is_none() || allowed.contains(&Origin::Any) {
        return false;
    }
    let site = site.map(|value| value.as_bytes());
    if matches!(site, Some(b"same-origin" | b"none")) {
        return false;
    }
    let origin = origin.map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase());
    // An image of an allowed page comes without Origin.  A page can leave out its Referer, but not forge it.
    let from = origin.clone().or_else(|| origin_of_referer(headers));
    if from.is_some_and(|from| allowed.iter().any(|one| *one == Origin::One(from.clone()))) {
        return false;
    }
    match site {
        Some(b"cross-site") => !is_link(request),
        _ if keyed => false,
        Some(_) => !is_link(request),
        None => origin.is_some_and(|origin| !is_own(&origin, headers)),
    }
}

/// Whether a user followed a link: the page that has it cannot read the answer.
fn is_link(request: &Parts) -> bool {
    let is = |name: HeaderName, value: &str| request.headers.get(name).is_some_and(|v| v == value);
    request.method == Method::GET && is(SEC_FETCH_MODE, "navigate") && is(SEC_FETCH_DEST, "document")
}

/// Whether an origin is that of the address which the request was sent to.
fn is_own(origin: &str, headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let own = |scheme: &str| {
        let own = format!("{scheme}://{}", host.as_deref().unwrap_or_default()).parse::<Origin>();
        own.is_ok_and(|own| own == Origin::One(origin.to_string()))
    };
    // Of a proxy that terminates TLS, the server does not know the scheme.
    own("http") || own("https")
}

fn origin_of_referer(headers: &HeaderMap) -> Option<String> {
    let referer = headers.get(REFERER)?.to_str().ok()?;
    let (scheme, rest) = referer.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    match format!("{scheme}://{host}").parse() {
        Ok(Origin::One(origin)) => Some(origin),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn foreign(method: &str, headers: &[(&str, &str)], allowed: &[&str], keyed: bool) -> bool {
        let mut request = Request::builder().method(method).header("host", "127.0.0.1:8080");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let allowed: Vec<Origin> = allowed.iter().map(|o| o.parse().unwrap()).collect();
        is_foreign(&request.body(()).unwrap().into_parts().0, &allowed, keyed)
    }

    #[test]
    fn own_pages_and_other_clients_are_let_through() {
        let own: [&[(&str, &str)]; 6] = [
            &[],
            &[("origin", "http://127.0.0.1:8080")],
            &[("origin", "https://127.0.0.1:8080")],
            &[("sec-fetch-site", "same-origin"), ("origin", "http://proxy.example")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")],
        ];
        for headers in own {
            assert!(!foreign("GET", headers, &[], false), "{headers:?}");
            assert!(!foreign("GET", headers, &[], true), "{headers:?}");
        }
    }

    #[test]
    fn other_pages_are_refused_unless_they_are_allowed() {
        let site = ("sec-fetch-site", "cross-site");
        let pages: [&[(&str, &str)]; 7] = [
            &[site],
            &[("sec-fetch-site", "same-site")],
            &[("origin", "http://127.0.0.1:3000")],
            &[("origin", "null")],
            &[("origin", "http://evil.example")],
            &[site, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")],
            &[("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1:3000")],
        ];
        for headers in pages {
            assert!(foreign("GET", headers, &[], false), "{headers:?}");
            assert!(foreign("GET", headers, &["https://a.example"], false), "{headers:?}");
            assert!(!foreign("GET", headers, &["*"], false), "{headers:?}");
            assert_eq!(foreign("GET", headers, &[], true), headers.contains(&site), "{headers:?}");
        }
        let navigation = [site, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert!(foreign("POST", &navigation, &[], false), "a form");
        let allowed: [&[(&str, &str)]; 3] = [
            &[site, ("origin", "https://a.example")],
            &[site, ("origin", "https://A.example")],
            &[site, ("referer", "https://a.example/page?x=1")],
        ];
        for headers in allowed {
            assert!(!foreign("POST", headers, &["https://a.example"], false), "{headers:?}");
        }
        assert!(foreign(
            "GET",
            &[site, ("referer", "https://evil.example/https://a.example")],
            &["https://a.example"],
            false
        ));
    }
}
