//! OpenAI's routes, for its clients: `POST /v1/embeddings`, `GET /v1/models`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use macrl_bundle::bundle;

use super::embed::embedding;
use super::parse;
use super::responses::{BODY, IMAGES, KEY, MODEL, error_responses};
use crate::api::images::EncodingFormat;
use crate::api::openai::{OpenAiBody, OpenAiEmbedding, OpenAiEmbeddings, OpenAiModel, OpenAiModels, OpenAiUsage};
use crate::api::openai_input::{EXPECTED, Input};
use crate::body::{Kind, RequestBody};
use crate::deadline::Deadline;
use crate::error::{ApiError, ErrorKind, Failure};
use crate::features;
use crate::limits::MAX_INPUTS;
use crate::state::{App, AppState, Model};

error_responses!(EmbeddingsErrors, OpenAiErrorBody, [KEY, BODY, IMAGES, MODEL]);

/// OpenAI's `/v1/embeddings`, with images in `input`: data URIs, base64, or `{"type": "image_url", ...}`.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "openai",
    request_body(content((OpenAiBody = "application/json"))),
    responses(
        (status = 200, description = "one vector for each image, OpenAI's shape", body = OpenAiEmbeddings),
        EmbeddingsErrors,
    )
)]
pub(crate) async fn embeddings(
    State(app): State<AppState>,
    body: RequestBody,
) -> Result<Json<OpenAiEmbeddings>, Failure> {
    let model = app.model()?;
    if body.kind != Kind::Json {
        return Err(ApiError::UnsupportedType("expected Content-Type application/json, found another".into()).into());
    }
    let request: OpenAiBody = body.json(&app).await?;
    let format = encoding_format(request.encoding_format.as_deref())?;
    check_dimensions(request.dimensions, model.dim())?;
    let images = images(request.input, &app).await.map_err(caused_by_input)?;
    let images: Vec<Bytes> = images.into_iter().map(|image| body.hold(image)).collect();
    if let Some(deadline) = body.parts.extensions.get::<Arc<Deadline>>() {
        deadline.allow_steps(images.len().div_ceil(app.settings.limits.images));
    }
    drop(body);
    let tokens = images.len() * model.bundle.config.encoder().tokens().count();
    let features = features::all_in_steps(&app, &model, images).await.map_err(caused_by_input)?;
    let mut data = Vec::with_capacity(features.len());
    for (index, feature) in features.into_iter().enumerate() {
        let embedding = format.encode(embedding(feature.raw, true)?);
        data.push(OpenAiEmbedding { object: "embedding", index, embedding });
    }
    // Clients compare the name with the one that they asked for.
    let model = request.model.unwrap_or_else(|| model.name().to_string());
    let usage = OpenAiUsage { prompt_tokens: tokens, total_tokens: tokens };
    Ok(Json(OpenAiEmbeddings { object: "list", data, model, usage }))
}

/// The failure with the field `input` as its cause, unless a full queue or the server caused it.
fn caused_by_input(failure: Failure) -> Failure {
    let status = failure.error.status();
    if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS { failure.of("input") } else { failure }
}

fn encoding_format(named: Option<&str>) -> Result<EncodingFormat, Failure> {
    match named {
        None | Some("float") => Ok(EncodingFormat::Float),
        Some("base64") => Ok(EncodingFormat::Base64),
        Some(other) => {
            let message = format!("encoding_format must be float or base64, found `{}`", clipped(other));
            Err(ApiError::malformed(message).of("encoding_format"))
        }
    }
}

/// Answers 400 and not 409 as other routes do: OpenAI's clients retry after a 409.
fn check_dimensions(asked: Option<i64>, dim: usize) -> Result<(), Failure> {
    match asked {
        Some(found) if usize::try_from(found) != Ok(dim) => {
            let message = format!("this model's embeddings have {dim} dimensions, found {found}");
            Err(ApiError::malformed(message).of("dimensions"))
        }
        _ => Ok(()),
    }
}

async fn images(input: Option<Input>, app: &App) -> Result<Vec<Bytes>, Failure> {
    let Some(input) = input else { return Err(ApiError::malformed(format!("`input` is missing: {EXPECTED}")).into()) };
    let limit = app.settings.limits.inputs.min(MAX_INPUTS);
    if input.count > limit {
        return Err(ApiError::TooManyImages { limit, found: input.count }.into());
    }
    if let Some((index, found)) = input.wrong {
        return Err(ApiError::malformed(format!("{EXPECTED}, found {found}")).at(index));
    }
    if input.images.is_empty() {
        return Err(ApiError::malformed("expected at least one image in `input`, found none").into());
    }
    let images = input.images;
    let decode = move || Ok::<_, ApiError>(images.iter().map(|text| decode(text)).collect::<Vec<_>>());
    let decoded = app.pool.run(decode).await?;
    decoded.into_iter().enumerate().map(|(i, image)| image.map_err(|e| e.at(i))).collect()
}

/// Decodes base64 or a data URI.  Text for a language model gets a message of its own.
fn decode(text: &str) -> Result<Bytes, ApiError> {
    let decoded = parse::image(text);
    let lower = text.trim_start().get(..8).unwrap_or_default().to_ascii_lowercase();
    if lower.starts_with("data:") || lower.starts_with("http://") || lower == "https://" {
        return decoded;
    }
    // Words without punctuation are valid base64, but an image is longer and has a known signature.
    let is_text =
        |bytes: &Bytes| image::guess_format(bytes).is_err() && (bytes.len() < 64 || text.trim().contains(' '));
    match decoded {
        Ok(bytes) if !is_text(&bytes) => Ok(bytes),
        _ => {
            let start: String = text.chars().take(30).collect();
            let more = if text.chars().nth(30).is_some() { "..." } else { "" };
            Err(ApiError::malformed(format!("{EXPECTED}, found the text {:?}", format!("{start}{more}"))))
        }
    }
}

error_responses!(ModelsErrors, OpenAiErrorBody, [KEY, MODEL]);

/// A list of one: the model that the server runs.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "openai",
    responses((status = 200, description = "the one model, OpenAI's shape", body = OpenAiModels), ModelsErrors)
)]
pub(crate) async fn models(State(app): State<AppState>) -> Result<Json<OpenAiModels>, Failure> {
    let model = app.model()?;
    Ok(Json(OpenAiModels { object: "list", data: vec![describe(&model)] }))
}

error_responses!(ModelErrors, OpenAiErrorBody, [KEY, MODEL, &[ErrorKind::Malformed, ErrorKind::NotFound]]);

/// The model, by its name.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    tag = "openai",
    params(("model" = String, Path, description = "as /v1/models lists it")),
    responses((status = 200, description = "the model", body = OpenAiModel), ModelErrors)
)]
pub(crate) async fn model(
    State(app): State<AppState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<OpenAiModel>, Failure> {
    let Path(name) = name.map_err(|e| ApiError::malformed(e.body_text()).of("model"))?;
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
    // The time of the export, as far as the file system knows it.
    let written = std::fs::metadata(model.bundle.dir.join(bundle::CONFIG)).and_then(|file| file.modified());
    let created = written.unwrap_or(SystemTime::UNIX_EPOCH).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    OpenAiModel { id: model.name().to_string(), object: "model", created, owned_by: "macrl" }
}
