//! `/items`: stores, reads, lists and deletes items.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::parse;
use super::responses::{BODY, IMAGES, INDEX, KEY, MODEL, error_responses};
use super::store_items::{Draft, form_draft, form_drafts, json_draft, raw_draft, store};
use crate::api::items::{
    GetParams, ItemBody, ItemDescription, ItemResult, ItemsBody, ItemsPage, ListParams, Outcome, PutParams, Results,
};
use crate::body::{Kind, RequestBody};
use crate::error::{ApiError, ErrorKind, Failure};
use crate::index::{ListQuery, check_id};
use crate::state::AppState;
use crate::thumbnail;

type Id = Result<Path<String>, PathRejection>;

fn path_id(id: Id) -> Result<String, ApiError> {
    let Path(id) = id.map_err(|e| ApiError::malformed(e.body_text()))?;
    check_id(&id).map_err(ApiError::Malformed)?;
    Ok(id)
}

const PUT: &[ErrorKind] = &[ErrorKind::Dimension, ErrorKind::Conflict, ErrorKind::IndexFull];

error_responses!(PutErrors, ErrorBody, [KEY, BODY, IMAGES, MODEL, INDEX, PUT]);

/// `PUT /items/{id}`: 201 if the item is new, otherwise 200.
#[utoipa::path(
    put,
    path = "/items/{id}",
    tag = "items",
    params(("id" = String, Path, description = "1 to 512 bytes without control characters"), PutParams),
    request_body(content((ItemBody = "application/json"), (Vec<u8> = "image/*"), (Vec<u8> = "multipart/form-data"))),
    responses(
        (status = 200, description = "replaced", body = Outcome),
        (status = 201, description = "created", body = Outcome),
        PutErrors,
    )
)]
pub(crate) async fn put(State(app): State<AppState>, id: Id, body: RequestBody) -> Result<Response, Failure> {
    let (model, id) = (app.model()?, path_id(id)?);
    let draft = match body.kind {
        Kind::Image => raw_draft(id, &body, &app)?,
        Kind::Form => form_draft(id, &body, &app).await?,
        Kind::Json => json_draft(body.json::<ItemBody>(&app).await?, Some(&id), &app.settings.limits)?.holding(&body),
    };
    let mut outcomes = store(&app, &model, vec![Ok(draft)]).await?;
    let (id, created) = outcomes.pop().unwrap_or(Err(ApiError::Internal("no outcome".into())))?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Outcome::stored(id, created))).into_response())
}

error_responses!(PostErrors, ErrorBody, [KEY, BODY, IMAGES, MODEL, INDEX, &[ErrorKind::Conflict]]);

/// `POST /items`: a result for each item, in order; a bad item does not keep the others out.
///
/// JSON `{"items": [{"id", "image" | "vector", "metadata"}]}`, or a form whose image parts are named by their file
/// names, with an optional part `metadata`: `{"file name": {...}}`.
#[utoipa::path(
    post,
    path = "/items",
    tag = "items",
    request_body(content((ItemsBody = "application/json"), (Vec<u8> = "multipart/form-data"))),
    responses((status = 200, description = "a result for each item", body = Results), PostErrors)
)]
pub(crate) async fn post(State(app): State<AppState>, body: RequestBody) -> Result<Json<Results>, Failure> {
    let model = app.model()?;
    let drafts: Vec<Result<Draft, ApiError>> = match body.kind {
        Kind::Json => {
            let json: ItemsBody = body.json(&app).await?;
            let limit = app.settings.limits.images;
            if json.items.count > limit {
                return Err(ApiError::TooManyImages { limit, found: json.items.count }.into());
            }
            let limits = app.settings.limits.clone();
            let drafts = move || {
                let draft = |item| json_draft(item, None, &limits);
                Ok::<_, ApiError>(json.items.kept.into_iter().map(draft).collect())
            };
            let drafts: Vec<Result<Draft, ApiError>> = app.pool.run(drafts).await?;
            drafts.into_iter().map(|draft| draft.map(|draft| draft.holding(&body))).collect()
        }
        Kind::Form => form_drafts(body.form(&app).await?, &app.settings.limits)?,
        Kind::Image => {
            let message = "one image belongs to PUT /items/{id}; a batch is JSON or a form";
            return Err(ApiError::malformed(message).into());
        }
    };
    if drafts.is_empty() {
        return Err(ApiError::malformed("expected at least one item, found none").into());
    }
    let outcomes = store(&app, &model, drafts).await?;
    let results = outcomes.into_iter().enumerate().map(|(index, outcome)| match outcome {
        Ok((id, created)) => ItemResult::Stored(Outcome::stored(id, created)),
        Err(error) => ItemResult::Refused(error.at(index).body()),
    });
    Ok(Json(Results { results: results.collect() }))
}

