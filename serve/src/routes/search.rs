//! `POST /search`: the items nearest to an image, a vector or another item.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{filter, query};
use crate::error::{ApiError, Failure};
use crate::features;
use crate::index::{Filter, Hit, Metadata, Query, normalized};
use crate::input::{Kind, Received, decode_base64, malformed};
use crate::openapi::{ErrorBody, Hits, SearchBody};
use crate::state::{AppState, Model};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Params {
    k: Option<usize>,
    exact: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SearchJson {
    vector: Option<Vec<f32>>,
    id: Option<String>,
    image: Option<String>,
    filter: Option<Metadata>,
    exact: Option<bool>,
    k: Option<usize>,
}

/// What is searched with.
enum Probe {
    Vector(Vec<f32>),
    Item(String),
    Image(axum::body::Bytes),
}

struct Request {
    probe: Probe,
    filter: Filter,
    exact: bool,
    k: usize,
}

/// The nearest items by cosine; a search by `id` leaves that item out.
#[utoipa::path(
    post,
    path = "/search",
    tag = "search",
    params(
        ("k" = Option<usize>, Query, minimum = 1, maximum = 1000, description = "hits (default 10)"),
        ("exact" = Option<bool>, Query, description = "no approximation"),
    ),
    request_body(content((SearchBody = "application/json"), (Vec<u8> = "image/*"), (Vec<u8> = "multipart/form-data"))),
    responses(
        (status = 200, description = "the nearest items, best first", body = Hits),
        (status = 400, description = "malformed", body = ErrorBody),
        (status = 401, description = "a key is asked for", body = ErrorBody),
        (status = 408, description = "the body came too slowly", body = ErrorBody),
        (status = 413, description = "too large", body = ErrorBody),
        (status = 415, description = "unsupported type", body = ErrorBody),
        (status = 422, description = "undecodable image", body = ErrorBody),
        (status = 429, description = "queue full", body = ErrorBody),
        (status = 503, description = "starting, stopping or timed out", body = ErrorBody),
        (status = 404, description = "unknown", body = ErrorBody),
        (status = 409, description = "wrong dimension, or a conflict", body = ErrorBody),
    )
)]
pub(crate) async fn search(State(app): State<AppState>, received: Received) -> Result<Json<Value>, Failure> {
    let model = app.model()?;
    let request = read(received, &app).await?;
    let (vector, except) = match request.probe {
        Probe::Vector(vector) => (check_vector(vector, &model)?, None),
        Probe::Item(id) => (item_vector(&app, &id).await?, Some(id)),
        Probe::Image(bytes) => {
            let mut found = features::all(&app, &model, vec![bytes]).await?;
            let raw = found.pop().map(|f| f.raw).unwrap_or_default();
            (normalized(raw).map_err(ApiError::Internal)?, None)
        }
    };
    let Request { filter, exact, k, .. } = request;
    let query = Query { vector, k, filter, exact, except };
    let found = app.index.search(vec![query]).await?;
    let hits: Vec<Value> = found.into_iter().flatten().map(hit).collect();
    Ok(Json(json!({ "hits": hits })))
}

pub(super) fn hit(hit: Hit) -> Value {
    json!({ "id": hit.id, "score": hit.score, "metadata": hit.metadata, "image": hit.image })
}

async fn item_vector(app: &AppState, id: &str) -> Result<Vec<f32>, ApiError> {
    let item = app.index.get(id).await?;
    item.map(|i| i.vector).ok_or_else(|| ApiError::NotFound(format!("there is no item `{id}`")))
}

/// The client's vector, with the model's length and scaled to 1.
pub(super) fn check_vector(vector: Vec<f32>, model: &Model) -> Result<Vec<f32>, ApiError> {
    if vector.len() != model.dim() {
        return Err(ApiError::Dimension { expected: model.dim(), found: vector.len() });
    }
    normalized(vector).map_err(ApiError::Malformed)
}

async fn read(received: Received, app: &AppState) -> Result<Request, Failure> {
    let params: Params = query(&received.parts)?;
    let body = match received.kind {
        Kind::Image => (Probe::Image(received.bytes.clone()), SearchJson::default()),
        Kind::Form => form(&received).await?,
        Kind::Json => json_body(received.json(app).await?)?,
    };
    let (probe, rest) = body;
    let (k, limit) = (params.k.or(rest.k).unwrap_or(10), app.settings.limits.hits);
    if !(1..=limit).contains(&k) {
        return Err(malformed(format!("k must be in 1..={limit}, found {k}")).into());
    }
    let exact = rest.exact.or(params.exact).unwrap_or(false);
    Ok(Request { probe, filter: filter(rest.filter)?, exact, k })
}

fn json_body(mut body: SearchJson) -> Result<(Probe, SearchJson), ApiError> {
    let probe = match (body.vector.take(), body.id.take(), body.image.take()) {
        (Some(vector), None, None) => Probe::Vector(vector),
        (None, Some(id), None) => Probe::Item(id),
        (None, None, Some(image)) => Probe::Image(decode_base64(&image)?),
        _ => return Err(malformed("expected exactly one of `vector`, `id` and `image`")),
    };
    Ok((probe, body))
}

async fn form(received: &Received) -> Result<(Probe, SearchJson), ApiError> {
    let (mut images, mut rest) = (Vec::new(), SearchJson::default());
    for part in received.form().await? {
        match part.name.as_str() {
            _ if part.image => images.push(part.bytes),
            "filter" => rest.filter = Some(part.json()?),
            "exact" => rest.exact = Some(part.json()?),
            "k" => rest.k = Some(part.json()?),
            other => return Err(malformed(format!("the form has an unknown field `{other}`"))),
        }
    }
    match (images.pop(), images.is_empty()) {
        (Some(image), true) => Ok((Probe::Image(image), rest)),
        _ => Err(malformed("expected exactly one image in the form")),
    }
}
