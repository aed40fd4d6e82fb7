//! `POST /embed` and `POST /classify`: embeddings and classes of images.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use macrl_bundle::bundle::Bundle;
use serde_json::Value;

use super::labels::ensure_trained;
use super::parse;
use super::responses::{BODY, IMAGES, INDEX, KEY, MODEL, error_responses};
use crate::api::bounded::{CappedList, MAX_LIST};
use crate::api::images::{Embeddings, ImageOptions, ImagesBody, Prediction, Predictions, ProbeChoice};
use crate::body::{Kind, RequestBody};
use crate::error::{ApiError, ErrorKind, Failure};
use crate::features::{self, Feature};
use crate::index::normalized;
use crate::labels::TrainedProbe;
use crate::state::{App, AppState};

/// The images and options of a request, in whichever of the three forms they were sent.
async fn images(body: RequestBody, app: &App) -> Result<(Vec<Bytes>, ImageOptions), Failure> {
    let mut options: ImageOptions = parse::query(&body.parts.uri)?;
    let images = match body.kind {
        Kind::Image => vec![body.bytes.clone()],
        Kind::Form => form_images(&body, app, &mut options).await?,
        Kind::Json => {
            let json: ImagesBody = body.json(app).await?;
            options.normalize = json.normalize.or(options.normalize);
            options.encoding_format = json.encoding_format.or(options.encoding_format);
            options.top_k = json.top_k.or(options.top_k);
            let images = decode_all(json.images, app).await?;
            images.into_iter().map(|image| body.hold(image)).collect()
        }
    };
    if images.is_empty() {
        return Err(ApiError::malformed("expected at least one image, found none").into());
    }
    Ok((images, options))
}

async fn form_images(body: &RequestBody, app: &App, options: &mut ImageOptions) -> Result<Vec<Bytes>, ApiError> {
    let mut images = Vec::new();
    for part in body.form(app).await? {
        let unknown = || {
            ApiError::malformed(format!("the form has a field `{}` that is neither an image nor an option", part.name))
        };
        match part.name.as_str() {
            _ if part.is_image => images.push(part.bytes.clone()),
            "normalize" => options.normalize = Some(part.json()?),
            "top_k" => options.top_k = Some(part.json()?),
            "encoding_format" => {
                let named = Value::from(part.text()?);
                let format = serde_json::from_value(named);
                options.encoding_format =
                    Some(format.map_err(|e| ApiError::malformed(format!("encoding_format: {e}")))?);
            }
            _ => return Err(unknown()),
        }
    }
    Ok(images)
}

/// Decodes the base64 of a whole request on a blocking thread.  Too many images are refused before any is decoded.
async fn decode_all(images: CappedList<String, MAX_LIST>, app: &App) -> Result<Vec<Bytes>, Failure> {
    let limit = app.settings.limits.images;
    if images.count > limit {
        return Err(ApiError::TooManyImages { limit, found: images.count }.into());
    }
    let decode = move || Ok::<_, ApiError>(images.kept.iter().map(|i| parse::image(i)).collect::<Vec<_>>());
    let decoded = app.pool.run(decode).await?;
    decoded.into_iter().enumerate().map(|(i, image)| image.map_err(|e| e.at(i))).collect()
}

/// The feature as the answer has it.
pub(super) fn embedding(raw: Vec<f32>, normalize: bool) -> Result<Vec<f32>, ApiError> {
    if normalize { normalized(raw).map_err(ApiError::Internal) } else { Ok(raw) }
}

error_responses!(EmbedErrors, ErrorBody, [KEY, BODY, IMAGES, MODEL]);

/// One vector for each image, L2-normalised unless `normalize` is false.
#[utoipa::path(
    post,
    path = "/embed",
    tag = "images",
    params(ImageOptions),
    request_body(content((ImagesBody = "application/json"), (Vec<u8> = "image/*"), (Vec<u8> = "multipart/form-data"))),
    responses((status = 200, description = "one vector for each image", body = Embeddings), EmbedErrors)
)]
pub(crate) async fn embed(State(app): State<AppState>, body: RequestBody) -> Result<Json<Embeddings>, Failure> {
    let model = app.model()?;
    let (images, options) = images(body, &app).await?;
    let (normalize, format) = (options.normalize.unwrap_or(true), options.encoding_format.unwrap_or_default());
    let features = features::all(&app, &model, images).await?;
    let encode = |feature: Feature| Ok(format.encode(embedding(feature.raw, normalize)?));
    let embeddings = features.into_iter().map(encode).collect::<Result<_, ApiError>>()?;
    Ok(Json(Embeddings { model: model.name().to_string(), dim: model.dim(), embeddings }))
}

error_responses!(
    ClassifyErrors,
    ErrorBody,
    [KEY, BODY, IMAGES, MODEL, INDEX, &[ErrorKind::NotFound, ErrorKind::Conflict]]
);

/// The most probable classes of each image, by the bundle's linear probe or by the classifier trained from labels.
#[utoipa::path(
    post,
    path = "/classify",
    tag = "images",
    params(ImageOptions),
    request_body(content((ImagesBody = "application/json"), (Vec<u8> = "image/*"), (Vec<u8> = "multipart/form-data"))),
    responses((status = 200, description = "the most probable classes", body = Predictions), ClassifyErrors)
)]
pub(crate) async fn classify(State(app): State<AppState>, body: RequestBody) -> Result<Json<Predictions>, Failure> {
    let model = app.model()?;
    let choice: ImageOptions = parse::query(&body.parts.uri)?;
    let by_labels = choice.probe.unwrap_or_default() == ProbeChoice::Labels;
    if !by_labels && model.bundle.probe.is_none() {
        return Err(ApiError::NotFound("this bundle has no linear probe to classify with".into()).into());
    }
    let (images, options) = images(body, &app).await?;
    let top_k = options.top_k.unwrap_or(5);
    if top_k == 0 {
        return Err(ApiError::malformed("top_k must be at least 1, found 0").into());
    }
    let features = features::all(&app, &model, images).await?;
    let predictions = if by_labels {
        let probe = ensure_trained(&app).await?;
        features.into_iter().map(|f| predict_by_labels(&probe, f.raw, top_k)).collect::<Result<_, ApiError>>()?
    } else {
        features.iter().map(|f| predict(&model.bundle, &f.raw, top_k)).collect()
    };
    Ok(Json(Predictions { model: model.name().to_string(), predictions }))
}

fn predict_by_labels(probe: &TrainedProbe, raw: Vec<f32>, top_k: usize) -> Result<Vec<Prediction>, ApiError> {
    let vector = normalized(raw).map_err(ApiError::Internal)?;
    let best = probe.classes(&vector).into_iter().take(top_k);
    Ok(best.map(|(label, score)| Prediction { label: label.into(), score: score.into() }).collect())
}

/// The `top_k` most probable classes of a feature by the bundle's probe, best first.
pub(super) fn predict(bundle: &Bundle, feature: &[f32], top_k: usize) -> Vec<Prediction> {
    let Some(probe) = &bundle.probe else { return Vec::new() };
    let mut scored: Vec<(f32, &String)> = probe.probabilities(feature).into_iter().zip(&probe.labels).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let prediction = |(score, label): &(f32, &String)| Prediction { label: label.to_string(), score: (*score).into() };
    scored.iter().take(top_k).map(prediction).collect()
}
