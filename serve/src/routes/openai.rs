//! OpenAI's routes, for its clients: `POST /v1/embeddings`, `GET /v1/models`.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use macrl_bundle::bundle;
use serde::Deserialize;

use super::embed::{Encoding, finish};
use crate::error::{ApiError, Failure};
use crate::features;
use crate::input::{Kind, Received, decode_base64, malformed};
use crate::limits::MOST_INPUTS;
use crate::openai_input::{EXPECTED, Input};
use crate::openapi::{
    OpenAiBody, OpenAiEmbedding, OpenAiEmbeddings, OpenAiErrorBody, OpenAiModel, OpenAiModels, OpenAiUsage,
};
use crate::state::{App, AppState, Model};

/// OpenAI's request; fields that make no difference here (`user`) are ignored, as OpenAI's own server does.
#[derive(Deserialize)]
struct Request {
    input: Option<Input>,
    model: Option<String>,
    encoding_format: Option<String>,
    dimensions: Option<i64>,
}

/// OpenAI's `/v1/embeddings`, with images in `input`: data URIs, base64, or `{"type": "image_url", ...}`.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "openai",
    request_body(content((OpenAiBody = "application/json"))),
    responses(
        (status = 200, description = "one vector for each image, OpenAI's shape", body = OpenAiEmbeddings),
        (status = 400, description = "malformed", body = OpenAiErrorBody),
        (status = 401, description = "a key is asked for", body = OpenAiErrorBody),
        (status = 408, description = "the body came too slowly", body = OpenAiErrorBody),
        (status = 413, description = "too large", body = OpenAiErrorBody),
        (status = 415, description = "unsupported type", body = OpenAiErrorBody),
        (status = 422, description = "undecodable image", body = OpenAiErrorBody),
        (status = 429, description = "queue full", body = OpenAiErrorBody),
        (status = 503, description = "starting, stopping or timed out", body = OpenAiErrorBody),
    )
)]
pub(crate) async fn embeddings(
    State(app): State<AppState>,
    received: Received,
) -> Result<Json<OpenAiEmbeddings>, Failure> {
    let model = app.model()?;
    if received.kind != Kind::Json {
        return Err(ApiError::UnsupportedType("expected Content-Type application/json, found another".into()).into());
    }
    let request: Request = received.json(&app).await?;
    let encoding = encoding(request.encoding_format.as_deref())?;
    check_dimensions(request.dimensions, model.dim())?;
    let images = images(request.input, &app).await.map_err(of_input)?;
    let tokens = images.len() * model.bundle.config.encoder().tokens().count();
    let features = features::all_in_steps(&app, &model, images).await.map_err(of_input)?;
    let mut data = Vec::with_capacity(features.len());
    for (index, feature) in features.into_iter().enumerate() {
        let embedding = encoding.write(finish(feature.raw, true)?);
        data.push(OpenAiEmbedding { object: "embedding", index, embedding });
    }
    // Clients compare it with what they asked for.
    let model = request.model.unwrap_or_else(|| model.name().to_string());
    let usage = OpenAiUsage { prompt_tokens: tokens, total_tokens: tokens };
    Ok(Json(OpenAiEmbeddings { object: "list", data, model, usage }))
}

/// A full queue is no fault of `input`.
fn of_input(failure: Failure) -> Failure {
    let clients = failure.error.status().is_client_error() && failure.error.status() != StatusCode::TOO_MANY_REQUESTS;
    if clients { failure.of("input") } else { failure }
}

fn encoding(named: Option<&str>) -> Result<Encoding, Failure> {
    match named {
        None | Some("float") => Ok(Encoding::Float),
        Some("base64") => Ok(Encoding::Base64),
        Some(other) => {
            let message = format!("encoding_format must be float or base64, found `{}`", clipped(other));
            Err(malformed(message).of("encoding_format"))
        }
    }
}

/// 400, not the 409 of other routes: OpenAI's clients try again after a 409.
fn check_dimensions(asked: Option<i64>, dim: usize) -> Result<(), Failure> {
    match asked {
        Some(found) if usize::try_from(found) != Ok(dim) => {
            Err(malformed(format!("this model's embeddings have {dim} dimensions, found {found}")).of("dimensions"))
        }
        _ => Ok(()),
    }
}

