//! What surrounds every route: request ids, counting, logging, the key, CORS, and the net under a panic.

use std::any::Any;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, HeaderName};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{Any as AnyHeader, CorsLayer};

use crate::error::{ApiError, ErrorCode, Failure};
use crate::state::AppState;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Puts the layers around the routes; the outermost first in a request's way.
pub(super) fn wrap(routes: Router<AppState>, state: &AppState) -> Router<AppState> {
    let origins: Vec<HeaderValue> = state.settings.cors_origins.iter().filter_map(|o| o.parse().ok()).collect();
    let routes = routes.layer(CatchPanicLayer::custom(panicked));
    let routes = if origins.is_empty() {
        routes
    } else {
        let methods = [Method::GET, Method::POST, Method::PUT, Method::DELETE];
        routes.layer(CorsLayer::new().allow_origin(origins).allow_methods(methods).allow_headers(AnyHeader))
    };
    routes.layer(from_fn_with_state(state.clone(), observe))
}

/// A panic of ours ends one request, not the process; its text stays in the log.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    Failure::from(ApiError::Internal("this request made the server fail".into())).into_response()
}

/// 401 where a key is asked for and another or none is given.
pub(super) async fn authorize(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let given = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| {
        let (scheme, key) = v.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    if app.key_fits(given) { next.run(request).await } else { Failure::from(ApiError::Unauthorized).into_response() }
}

/// Counts and logs a request, and gives it an id that its answer and its log line share.
async fn observe(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    // The pattern, not the path: ids must not become label values.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_string();
    let id = request_id(request.headers());
    let mut response = next.run(request).await;
    let (status, elapsed) = (response.status().as_u16(), started.elapsed());
    let code = response.extensions().get::<ErrorCode>().map(|c| c.0);
    let method = if method.as_str().len() <= 8 { method.as_str() } else { "OTHER" };
    app.metrics.request(&route, method, status, code, elapsed);
    let ms = elapsed.as_secs_f64() * 1e3;
    tracing::info!(request_id = id.to_str().unwrap_or_default(), method, route, status, code, ms, "request");
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The client's id where it has a sane one, else a number of this process.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Asked for once: it is a system call.
    static PROCESS: LazyLock<u32> = LazyLock::new(std::process::id);
    let given = headers.get(REQUEST_ID).filter(|v| v.len() <= 64 && v.to_str().is_ok());
    given.cloned().unwrap_or_else(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        HeaderValue::from_str(&format!("{:x}-{number:x}", *PROCESS)).unwrap_or(HeaderValue::from_static("0"))
    })
}
