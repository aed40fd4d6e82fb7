//! `POST /embed`, `POST /classify`: images in, numbers out.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use macrl_bundle::bundle::Bundle;
use serde::Deserialize;
use serde_json::{Value, json};

use super::query;
use crate::error::{ApiError, Failure};
use crate::features::{self, Feature};
use crate::index::normalized;
use crate::input::{Kind, Received, decode_base64, encode_base64, malformed};
use crate::openapi::{Embeddings, EncodingFormat, ErrorBody, ImagesBody, Predictions, Vector};
use crate::state::{App, AppState};

/// How numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encoding {
    /// A JSON list.
    #[default]
    Float,
    /// Little-endian f32, as base64.
    Base64,
}

impl Encoding {
    pub(super) fn write(self, vector: Vec<f32>) -> Vector {
        match self {
            Self::Float => Vector::Numbers(vector),
            Self::Base64 => Vector::Base64(encode_base64(&vector)),
        }
    }
}

/// What a request may say beside its images.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    normalize: Option<bool>,
    encoding_format: Option<Encoding>,
    top_k: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImagesJson {
    images: Vec<String>,
    normalize: Option<bool>,
    encoding_format: Option<Encoding>,
    top_k: Option<usize>,
}

/// The three ways to send images, as one.
async fn images(received: Received, app: &App) -> Result<(Vec<Bytes>, Options), Failure> {
    let mut options: Options = query(&received.parts)?;
    let images = match received.kind {
        Kind::Image => vec![received.bytes.clone()],
        Kind::Form => form_images(&received, &mut options).await?,
        Kind::Json => {
            let body: ImagesJson = received.json(app).await?;
            options.normalize = body.normalize.or(options.normalize);
            options.encoding_format = body.encoding_format.or(options.encoding_format);
            options.top_k = body.top_k.or(options.top_k);
            decode_all(body.images, app).await?
        }
    };
    if images.is_empty() {
        return Err(malformed("expected at least one image, found none").into());
    }
    Ok((images, options))
}

async fn form_images(received: &Received, options: &mut Options) -> Result<Vec<Bytes>, ApiError> {
    let mut images = Vec::new();
    for part in received.form().await? {
        let unknown =
            || malformed(format!("the form has a field `{}` that is neither an image nor an option", part.name));
        match part.name.as_str() {
            _ if part.image => images.push(part.bytes.clone()),
            "normalize" => options.normalize = Some(part.json()?),
            "top_k" => options.top_k = Some(part.json()?),
            "encoding_format" => {
                let named = Value::from(part.text()?);
                options.encoding_format =
                    Some(serde_json::from_value(named).map_err(|e| malformed(format!("encoding_format: {e}")))?);
            }
            _ => return Err(unknown()),
        }
    }
    Ok(images)
}

/// Base64 of a whole request, on a blocking thread; too many images are refused before any is decoded.
pub(super) async fn decode_all(images: Vec<String>, app: &App) -> Result<Vec<Bytes>, Failure> {
    let limit = app.settings.limits.images;
    if images.len() > limit {
        return Err(ApiError::TooManyImages { limit, found: images.len() }.into());
    }
    let decoded = app.pool.run(move || Ok(images.iter().map(|i| decode_base64(i)).collect::<Vec<_>>())).await?;
    decoded.into_iter().enumerate().map(|(i, image)| image.map_err(|e| e.at(i))).collect()
}

pub(super) fn finish(raw: Vec<f32>, normalize: bool) -> Result<Vec<f32>, ApiError> {
    if normalize { normalized(raw).map_err(ApiError::Internal) } else { Ok(raw) }
}

/// One vector for each image, L2-normalised unless `normalize` is false.
#[utoipa::path(
    post,
    path = "/embed",
    tag = "images",
    params(
        ("normalize" = Option<bool>, Query, description = "scale vectors to length 1 (default true)"),
        ("encoding_format" = Option<EncodingFormat>, Query, description = "float (default) or base64"),
    ),
    request_body(content((ImagesBody = "application/json"), (Vec<u8> = "image/*"), (Vec<u8> = "multipart/form-data"))),
    responses(
        (status = 200, description = "one vector for each image", body = Embeddings),
        (status = 400, description = "malformed", body = ErrorBody),
        (status = 401, description = "a key is asked for", body = ErrorBody),
        (status = 408, description = "the body came too slowly", body = ErrorBody),
        (status = 413, description = "too large", body = ErrorBody),
        (status = 415, description = "unsupported type", body = ErrorBody),
        (status = 422, description = "undecodable image", body = ErrorBody),
        (status = 429, description = "queue full", body = ErrorBody),
        (status = 503, description = "starting, stopping or timed out", body = ErrorBody),
    )
)]
pub(crate) async fn embed(State(app): State<AppState>, received: Received) -> Result<Json<Embeddings>, Failure> {
    let model = app.model()?;
    let (images, options) = images(received, &app).await?;
    let (normalize, encoding) = (options.normalize.unwrap_or(true), options.encoding_format.unwrap_or_default());
    let features = features::all(&app, &model, images).await?;
    let write = |feature: Feature| Ok(encoding.write(finish(feature.raw, normalize)?));
    let embeddings = features.into_iter().map(write).collect::<Result<_, ApiError>>()?;
    Ok(Json(Embeddings { model: model.name().to_string(), dim: model.dim(), embeddings }))
}

/// The most probable classes of each image, by the bundle's linear probe.
#[utoipa::path(
    post,
    path = "/classify",
    tag = "images",
    params(
        ("top_k" = Option<usize>, Query, minimum = 1, description = "classes per image (default 5)"),
    ),
    request_body(content((ImagesBody = "application/json"), (Vec<u8> = "image/*"), (Vec<u8> = "multipart/form-data"))),
    responses(
        (status = 200, description = "the most probable classes", body = Predictions),
        (status = 400, description = "malformed", body = ErrorBody),
        (status = 401, description = "a key is asked for", body = ErrorBody),
        (status = 408, description = "the body came too slowly", body = ErrorBody),
        (status = 413, description = "too large", body = ErrorBody),
        (status = 415, description = "unsupported type", body = ErrorBody),
        (status = 422, description = "undecodable image", body = ErrorBody),
        (status = 429, description = "queue full", body = ErrorBody),
        (status = 503, description = "starting, stopping or timed out", body = ErrorBody),
        (status = 404, description = "unknown", body = ErrorBody),
    )
)]
pub(crate) async fn classify(State(app): State<AppState>, received: Received) -> Result<Json<Value>, Failure> {
    let model = app.model()?;
    if model.bundle.probe.is_none() {
        return Err(ApiError::NotFound("this bundle has no linear probe to classify with".into()).into());
    }
    let (images, options) = images(received, &app).await?;
    let top_k = options.top_k.unwrap_or(5);
    if top_k == 0 {
        return Err(malformed("top_k must be at least 1, found 0").into());
    }
    let features = features::all(&app, &model, images).await?;
    let predictions: Vec<Value> = features.iter().map(|f| predict(&model.bundle, &f.raw, top_k)).collect();
    Ok(Json(json!({ "model": model.name(), "predictions": predictions })))
}

fn predict(bundle: &Bundle, feature: &[f32], top_k: usize) -> Value {
    let Some(probe) = &bundle.probe else { return json!([]) };
    let mut scored: Vec<(f32, &String)> = probe.probabilities(feature).into_iter().zip(&probe.labels).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.iter().take(top_k).map(|(score, label)| json!({ "label": label, "score": score })).collect()
}
