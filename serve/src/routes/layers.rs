//! What surrounds every route: request ids, counting, logging, the key, CORS, and the net under a panic.

use std::any::Any;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, HeaderName, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::error::{ApiError, ErrorCode, Failure};
use crate::metrics::method_label;
use crate::origin::Origin;
use crate::state::AppState;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Puts the layers around the routes; the outermost first in a request's way.
pub(super) fn wrap(routes: Router<AppState>, state: &AppState) -> Router<AppState> {
    let routes = routes.layer(CatchPanicLayer::custom(panicked)).layer(from_fn(openai_errors));
    let routes = match cors(&state.settings.cors_origins) {
        Some(layer) => routes.layer(layer),
        None => routes,
    };
    routes.layer(from_fn_with_state(state.clone(), observe))
}

/// Answers to the pages of these origins, and to nobody's where there are none.
fn cors(origins: &[Origin]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.contains(&Origin::Any) {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(Origin::header))
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        // Each by its name, as the page's browser asked: `*` does not cover Authorization.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, RETRY_AFTER])
        .max_age(Duration::from_secs(600));
    Some(layer)
}

/// Errors below `/v1` in OpenAI's shape.
async fn openai_errors(request: Request, next: Next) -> Response {
    let openai = request.uri().path().split('/').nth(1) == Some("v1");
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<Failure>() {
        Some(failure) if openai => failure.into_openai_response(),
        _ => response,
    }
}

/// A panic of ours ends one request, not the process; its text stays in the log.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    Failure::from(ApiError::Internal("this request made the server fail".into())).into_response()
}

/// 401 where a key is asked for and another or none is given.
pub(super) async fn authorize(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let given = request.headers().get(AUTHORIZATION).and_then(|value| {
        // Bytes: a key may hold other letters than ASCII's.
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
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
    app.metrics.request(&route, &method, status, code, elapsed);
    let method = method_label(&method);
    let ms = elapsed.as_secs_f64() * 1e3;
    tracing::info!(request_id = id.to_str().unwrap_or_default(), method, route, status, code, ms, "request");
    response.headers_mut().insert(REQUEST_ID, id);
    if app.is_stopping() {
        // So that clients and balancers open their next connection elsewhere.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
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
