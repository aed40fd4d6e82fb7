//! `POST /search`: the items nearest to an image, a vector or another item.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;

use super::embed::predict;
use super::parse::{self, ChargedFilter};
use super::responses::{BODY, IMAGES, INDEX, KEY, MODEL, error_responses};
use crate::api::bounded::Numbers;
use crate::api::search::{HitBody, Hits, SearchBody, SearchParams};
use crate::body::{Kind, RequestBody};
use crate::error::{ApiError, ErrorKind, Failure};
use crate::features;
use crate::index::{Query, normalized};
use crate::state::{App, AppState, Model};

/// What is searched with.
enum Target {
    Vector(Numbers),
    Item(String),
    Image(Bytes),
}

/// A parsed request.
struct Request {
    target: Target,
    filter: ChargedFilter,
    exact: bool,
    k: usize,
    top_k: Option<usize>,
    with_vector: bool,
}

const OWN: &[ErrorKind] = &[ErrorKind::NotFound, ErrorKind::Dimension, ErrorKind::Conflict];

error_responses!(SearchErrors, ErrorBody, [KEY, BODY, IMAGES, MODEL, INDEX, OWN]);

/// The nearest items by cosine.  A search by `id` leaves that item out.
#[utoipa::path(
    post,
    path = "/search",
    tag = "search",
    params(SearchParams),
    request_body(content((SearchBody = "application/json"), (Vec<u8> = "image/*"), (Vec<u8> = "multipart/form-data"))),
    responses((status = 200, description = "the nearest items, best first", body = Hits), SearchErrors)
)]
pub(crate) async fn search(State(app): State<AppState>, body: RequestBody) -> Result<Json<Hits>, Failure> {
    let model = app.model()?;
    let request = parse_request(body, &app).await?;
    let mut predictions = None;
    let (vector, except) = match request.target {
        Target::Vector(vector) => (check_vector(vector, &model)?, None),
        Target::Item(id) => (item_vector(&app, &id).await?, Some(id)),
        Target::Image(bytes) => {
            let mut found = features::all(&app, &model, vec![bytes]).await?;
            let raw = found.pop().map(|f| f.raw).unwrap_or_default();
            let top_k = request.top_k.filter(|_| model.bundle.probe.is_some());
            predictions = top_k.map(|top_k| predict(&model.bundle, &raw, top_k));
            (normalized(raw).map_err(ApiError::Internal)?, None)
        }
    };
    let Request { filter: (filter, _charge), exact, k, with_vector, .. } = request;
    let asked = with_vector.then(|| vector.iter().copied().map(f64::from).collect());
    let query = Query { vector, k, filter, exact, except };
    let found = app.index.search(vec![query]).await?;
    Ok(Json(Hits { hits: found.into_iter().flatten().map(HitBody::from).collect(), predictions, vector: asked }))
}

async fn item_vector(app: &AppState, id: &str) -> Result<Vec<f32>, ApiError> {
    let item = app.index.get(id).await?;
    item.map(|i| i.vector).ok_or_else(|| ApiError::NotFound(format!("there is no item `{id}`")))
}

/// Checks that the client's vector has the model's length, and scales it to length 1.
pub(super) fn check_vector(vector: Numbers, model: &Model) -> Result<Vec<f32>, ApiError> {
    if vector.count != model.dim() {
        return Err(ApiError::Dimension { expected: model.dim(), found: vector.count });
    }
    normalized(vector.kept).map_err(ApiError::Malformed)
}

async fn parse_request(body: RequestBody, app: &AppState) -> Result<Request, Failure> {
    let params: SearchParams = parse::query(&body.parts.uri)?;
    let (target, rest) = match body.kind {
        Kind::Image => (Target::Image(body.bytes.clone()), SearchBody::default()),
        Kind::Form => from_form(&body, app).await?,
        Kind::Json => match from_json(body.json(app).await?)? {
            (Target::Image(image), rest) => (Target::Image(body.hold(image)), rest),
            other => other,
        },
    };
    let (k, limit) = (params.k.or(rest.k).unwrap_or(10), app.settings.limits.hits);
    if !(1..=limit).contains(&k) {
        return Err(ApiError::malformed(format!("k must be in 1..={limit}, found {k}")).into());
    }
    if params.top_k == Some(0) {
        return Err(ApiError::malformed("top_k must be at least 1, found 0").into());
    }
    let exact = rest.exact.or(params.exact).unwrap_or(false);
    let filter = parse::filter(rest.filter.as_ref(), app)?;
    Ok(Request { target, filter, exact, k, top_k: params.top_k, with_vector: params.vector })
}

fn from_json(mut body: SearchBody) -> Result<(Target, SearchBody), ApiError> {
    let target = match (body.vector.take(), body.id.take(), body.image.take()) {
        (Some(vector), None, None) => Target::Vector(vector),
        (None, Some(id), None) => Target::Item(id),
        (None, None, Some(image)) => Target::Image(parse::image(&image)?),
        _ => return Err(ApiError::malformed("expected exactly one of `vector`, `id` and `image`")),
    };
    Ok((target, body))
}

async fn from_form(body: &RequestBody, app: &App) -> Result<(Target, SearchBody), ApiError> {
    let (mut images, mut rest) = (Vec::new(), SearchBody::default());
    for part in body.form(app).await? {
        match part.name.as_str() {
            _ if part.is_image => images.push(part.bytes),
            "filter" => rest.filter = Some(part.json()?),
            "exact" => rest.exact = Some(part.json()?),
            "k" => rest.k = Some(part.json()?),
            other => return Err(ApiError::malformed(format!("the form has an unknown field `{other}`"))),
        }
    }
    match (images.pop(), images.is_empty()) {
        (Some(image), true) => Ok((Target::Image(image), rest)),
        _ => Err(ApiError::malformed("expected exactly one image in the form")),
    }
}
