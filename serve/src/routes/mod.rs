//! The routes: `app(state) -> Router`, testable without a socket.

pub(crate) mod embed;
pub(crate) mod explore;
pub(crate) mod info;
pub(crate) mod items;
mod layers;
pub(crate) mod openai;
pub(crate) mod search;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query as AxumQuery};
use axum::http::Uri;
use axum::http::request::Parts;
use axum::response::Html;
use axum::routing::{get, post};
use serde::de::DeserializeOwned;

use crate::error::{ApiError, Failure};
use crate::index::{Filter, Metadata};
use crate::input::malformed;
use crate::openapi;
use crate::state::AppState;

/// The whole server as a service.
pub fn app(state: AppState) -> Router {
    let guarded = Router::new()
        .route("/embed", post(embed::embed))
        .route("/classify", post(embed::classify))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*model}", get(openai::model))
        .route("/search", post(search::search))
        .route("/items", post(items::post).get(items::list))
        .route("/items/{id}", get(items::get).put(items::put).delete(items::delete))
        .route("/items/{id}/image", get(items::image))
        .route("/duplicates", get(explore::duplicates))
        .route("/map", get(explore::map))
        .route("/info", get(info::info))
        .route("/metrics", get(info::metrics))
        .route("/admin/reload", post(info::reload))
        .route_layer(axum::middleware::from_fn_with_state(state.clone(), layers::authorize));
    let open = Router::new()
        .route("/", get(async || Html(include_str!("../pages/index.html"))))
        .route("/docs", get(async || Html(include_str!("../pages/docs.html"))))
        .route("/openapi.json", get(openapi::document))
        .route("/health", get(info::health))
        .route("/ready", get(info::ready));
    let routes = guarded
        .merge(open)
        .fallback(async |uri: Uri| Failure::from(no_route(uri.path())))
        .method_not_allowed_fallback(async || Failure::from(ApiError::Method))
        // Bodies are bounded where they are read (`input.rs`), with an answer in our own words.
        .layer(DefaultBodyLimit::disable());
    layers::wrap(routes, &state).with_state(state)
}

/// 404; an id with slashes in it looks like a route that there is not.
fn no_route(path: &str) -> ApiError {
    let clipped = |text: &str| text.chars().take(200).collect::<String>();
    let Some(id) = path.strip_prefix("/items/").filter(|id| id.contains('/')) else {
        return ApiError::NotFound(format!("there is no route {}", clipped(path)));
    };
    let (id, picture) = id.strip_suffix("/image").map_or((id, ""), |id| (id, "/image"));
    let right = clipped(&format!("/items/{}{picture}", id.replace('/', "%2F")));
    ApiError::NotFound(format!("there is no route {}; slashes in an id are written %2F: {right}", clipped(path)))
}

/// The query string as `T`.
fn query<T: DeserializeOwned>(parts: &Parts) -> Result<T, ApiError> {
    query_of(&parts.uri)
}

fn query_of<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    AxumQuery::try_from_uri(uri).map(|AxumQuery(value)| value).map_err(|e| {
        malformed(format!(
            "the query cannot be read: {}",
            e.body_text().trim_start_matches("Failed to deserialize query string: ")
        ))
    })
}

/// A filter as it comes in JSON.
fn filter(json: Option<Metadata>) -> Result<Filter, ApiError> {
    Filter::parse(json.unwrap_or_default()).map_err(malformed)
}

/// A filter as it comes in a query string.
fn filter_text(text: Option<&str>) -> Result<Filter, ApiError> {
    let parse = |text| serde_json::from_str(text).map_err(|e| malformed(format!("filter must be a JSON object: {e}")));
    filter(text.map(parse).transpose()?)
}
