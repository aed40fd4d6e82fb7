//! `GET /duplicates` and `GET /map`: views of the whole index.

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use macrl_kernels::projection::{Projection, project};

use super::parse;
use super::responses::{INDEX, KEY, error_responses};
use crate::api::search::{DuplicatesOf, DuplicatesPage, DuplicatesParams, MAX_POINTS, MapBody, MapParams, MapPoint};
use crate::error::{ApiError, ErrorKind, Failure};
use crate::index::Item;
use crate::index::duplicates::{DuplicateQuery, duplicates as find};
use crate::state::AppState;

/// Points of a map by default.
const DEFAULT_POINTS: usize = 1500;

error_responses!(ExploreErrors, ErrorBody, [&[ErrorKind::Malformed, ErrorKind::QueueFull], KEY, INDEX]);

/// `GET /duplicates?threshold=0.98`: groups of near-duplicate items, page by page.
#[utoipa::path(
    get,
    path = "/duplicates",
    tag = "search",
    params(DuplicatesParams),
    responses((status = 200, description = "groups in the order of their ids", body = DuplicatesPage), ExploreErrors)
)]
pub(crate) async fn duplicates(State(app): State<AppState>, parts: Parts) -> Result<Json<DuplicatesPage>, Failure> {
    let params: DuplicatesParams = parse::query(&parts.uri)?;
    let (threshold, limit, most) =
        (params.threshold.unwrap_or(0.98), params.limit.unwrap_or(100), app.settings.limits.hits);
    if !(-1.0..=1.0).contains(&threshold) {
        return Err(ApiError::malformed(format!("threshold must be a cosine in -1..=1, found {threshold}")).into());
    }
    if !(1..=most).contains(&limit) {
        return Err(ApiError::malformed(format!("limit must be in 1..={most}, found {limit}")).into());
    }
    let filter = parse::filter_text(params.filter.as_deref(), &app.settings.limits)?;
    let cursor = params.cursor.filter(|c| !c.is_empty());
    let query = DuplicateQuery { threshold: threshold as f32, cursor, limit, filter, exact: params.exact };
    let (groups, next) = find(app.index.as_ref(), &query).await?;
    Ok(Json(DuplicatesPage { groups: groups.into_iter().map(DuplicatesOf::from).collect(), next }))
}

/// `GET /map`: items spread over the index, drawn in the plane in which their vectors vary most.
#[utoipa::path(
    get,
    path = "/map",
    tag = "search",
    params(MapParams),
    responses((status = 200, description = "points with coordinates in [-1, 1]", body = MapBody), ExploreErrors)
)]
pub(crate) async fn map(State(app): State<AppState>, parts: Parts) -> Result<Json<MapBody>, Failure> {
    let params: MapParams = parse::query(&parts.uri)?;
    let points = params.points.unwrap_or(DEFAULT_POINTS);
    if !(1..=MAX_POINTS).contains(&points) {
        return Err(ApiError::malformed(format!("points must be in 1..={MAX_POINTS}, found {points}")).into());
    }
    let total = app.index.status().await?.items;
    let items = app.index.sample(points).await?;
    Ok(Json(app.pool.run(move || Ok::<_, ApiError>(draw_map(items, total))).await?))
}

fn draw_map(items: Vec<Item>, total: usize) -> MapBody {
    let dim = items.first().map_or(0, |item| item.vector.len());
    let vectors: Vec<f32> = items.iter().flat_map(|item| item.vector.iter().copied()).collect();
    let Projection { points, explained } = project(&vectors, dim);
    let point = |(item, [x, y]): (Item, [f32; 2])| {
        // Four digits are a twentieth of a pixel.
        let [x, y] = [x, y].map(|v| (f64::from(v) * 1e4).round() / 1e4);
        MapPoint { id: item.id, x, y, metadata: item.metadata, image: item.has_image }
    };
    let points = items.into_iter().zip(points).map(point).collect();
    MapBody { points, explained: explained.map(f64::from), total }
}
