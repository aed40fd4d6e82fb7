//! What the server says about itself: `/info`, `/health`, `/ready`, `/metrics`, `POST /admin/reload`.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::responses::{INDEX, KEY, MODEL, error_responses};
use crate::api;
use crate::api::server::{Reloaded, Status};
use crate::error::{ApiError, ErrorKind, Failure};
use crate::origin::Origin;
use crate::state::{App, AppState, Model};

error_responses!(InfoErrors, ErrorBody, [KEY, MODEL, INDEX]);

/// The model, the device that it runs on, and the limits.
#[utoipa::path(
    get,
    path = "/info",
    tag = "server",
    responses(
        (status = 200, description = "model, device in use, limits", body = Value),
        InfoErrors,
    )
)]
pub(crate) async fn info(State(app): State<AppState>) -> Result<Json<Value>, Failure> {
    let model = app.model()?;
    let engine = &app.settings.engine;
    let index = app.index.status().await?;
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        // docs/formats.md says what may change in them without a new number.
        "formats": { "api": api::FORMAT, "bundle": model.bundle.config.macrl.format, "index": app.index.format() },
        "model": describe_model(&model),
        "device": model.engine.devices().first().copied().unwrap_or("none"),
        "sessions": model.engine.devices(),
        "device_fallback": model.engine.fallback(),
        "libraries": {
            "onnxruntime": macrl_runtime::library_path(),
            "libheif": macrl_bundle::decode::heif::library_path(),
        },
        "precision": model.engine.precision(),
        "precision_note": model.engine.precision_note(),
        "batching": {
            "max_batch": model.engine.max_batch(),
            "wait_ms": engine.batch_wait.as_secs_f64() * 1e3,
            "workers": model.engine.devices().len(),
            "threads_per_worker": engine.threads,
        },
        "access": {
            "key_required": app.asks_for_key(),
            "roles": app.roles(),
            "beyond_this_machine": app.settings.hosts.beyond_loopback(),
            "allowed_hosts": app.settings.hosts.names(),
            "cors_origins": app.settings.cors_origins.iter().map(Origin::to_string).collect::<Vec<_>>(),
            "warnings": app.access_warnings(),
        },
        "index": { "kind": app.index.kind(), "items": index.items, "approximate_items": index.approximate, "labels": app.labels.is_some() },
        "limits": describe_limits(&app),
        "memory": describe_memory(&app),
        "uptime_seconds": app.started.elapsed().as_secs(),
    })))
}

fn describe_model(model: &Model) -> Value {
    let config = &model.bundle.config;
    let labels = model.bundle.probe.as_ref().map(|p| p.labels.clone());
    json!({
        "name": model.name(),
        "dim": model.dim(),
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "pooling": config.pooling,
        "labels": labels,
        "jpeg_decoding": model.bundle.preprocess.jpeg_decoding,
        "weights_sha256": config.macrl.weights_sha256,
        "unverified_files": model.bundle.unverified,
        "evaluation": model.bundle.evaluation,
        "parity": model.bundle.parity,
    })
}

/// What clients can make the server take: the parts, and their sum.
fn describe_memory(app: &App) -> Value {
    let parts = app.memory_parts();
    json!({
        "budget": app.settings.limits.memory,
        "decoders": parts.decoders,
        "bodies": parts.bodies,
        "responses": parts.responses,
        "connections": parts.connections,
        "index": parts.index,
        "sum": parts.sum(),
    })
}

fn describe_limits(app: &App) -> Value {
    let limits = &app.settings.limits;
    json!({
        "body_bytes": limits.body_bytes,
        "buffered_bytes": limits.buffered_bytes,
        "images_per_request": limits.images,
        "inputs_per_openai_request": limits.inputs,
        "images_in_flight": limits.queue,
        "pixels_per_image": limits.decode.max_pixels,
        "decoder_bytes_per_image": limits.decode.max_alloc,
        "bytes_of_all_requests": app.memory_parts().requests(),
        "hits_per_search": limits.hits,
        "metadata_bytes": limits.metadata_bytes,
        "filter_bytes": limits.filter_bytes,
        "response_bytes": limits.response_bytes,
        "index_bytes": limits.index_bytes,
        "exact_search_up_to_items": limits.exact_up_to,
        "connections": limits.connections,
        "keep_alive_seconds": limits.keep_alive.as_secs_f64(),
        "header_timeout_seconds": limits.header_timeout.as_secs_f64(),
        "body_timeout_seconds": limits.body_timeout.as_secs_f64(),
        "request_timeout_seconds": limits.request_timeout.as_secs_f64(),
    })
}

/// Liveness: the process answers.
#[utoipa::path(
    get,
    path = "/health",
    tag = "server",
    responses(
        (status = 200, description = "the process answers", body = Status),
    )
)]
pub(crate) async fn health() -> Json<Status> {
    Json(Status { status: "ok" })
}

error_responses!(ReadyErrors, ErrorBody, [MODEL]);

/// Readiness: there is a model and the server is not stopping.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "server",
    responses(
        (status = 200, description = "there is a model", body = Status),
        ReadyErrors,
    )
)]
pub(crate) async fn ready(State(app): State<AppState>) -> Result<Json<Status>, Failure> {
    if app.is_stopping() {
        return Err(ApiError::Stopping.into());
    }
    app.model()?;
    Ok(Json(Status { status: "ready" }))
}

error_responses!(MetricsErrors, ErrorBody, [KEY]);

/// Prometheus' text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "server",
    responses(
        (status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain"),
        MetricsErrors,
    )
)]
pub(crate) async fn metrics(State(app): State<AppState>) -> Response {
    let page = app.metrics.render(&app.gauges().await);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

error_responses!(ReloadErrors, ErrorBody, [KEY, &[ErrorKind::NotFound, ErrorKind::Conflict]]);

/// Reads the bundle's folder again.  Only servers with a key offer it, because it takes seconds of every core.
#[utoipa::path(
    post,
    path = "/admin/reload",
    tag = "server",
    responses(
        (status = 200, description = "the new bundle serves", body = Reloaded),
        ReloadErrors,
    )
)]
pub(crate) async fn reload(State(app): State<AppState>) -> Result<Json<Reloaded>, Failure> {
    if !app.asks_for_key() {
        return Err(ApiError::NotFound("reloading over HTTP needs a server with a key".into()).into());
    }
    // In a task of its own: it must not end half-way if the client leaves or the time of a request is over.
    let reloading = app.clone();
    let outcome = tokio::spawn(async move { reloading.reload().await }).await;
    let outcome = outcome.map_err(|e| ApiError::Internal(e.to_string()))?;
    outcome.map_err(|e| ApiError::Conflict(format!("the old bundle keeps serving: {e:#}")))?;
    Ok(Json(Reloaded { status: "reloaded", model: app.model()?.name().to_string() }))
}
