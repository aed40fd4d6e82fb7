//! `/items`: what can be searched for.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::search::check_vector;
use super::{filter_text, query, query_of};
use crate::error::{ApiError, Failure};
use crate::features::{self, Feature};
use crate::form::Part;
use crate::index::{Item, Listing, Metadata, check_id, normalized};
use crate::input::{Kind, Received, decode_base64, malformed};
use crate::openapi::{ErrorBody, ItemBody, ItemDescription, ItemsBody, ItemsPage, Outcome, Results};
use crate::state::{App, AppState, Model};

/// What an item is made from.
enum Source {
    Image(Bytes),
    Vector(Vec<f32>),
}

/// An item that is not yet embedded.
struct Draft {
    id: String,
    source: Source,
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemJson {
    id: Option<String>,
    image: Option<String>,
    vector: Option<Vec<f32>>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchJson {
    items: Vec<ItemJson>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PutParams {
    /// JSON, for a raw image.
    metadata: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListParams {
    cursor: Option<String>,
    limit: Option<usize>,
    filter: Option<String>,
    vectors: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GetParams {
    vector: bool,
}

type Id = Result<Path<String>, PathRejection>;

fn path_id(id: Id) -> Result<String, ApiError> {
    let Path(id) = id.map_err(|e| malformed(e.body_text()))?;
    check_id(&id).map_err(ApiError::Malformed)?;
    Ok(id)
}

impl ItemJson {
    fn draft(self, named: Option<&str>) -> Result<Draft, ApiError> {
        let id = match (named, self.id) {
            (Some(path), Some(id)) if path != id => {
                return Err(malformed(format!("the path names item `{path}`, the body `{id}`")));
            }
            (Some(path), _) => path.to_string(),
            (None, Some(id)) => id,
            (None, None) => return Err(malformed("an item needs an `id`")),
        };
        check_id(&id).map_err(ApiError::Malformed)?;
        let source = match (self.image, self.vector) {
            (Some(image), None) => Source::Image(decode_base64(&image)?),
            (None, Some(vector)) => Source::Vector(vector),
            _ => return Err(malformed("expected exactly one of `image` and `vector`")),
        };
        Ok(Draft { id, source, metadata: self.metadata })
    }
}

fn parse_metadata(text: &str) -> Result<Metadata, ApiError> {
    serde_json::from_str(text).map_err(|e| malformed(format!("metadata must be a JSON object: {e}")))
}

fn check_draft(draft: Draft, app: &App) -> Result<Draft, ApiError> {
    let (limit, found) = (app.settings.limits.metadata_bytes, Value::Object(draft.metadata.clone()).to_string().len());
    if found <= limit {
        return Ok(draft);
    }
    Err(malformed(format!("metadata must be at most {limit} bytes of JSON, found {found}")))
}

/// `PUT /items/{id}`: 201 where it is new, else 200.
#[utoipa::path(
    put,
    path = "/items/{id}",
    tag = "items",
    params(
        ("id" = String, Path, description = "1 to 512 bytes without control characters"),
        ("metadata" = Option<String>, Query, description = "a JSON object, for a raw image"),
    ),
    request_body(content((ItemBody = "application/json"), (Vec<u8> = "image/*"), (Vec<u8> = "multipart/form-data"))),
    responses(
        (status = 200, description = "replaced", body = Outcome),
        (status = 201, description = "created", body = Outcome),
        (status = 400, description = "malformed", body = ErrorBody),
        (status = 401, description = "a key is asked for", body = ErrorBody),
        (status = 408, description = "the body came too slowly", body = ErrorBody),
        (status = 413, description = "too large", body = ErrorBody),
        (status = 415, description = "unsupported type", body = ErrorBody),
        (status = 422, description = "undecodable image", body = ErrorBody),
        (status = 429, description = "queue full", body = ErrorBody),
        (status = 503, description = "starting, stopping or timed out", body = ErrorBody),
        (status = 409, description = "wrong dimension, or a conflict", body = ErrorBody),
    )
)]
pub(crate) async fn put(State(app): State<AppState>, id: Id, received: Received) -> Result<Response, Failure> {
    let (model, id) = (app.model()?, path_id(id)?);
    let draft = match received.kind {
        Kind::Image => raw_draft(id, &received)?,
        Kind::Form => form_draft(id, &received).await?,
        Kind::Json => received.json::<ItemJson>(&app).await?.draft(Some(&id))?,
    };
    let mut outcomes = store(&app, &model, vec![Ok(draft)]).await?;
    let (id, created) = outcomes.pop().unwrap_or(Err(ApiError::Internal("no outcome".into())))?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(outcome(&id, created))).into_response())
}

fn outcome(id: &str, created: bool) -> Value {
    json!({ "id": id, "status": if created { "created" } else { "updated" } })
}

fn raw_draft(id: String, received: &Received) -> Result<Draft, ApiError> {
    let params: PutParams = query(&received.parts)?;
    let metadata = params.metadata.map(|text| parse_metadata(&text)).transpose()?.unwrap_or_default();
    Ok(Draft { id, source: Source::Image(received.bytes.clone()), metadata })
}

async fn form_draft(id: String, received: &Received) -> Result<Draft, ApiError> {
    let (mut images, mut metadata) = (Vec::new(), Metadata::new());
    for part in received.form().await? {
        match part.name.as_str() {
            _ if part.image => images.push(part.bytes),
            // JSON in a form of images describes them, whatever the field is called.
            "metadata" => metadata = parse_metadata(part.text()?)?,
            _ if part.json => metadata = parse_metadata(part.text()?)?,
            other => return Err(malformed(format!("the form has an unknown field `{other}`"))),
        }
    }
    match (images.pop(), images.is_empty()) {
        (Some(image), true) => Ok(Draft { id, source: Source::Image(image), metadata }),
        _ => Err(malformed("expected exactly one image in the form")),
    }
}

/// `POST /items`: a result for each item, in order; one bad item does not keep the others out.
///
/// JSON `{"items": [{"id", "image" | "vector", "metadata"}]}`, or a form whose image parts are named by their file
/// names, with an optional part `metadata`: `{"file name": {...}}`.
#[utoipa::path(
    post,
    path = "/items",
    tag = "items",
    request_body(content((ItemsBody = "application/json"), (Vec<u8> = "multipart/form-data"))),
    responses(
        (status = 200, description = "a result for each item", body = Results),
        (status = 400, description = "malformed", body = ErrorBody),
        (status = 401, description = "a key is asked for", body = ErrorBody),
        (status = 408, description = "the body came too slowly", body = ErrorBody),
        (status = 413, description = "too large", body = ErrorBody),
        (status = 415, description = "unsupported type", body = ErrorBody),
        (status = 422, description = "undecodable image", body = ErrorBody),
        (status = 429, description = "queue full", body = ErrorBody),
        (status = 503, description = "starting, stopping or timed out", body = ErrorBody),
        (status = 409, description = "the model was replaced meanwhile", body = ErrorBody),
    )
)]
pub(crate) async fn post(State(app): State<AppState>, received: Received) -> Result<Json<Value>, Failure> {
    let model = app.model()?;
    let drafts = match received.kind {
        Kind::Json => {
            let body: BatchJson = received.json(&app).await?;
            app.pool.run(move || Ok(body.items.into_iter().map(|i| i.draft(None)).collect::<Vec<_>>())).await?
        }
        Kind::Form => form_drafts(received.form().await?)?,
        Kind::Image => return Err(malformed("one image belongs to PUT /items/{id}; a batch is JSON or a form").into()),
    };
    if drafts.is_empty() {
        return Err(malformed("expected at least one item, found none").into());
    }
    let outcomes = store(&app, &model, drafts).await?;
    let results: Vec<Value> = outcomes.into_iter().enumerate().map(|(i, o)| result(i, o)).collect();
    Ok(Json(json!({ "results": results })))
}

