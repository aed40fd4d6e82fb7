//! `/duplicates` and `/map`: the index as a whole.

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use macrl_kernels::projection::{Projection, project};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{filter_text, query, search};
use crate::error::Failure;
use crate::index::Item;
use crate::index::duplicates::{Comparison, Group, duplicates as find};
use crate::input::malformed;
use crate::openapi::{DuplicatesPage, ErrorBody, MapBody};
use crate::state::AppState;

/// Points of a map where nothing else is asked for.
const POINTS: usize = 1500;
/// Points of a map at most.
const MOST_POINTS: usize = 5000;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DuplicatesParams {
    threshold: Option<f64>,
    cursor: Option<String>,
    limit: Option<usize>,
    filter: Option<String>,
    exact: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MapParams {
    points: Option<usize>,
}

/// `GET /duplicates?threshold=0.98`: items and those that are nearly the same, page by page.
#[utoipa::path(
    get,
    path = "/duplicates",
    tag = "search",
    params(
        ("threshold" = Option<f64>, Query, minimum = -1, maximum = 1, description = "smallest cosine (default 0.98)"),
        ("cursor" = Option<String>, Query, description = "from the page before"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000, description = "groups per page (default 100)"),
        ("filter" = Option<String>, Query, description = "a filter as in /search, as JSON"),
        ("exact" = Option<bool>, Query, description = "no approximation"),
    ),
    responses(
        (status = 200, description = "groups in the order of their ids", body = DuplicatesPage),
        (status = 400, description = "malformed", body = ErrorBody),
        (status = 401, description = "a key is asked for", body = ErrorBody),
        (status = 503, description = "the index does not answer", body = ErrorBody),
    )
)]
pub(crate) async fn duplicates(State(app): State<AppState>, parts: Parts) -> Result<Json<Value>, Failure> {
    let params: DuplicatesParams = query(&parts)?;
    let (threshold, limit, most) =
        (params.threshold.unwrap_or(0.98), params.limit.unwrap_or(100), app.settings.limits.hits);
    if !(-1.0..=1.0).contains(&threshold) {
        return Err(malformed(format!("threshold must be a cosine in -1..=1, found {threshold}")).into());
    }
    if !(1..=most).contains(&limit) {
        return Err(malformed(format!("limit must be in 1..={most}, found {limit}")).into());
    }
    let filter = filter_text(params.filter.as_deref())?;
    let cursor = params.cursor.filter(|c| !c.is_empty());
    let comparison = Comparison { threshold: threshold as f32, cursor, limit, filter, exact: params.exact };
    let (groups, next) = find(app.index.as_ref(), &comparison).await?;
    let group = |group: Group| {
        let duplicates: Vec<Value> = group.duplicates.into_iter().map(search::hit).collect();
        json!({ "id": group.id, "count": group.count, "duplicates": duplicates })
    };
    let groups: Vec<Value> = groups.into_iter().map(group).collect();
    Ok(Json(json!({ "groups": groups, "next": next })))
}

/// `GET /map`: items spread over the index in the plane in which their vectors vary most.
#[utoipa::path(
    get,
    path = "/map",
    tag = "search",
    params(
        ("points" = Option<usize>, Query, minimum = 1, maximum = 5000, description = "points, about (default 1500)"),
    ),
    responses(
        (status = 200, description = "points with coordinates in [-1, 1]", body = MapBody),
        (status = 400, description = "malformed", body = ErrorBody),
        (status = 401, description = "a key is asked for", body = ErrorBody),
        (status = 503, description = "the index does not answer", body = ErrorBody),
    )
)]
pub(crate) async fn map(State(app): State<AppState>, parts: Parts) -> Result<Json<Value>, Failure> {
    let params: MapParams = query(&parts)?;
    let points = params.points.unwrap_or(POINTS);
    if !(1..=MOST_POINTS).contains(&points) {
        return Err(malformed(format!("points must be in 1..={MOST_POINTS}, found {points}")).into());
    }
    let total = app.index.status().await?.items;
    let items = app.index.sample(points).await?;
    let drawn = app.pool.run(move || Ok(draw(items))).await?;
    let (points, explained) = drawn;
    Ok(Json(json!({ "points": points, "explained": explained, "total": total })))
}

fn draw(items: Vec<Item>) -> (Vec<Value>, [f32; 2]) {
    let dim = items.first().map_or(0, |item| item.vector.len());
    let vectors: Vec<f32> = items.iter().flat_map(|item| item.vector.iter().copied()).collect();
    let Projection { points, explained } = project(&vectors, dim);
    let point = |(item, [x, y]): (Item, [f32; 2])| {
        // Four digits are a twentieth of a pixel.
        let [x, y] = [x, y].map(|v| (f64::from(v) * 1e4).round() / 1e4);
        json!({ "id": item.id, "x": x, "y": y, "metadata": item.metadata, "image": item.pictured })
    };
    (items.into_iter().zip(points).map(point).collect(), explained)
}
