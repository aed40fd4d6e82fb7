//! stub
use axum::Json;
use serde_json::{Value, json};
/// The document.
pub async fn document() -> Json<Value> {
    Json(json!({}))
}