fn unknown(id: &str) -> ApiError {
    ApiError::NotFound(format!("there is no item `{id}`"))
}

error_responses!(ItemErrors, ErrorBody, [KEY, INDEX, &[ErrorKind::Malformed, ErrorKind::NotFound]]);

/// `GET /items/{id}`; `?vector=true` adds the normalised vector.
#[utoipa::path(
    get,
    path = "/items/{id}",
    tag = "items",
    params(("id" = String, Path, description = "1 to 512 bytes without control characters"), GetParams),
    responses((status = 200, description = "the item", body = ItemDescription), ItemErrors)
)]
pub(crate) async fn get(State(app): State<AppState>, id: Id, uri: Uri) -> Result<Json<ItemDescription>, Failure> {
    let id = path_id(id)?;
    let params: GetParams = parse::query(&uri)?;
    let mut item = app.index.get(&id).await?.ok_or_else(|| unknown(&id))?;
    if !params.vector {
        item.vector.clear();
    }
    Ok(Json(item.into()))
}

/// `GET /items/{id}/image`: the thumbnail (PNG or JPEG) of an item that was made from an image.
#[utoipa::path(
    get,
    path = "/items/{id}/image",
    tag = "items",
    params(("id" = String, Path, description = "1 to 512 bytes without control characters")),
    responses(
        (status = 200, description = "a small picture", content((Vec<u8> = "image/png"), (Vec<u8> = "image/jpeg"))),
        ItemErrors,
    )
)]
pub(crate) async fn image(State(app): State<AppState>, id: Id) -> Result<Response, Failure> {
    let id = path_id(id)?;
    let item = app.index.get(&id).await?.ok_or_else(|| unknown(&id))?;
    let bytes = item.image.ok_or_else(|| ApiError::NotFound(format!("item `{id}` came without an image")))?;
    let headers = [(CONTENT_TYPE, thumbnail::media_type(&bytes)), (CACHE_CONTROL, "no-cache")];
    Ok((headers, bytes.to_vec()).into_response())
}

/// `DELETE /items/{id}`.
#[utoipa::path(
    delete,
    path = "/items/{id}",
    tag = "items",
    params(("id" = String, Path, description = "1 to 512 bytes without control characters")),
    responses((status = 200, description = "deleted", body = Outcome), ItemErrors)
)]
pub(crate) async fn delete(State(app): State<AppState>, id: Id) -> Result<Json<Outcome>, Failure> {
    let id = path_id(id)?;
    if app.index.delete(&id).await? { Ok(Json(Outcome::deleted(id))) } else { Err(unknown(&id).into()) }
}

error_responses!(ListErrors, ErrorBody, [KEY, INDEX, &[ErrorKind::Malformed, ErrorKind::QueueFull]]);

/// `GET /items?cursor=&limit=`: pages in the order of ids.  `next` is the cursor of the following page, `total` the number of
/// items on all pages.
#[utoipa::path(
    get,
    path = "/items",
    tag = "items",
    params(ListParams),
    responses((status = 200, description = "a page in the order of ids", body = ItemsPage), ListErrors)
)]
pub(crate) async fn list(State(app): State<AppState>, parts: Parts) -> Result<Json<ItemsPage>, Failure> {
    let params: ListParams = parse::query(&parts.uri)?;
    let (limit, most) = (params.limit.unwrap_or(100), app.settings.limits.hits);
    if !(1..=most).contains(&limit) {
        return Err(ApiError::malformed(format!("limit must be in 1..={most}, found {limit}")).into());
    }
    // An empty cursor is the first page.
    let cursor = params.cursor.filter(|c| !c.is_empty());
    let (filter, _charge) = parse::filter_text(params.filter.as_deref(), &app)?;
    let query = ListQuery { cursor, limit, filter, vectors: params.vectors, skip_total: false };
    let page = app.index.list(query).await?;
    let items = page.items.into_iter().map(ItemDescription::from).collect();
    Ok(Json(ItemsPage { items, next: page.next, total: page.total }))
}
