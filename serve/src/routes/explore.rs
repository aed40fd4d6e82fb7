//! `GET /duplicates` and `GET /map`: views of the whole index.

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use macrl_kernels::projection::{Frame, Plane};

use super::parse;
use super::responses::{INDEX, KEY, error_responses};
use crate::api::search::{
    DuplicatesOf, DuplicatesPage, DuplicatesParams, MAX_POINTS, MapBody, MapParams, MapPlane, MapPoint,
};
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
    let (filter, _charge) = parse::filter_text(params.filter.as_deref(), &app)?;
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
    // One at a time: a large map takes the memory of all its vectors.
    let _turn = app.map_turn.lock().await;
    let total = app.index.status().await?.items;
    let items = app.index.sample(points).await?;
    Ok(Json(app.pool.run(move || draw_map(items, total)).await?))
}

/// Vectors that the plane is fitted to: more would not move it visibly.
const FITTED: usize = 5000;

/// Most bytes of metadata in a map.
const MAX_METADATA: usize = 96 << 20;

fn draw_map(items: Vec<Item>, total: usize) -> Result<MapBody, ApiError> {
    let metadata: usize = items.iter().map(|item| item.metadata.as_str().len()).sum();
    if metadata > MAX_METADATA {
        let found = format!("found {metadata} in {} items: ask for fewer points", items.len());
        return Err(ApiError::malformed(format!("a map has at most {MAX_METADATA} bytes of metadata, {found}")));
    }
    let Some(dim) = items.first().map(|item| item.vector.len()).filter(|dim| *dim > 0) else {
        return Ok(MapBody { points: Vec::new(), explained: [0.0; 2], plane: None, total });
    };
    let step = items.len().div_ceil(FITTED);
    let fitted: Vec<f32> = items.iter().step_by(step).flat_map(|item| item.vector.iter().copied()).collect();
    let plane = Plane::fit(&fitted, dim);
    let coordinates: Vec<[f64; 2]> = items.iter().map(|item| plane.place(&item.vector)).collect();
    let frame = Frame::around(&coordinates);
    let point = |(item, coordinates): (Item, &[f64; 2])| {
        // Four digits are a twentieth of a pixel.
        let [x, y] = frame.place(coordinates).map(|v| (v * 1e4).round() / 1e4);
        MapPoint { id: item.id, x, y, metadata: item.metadata, image: item.has_image }
    };
    let points = items.into_iter().zip(&coordinates).map(point).collect();
    Ok(MapBody { points, explained: plane.explained, plane: Some(plane_body(&plane, frame)), total })
}

fn plane_body(plane: &Plane, frame: Frame) -> MapPlane {
    let origin = plane.place(&vec![0.0; plane.mean.len()]);
    let [x, y] = [0, 1].map(|a| plane.axes[a].iter().map(|v| v / frame.half).collect());
    MapPlane { x, y, offset: frame.place(&origin) }
}
