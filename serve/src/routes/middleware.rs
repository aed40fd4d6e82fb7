//! Middleware around every route: request ids, metrics, logging, the key, CORS, and the handling of panics.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, HeaderName, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use hyper::body::Body as _;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::connection::Connection;
use crate::deadline::Deadline;
use crate::error::{ApiError, ErrorCode, Failure};
use crate::foreign_page;
use crate::keys::Role;
use crate::origin::Origin;
use crate::response_body;
use crate::routes::security_headers;
use crate::state::AppState;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Puts the middleware around the routes.  A request passes the last one first.
pub(super) fn wrap(routes: Router<AppState>, state: &AppState) -> Router<AppState> {
    let routes = routes.layer(CatchPanicLayer::custom(panicked)).layer(from_fn(openai_errors));
    let routes = match cors(&state.settings.cors_origins) {
        Some(layer) => routes.layer(layer),
        None => routes,
    };
    let routes = routes.layer(from_fn_with_state(state.clone(), count_response));
    routes.layer(from_fn_with_state(state.clone(), observe))
}

/// Lets web pages of these origins read answers; without origins, no page may.
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
        // The names that the browser asks for, because `*` does not cover Authorization.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, RETRY_AFTER])
        .max_age(Duration::from_secs(600));
    Some(layer)
}

/// Counts a large response against the budget of all responses, and refuses it if the budget is used up.
async fn count_response(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let response = next.run(request).await;
    response_body::count(response, &app.responses, connection)
        .unwrap_or_else(|| Failure::from(app.queue_full()).into_response())
}

/// Gives errors of routes below `/v1` OpenAI's form.
async fn openai_errors(request: Request, next: Next) -> Response {
    let openai = request.uri().path().split('/').nth(1) == Some("v1");
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<Failure>() {
        Some(failure) if openai => failure.with_openai_body(response),
        _ => response,
    }
}

/// A panic in a handler ends one request and not the process.  Its message is not sent to the client.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    Failure::from(ApiError::Internal("this request made the server fail".into())).into_response()
}

/// Refuses requests of foreign web pages, and those without a key of the role that the route needs.
pub(super) async fn authorize(State((app, needed)): State<(AppState, Role)>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let given = parts.headers.get(AUTHORIZATION).and_then(|value| {
        // Bytes and not text: a key may have characters other than ASCII.
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    match foreign_page::check(&app, &parts).and_then(|()| app.authorize(given, needed)) {
        Ok(()) => in_time(&app, Request::from_parts(parts, body), next).await,
        Err(error) => Failure::from(error).into_response(),
    }
}

/// Answers 503 if there is no answer within the time of a request, whatever the route does.
async fn in_time(app: &AppState, mut request: Request, next: Next) -> Response {
    let limits = &app.settings.limits;
    let (limit, deadline) = (limits.request_timeout, Arc::new(Deadline::new(limits.body_timeout)));
    if request.body().is_end_stream() {
        deadline.start();
    }
    request.extensions_mut().insert(deadline.clone());
    tokio::select! {
        response = next.run(request) => response,
        () = deadline.passed(limit) => Failure::from(ApiError::Timeout(limit.as_secs())).into_response(),
    }
}

/// Counts and logs a request, and gives it an id that is in its answer and in its log line.
async fn observe(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    // The pattern and not the path: ids must not become label values.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_string();
    let id = request_id(request.headers());
    let mut response = next.run(request).await;
    let (status, elapsed) = (response.status().as_u16(), started.elapsed());
    let code = response.extensions().get::<ErrorCode>().map(|c| c.0);
    app.metrics.request(&route, method, status, code, elapsed);
    let ms = elapsed.as_secs_f64() * 1e3;
    tracing::info!(request_id = id.to_str().unwrap_or_default(), method, route, status, code, ms, "request");
    response.headers_mut().insert(REQUEST_ID, id);
    security_headers::add(&mut response, !app.settings.cors_origins.is_empty());
    if app.is_stopping() {
        // Clients and load balancers should open their next connection elsewhere.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The method as a label: one that HTTP defines, or `OTHER`.  A client must not be able to create time series.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "OTHER",
    }
}

/// The client's request id if it is short text, otherwise a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Read once, because it is a system call.
    static PROCESS: LazyLock<u32> = LazyLock::new(std::process::id);
    let given = headers.get(REQUEST_ID).filter(|v| v.len() <= 64 && v.to_str().is_ok());
    given.cloned().unwrap_or_else(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        HeaderValue::from_str(&format!("{:x}-{number:x}", *PROCESS)).unwrap_or(HeaderValue::from_static("0"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_method_has_the_label_of_all_others() {
        assert_eq!(method_label(&Method::PUT), "PUT");
        for number in 0..10 {
            let method = Method::from_bytes(format!("M{number}").as_bytes()).unwrap();
            assert_eq!(method_label(&method), "OTHER");
        }
    }
}