fn result(index: usize, outcome_of: Result<(String, bool), ApiError>) -> Value {
    match outcome_of {
        Ok((id, created)) => outcome(&id, created),
        Err(error) => json!({ "error": error.at(index).to_json() }),
    }
}

fn form_drafts(parts: Vec<Part>) -> Result<Vec<Result<Draft, ApiError>>, ApiError> {
    let mut metadata = Map::new();
    let mut images = Vec::new();
    for part in parts {
        match part.name.as_str() {
            _ if part.image => images.push(part),
            // JSON in a form of images describes them, whatever the field is called.
            "metadata" => metadata = parse_metadata(part.text()?)?,
            _ if part.json => metadata = parse_metadata(part.text()?)?,
            other => return Err(malformed(format!("the form has an unknown field `{other}`"))),
        }
    }
    let mut draft = |part: Part| {
        let id = part.file_name.unwrap_or_default();
        check_id(&id).map_err(|e| malformed(format!("a part's file name is its id: {e}")))?;
        let metadata = match metadata.remove(&id) {
            None => Metadata::new(),
            Some(Value::Object(metadata)) => metadata,
            Some(_) => return Err(malformed(format!("the metadata of `{id}` must be a JSON object"))),
        };
        Ok(Draft { id, source: Source::Image(part.bytes), metadata })
    };
    Ok(images.into_iter().map(&mut draft).collect())
}