async fn images(input: Option<Input>, app: &App) -> Result<Vec<Bytes>, Failure> {
    let Some(input) = input else { return Err(malformed(format!("`input` is missing: {EXPECTED}")).into()) };
    let limit = app.settings.limits.inputs.min(MOST_INPUTS);
    if input.count > limit {
        return Err(ApiError::TooManyImages { limit, found: input.count }.into());
    }
    if let Some((index, found)) = input.wrong {
        return Err(malformed(format!("{EXPECTED}, found {found}")).at(index));
    }
    if input.images.is_empty() {
        return Err(malformed("expected at least one image in `input`, found none").into());
    }
    let images = input.images;
    let decoded = app.pool.run(move || Ok(images.iter().map(|i| decode(i)).collect::<Vec<_>>())).await?;
    decoded.into_iter().enumerate().map(|(i, image)| image.map_err(|e| e.at(i))).collect()
}

/// Base64 or a data URI; a text for a language model gets a sentence of its own.
fn decode(text: &str) -> Result<Bytes, ApiError> {
    let decoded = decode_base64(text);
    let lower = text.trim_start().get(..8).unwrap_or_default().to_ascii_lowercase();
    if lower.starts_with("data:") || lower.starts_with("http://") || lower == "https://" {
        return decoded;
    }
    // Words without marks may pass for base64; an image is longer, and begins as images do.
    let wordy = |bytes: &Bytes| image::guess_format(bytes).is_err() && (bytes.len() < 64 || text.trim().contains(' '));
    match decoded {
        Ok(bytes) if !wordy(&bytes) => Ok(bytes),
        _ => {
            let start: String = text.chars().take(30).collect();
            let more = if text.chars().nth(30).is_some() { "..." } else { "" };
            Err(malformed(format!("{EXPECTED}, found the text {:?}", format!("{start}{more}"))))
        }
    }
}

/// The one model.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "openai",
    responses(
        (status = 200, description = "the one model, OpenAI's shape", body = OpenAiModels),
        (status = 401, description = "a key is asked for", body = OpenAiErrorBody),
        (status = 503, description = "starting, stopping or timed out", body = OpenAiErrorBody),
    )
)]
pub(crate) async fn models(State(app): State<AppState>) -> Result<Json<OpenAiModels>, Failure> {
    let model = app.model()?;
    Ok(Json(OpenAiModels { object: "list", data: vec![describe(&model)] }))
}

/// The one model, by its name.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    tag = "openai",
    params(("model" = String, Path, description = "as /v1/models lists it")),
    responses(
        (status = 200, description = "the model", body = OpenAiModel),
        (status = 400, description = "malformed", body = OpenAiErrorBody),
        (status = 401, description = "a key is asked for", body = OpenAiErrorBody),
        (status = 404, description = "unknown", body = OpenAiErrorBody),
        (status = 503, description = "starting, stopping or timed out", body = OpenAiErrorBody),
    )
)]
pub(crate) async fn model(
    State(app): State<AppState>,
    name: Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Result<Json<OpenAiModel>, Failure> {
    let Path(name) = name.map_err(|e| malformed(e.body_text()).of("model"))?;
    let model = app.model()?;
    if name != model.name() {
        let message = format!("there is no model `{}`, only `{}`", clipped(&name), model.name());
        return Err(ApiError::NotFound(message).of("model"));
    }
    Ok(Json(describe(&model)))
}

fn clipped(text: &str) -> String {
    text.chars().take(100).collect()
}

fn describe(model: &Model) -> OpenAiModel {
    // When it was exported, as far as the file system knows.
    let written = std::fs::metadata(model.bundle.dir.join(bundle::CONFIG)).and_then(|file| file.modified());
    let created = written.unwrap_or(SystemTime::UNIX_EPOCH).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    OpenAiModel { id: model.name().to_string(), object: "model", created, owned_by: "macrl" }
}
