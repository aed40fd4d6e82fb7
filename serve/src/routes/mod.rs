//! The routes: [`app`] makes a router of a state, which tests can use without a socket.

mod embed;
mod explore;
mod info;
mod items;
mod labels;
mod middleware;
mod openai;
mod openapi;
mod pages;
mod parse;
mod responses;
mod search;
mod security_headers;
mod store_items;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::Uri;
use axum::routing::{get, post, put};

use crate::error::{ApiError, Failure};
use crate::keys::Role;
use crate::state::AppState;

/// The whole server as a service.
pub fn app(state: AppState) -> Router {
    let guard = |role| axum::middleware::from_fn_with_state((state.clone(), role), middleware::authorize);
    let read = Router::new()
        .route("/embed", post(embed::embed))
        .route("/classify", post(embed::classify))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*model}", get(openai::model))
        .route("/search", post(search::search))
        .route("/items", get(items::list))
        .route("/items/{id}", get(items::get))
        .route("/items/{id}/image", get(items::image))
        .route("/duplicates", get(explore::duplicates))
        .route("/map", get(explore::map))
        .route("/labels", get(labels::list))
        .route("/probe", get(labels::get).post(labels::train))
        .route("/info", get(info::info))
        .route("/metrics", get(info::metrics))
        .route_layer(guard(Role::Read));
    let write = Router::new()
        .route("/items", post(items::post))
        .route("/labels", post(labels::change))
        .route("/items/{id}", put(items::put).delete(items::delete))
        .route_layer(guard(Role::Write));
    let admin = Router::new().route("/admin/reload", post(info::reload)).route_layer(guard(Role::Admin));
    let open = Router::new()
        .route("/", get(pages::search))
        .route("/docs", get(pages::docs))
        .route("/page/{file}", get(pages::file))
        .route("/openapi.json", get(openapi::document))
        .route("/health", get(info::health))
        .route("/ready", get(info::ready));
    let routes = read
        .merge(write)
        .merge(admin)
        .merge(open)
        .fallback(async |uri: Uri| Failure::from(no_route(uri.path())))
        .method_not_allowed_fallback(async || Failure::from(ApiError::Method))
        // `RequestBody` limits bodies, with an error of our own form.
        .layer(DefaultBodyLimit::disable());
    middleware::wrap(routes, &state).with_state(state)
}

/// 404.  The message hints at the usual cause, an id with slashes.
fn no_route(path: &str) -> ApiError {
    let clipped = |text: &str| text.chars().take(200).collect::<String>();
    let Some(id) = path.strip_prefix("/items/").filter(|id| id.contains('/')) else {
        return ApiError::NotFound(format!("there is no route {}", clipped(path)));
    };
    let (id, image) = id.strip_suffix("/image").map_or((id, ""), |id| (id, "/image"));
    let right = clipped(&format!("/items/{}{image}", id.replace('/', "%2F")));
    ApiError::NotFound(format!("there is no route {}; slashes in an id are written %2F: {right}", clipped(path)))
}