/// Embeds and stores what is in order; each draft's outcome in its place.
async fn store(
    app: &AppState,
    model: &Arc<Model>,
    drafts: Vec<Result<Draft, ApiError>>,
) -> Result<Vec<Result<(String, bool), ApiError>>, Failure> {
    let limit = app.settings.limits.images;
    if drafts.len() > limit {
        return Err(ApiError::TooManyImages { limit, found: drafts.len() }.into());
    }
    let drafts: Vec<Result<Draft, ApiError>> =
        drafts.into_iter().map(|d| d.and_then(|d| check_draft(d, app))).collect();
    let images: Vec<Bytes> = drafts.iter().flatten().filter_map(|d| d.source.image().cloned()).collect();
    let mut features = features::each(app, model, images, true).await?.into_iter();
    let mut ready = Vec::new();
    let mut outcomes: Vec<Result<String, ApiError>> = Vec::new();
    for draft in drafts {
        let item = draft.and_then(|d| finish(d, &mut features, model));
        outcomes.push(item.as_ref().map(|i| i.id.clone()).map_err(Clone::clone));
        ready.extend(item);
    }
    let stored = app.index.put(&model.encoder(), ready).await?;
    let mut stored = stored.into_iter();
    let mut next = || stored.next().unwrap_or(Ok(false)).map_err(ApiError::from);
    Ok(outcomes.into_iter().map(|o| o.and_then(|id| Ok((id, next()?)))).collect())
}

impl Source {
    fn image(&self) -> Option<&Bytes> {
        match self {
            Self::Image(bytes) => Some(bytes),
            Self::Vector(_) => None,
        }
    }
}

fn finish(
    draft: Draft,
    features: &mut impl Iterator<Item = Result<Feature, ApiError>>,
    model: &Model,
) -> Result<Item, ApiError> {
    let Draft { id, source, metadata } = draft;
    match source {
        Source::Vector(vector) => {
            let vector = check_vector(vector, model)?;
            Ok(Item { id, vector, metadata, image: None, pictured: false, hash: None })
        }
        Source::Image(_) => {
            let feature = features.next().unwrap_or(Err(ApiError::Internal("no feature".into())))?;
            let vector = normalized(feature.raw).map_err(ApiError::Internal)?;
            Ok(Item { id, vector, metadata, image: feature.thumbnail, pictured: true, hash: feature.hash })
        }
    }
}

fn describe(item: &Item) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("id".into(), item.id.clone().into());
    out.insert("metadata".into(), Value::Object(item.metadata.clone()));
    out.insert("image".into(), item.pictured.into());
    if !item.vector.is_empty() {
        out.insert("vector".into(), item.vector.iter().map(|v| f64::from(*v)).collect());
    }
    out
}

fn unknown(id: &str) -> ApiError {
    ApiError::NotFound(format!("there is no item `{id}`"))
}

/// `GET /items/{id}`; `?vector=true` adds the normalised vector.
#[utoipa::path(
    get,
    path = "/items/{id}",
    tag = "items",
    params(
        ("id" = String, Path, description = "1 to 512 bytes without control characters"),
        ("vector" = Option<bool>, Query, description = "with its vector"),
    ),
    responses(
        (status = 200, description = "the item", body = ItemDescription),
        (status = 400, description = "malformed", body = ErrorBody),
        (status = 401, description = "a key is asked for", body = ErrorBody),
        (status = 404, description = "unknown", body = ErrorBody),
        (status = 503, description = "the index does not answer", body = ErrorBody),
    )
)]
pub(crate) async fn get(State(app): State<AppState>, id: Id, uri: Uri) -> Result<Json<Value>, Failure> {
    let id = path_id(id)?;
    let params: GetParams = query_of(&uri)?;
    let mut item = app.index.get(&id).await?.ok_or_else(|| unknown(&id))?;
    if !params.vector {
        item.vector.clear();
    }
    Ok(Json(describe(&item).into()))
}

/// `GET /items/{id}/image`: the small PNG of an item that came as an image.
#[utoipa::path(
    get,
    path = "/items/{id}/image",
    tag = "items",
    params(
        ("id" = String, Path, description = "1 to 512 bytes without control characters"),
    ),
    responses(
        (status = 200, description = "a small picture", body = Vec<u8>, content_type = "image/png"),
        (status = 400, description = "malformed", body = ErrorBody),
        (status = 401, description = "a key is asked for", body = ErrorBody),
        (status = 404, description = "unknown", body = ErrorBody),
        (status = 503, description = "the index does not answer", body = ErrorBody),
    )
)]
pub(crate) async fn image(State(app): State<AppState>, id: Id) -> Result<Response, Failure> {
    let id = path_id(id)?;
    let item = app.index.get(&id).await?.ok_or_else(|| unknown(&id))?;
    let png = item.image.ok_or_else(|| ApiError::NotFound(format!("item `{id}` came without an image")))?;
    Ok(([(CONTENT_TYPE, "image/png"), (CACHE_CONTROL, "no-cache")], png.to_vec()).into_response())
}

/// `DELETE /items/{id}`.
#[utoipa::path(
    delete,
    path = "/items/{id}",
    tag = "items",
    params(
        ("id" = String, Path, description = "1 to 512 bytes without control characters"),
    ),
    responses(
        (status = 200, description = "deleted", body = Outcome),
        (status = 400, description = "malformed", body = ErrorBody),
        (status = 401, description = "a key is asked for", body = ErrorBody),
        (status = 404, description = "unknown", body = ErrorBody),
        (status = 503, description = "the index does not answer", body = ErrorBody),
    )
)]
pub(crate) async fn delete(State(app): State<AppState>, id: Id) -> Result<Json<Value>, Failure> {
    let id = path_id(id)?;
    if app.index.delete(&id).await? {
        Ok(Json(json!({ "id": id, "status": "deleted" })))
    } else {
        Err(unknown(&id).into())
    }
}

/// `GET /items?cursor=&limit=`: pages in the order of ids; `next` is the following page's cursor, `total` counts the
/// items of all pages.
#[utoipa::path(
    get,
    path = "/items",
    tag = "items",
    params(
        ("cursor" = Option<String>, Query, description = "from the page before"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000, description = "items per page (default 100)"),
        ("filter" = Option<String>, Query, description = "a filter as in /search, as JSON"),
        ("vectors" = Option<bool>, Query, description = "with their vectors"),
    ),
    responses(
        (status = 200, description = "a page in the order of ids", body = ItemsPage),
        (status = 400, description = "malformed", body = ErrorBody),
        (status = 401, description = "a key is asked for", body = ErrorBody),
        (status = 503, description = "the index does not answer", body = ErrorBody),
    )
)]
pub(crate) async fn list(State(app): State<AppState>, parts: Parts) -> Result<Json<Value>, Failure> {
    let params: ListParams = query(&parts)?;
    let (limit, most) = (params.limit.unwrap_or(100), app.settings.limits.hits);
    if !(1..=most).contains(&limit) {
        return Err(malformed(format!("limit must be in 1..={most}, found {limit}")).into());
    }
    // An empty cursor is the first page.
    let cursor = params.cursor.filter(|c| !c.is_empty());
    let filter = filter_text(params.filter.as_deref())?;
    let page = app.index.list(Listing { cursor, limit, filter, vectors: params.vectors, uncounted: false }).await?;
    let items: Vec<Value> = page.items.iter().map(|i| describe(i).into()).collect();
    Ok(Json(json!({ "items": items, "next": page.next, "total": page.total })))
}
