//! `GET /openapi.json`: the OpenAPI 3.1 document, generated from the handlers' annotations and the types of [`crate::api`].

use axum::Json;
use axum::extract::State;
use serde_json::Value;
use utoipa::OpenApi;

use super::{embed, explore, info, items, labels, openai, search};
use crate::api::errors::{ErrorBody, OpenAiErrorBody};
use crate::api::images::ProbeChoice;
use crate::api::labels::LabelsFormat;
use crate::api::search::MAX_POINTS;
use crate::error::{ApiError, Failure};
use crate::limits::{Limits, MAX_INPUTS};
use crate::state::AppState;

/// The document, with this server's limits.
pub(crate) async fn document(State(app): State<AppState>) -> Result<Json<Value>, Failure> {
    document_for(&app.settings.limits).map(Json).map_err(|e| ApiError::Internal(e.to_string()).into())
}

fn document_for(limits: &Limits) -> serde_json::Result<Value> {
    let mut document = serde_json::to_value(Description::openapi())?;
    set_limits(&mut document, limits);
    Ok(document)
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "macrl-serve",
        description = "Images to embeddings, classes and neighbours.  An image is sent as the body (image/*), in a form, or as base64 in JSON; addresses are not fetched."
    ),
    paths(
        embed::embed,
        embed::classify,
        openai::embeddings,
        openai::models,
        openai::model,
        search::search,
        items::post,
        items::list,
        items::put,
        items::get,
        items::delete,
        items::image,
        explore::duplicates,
        explore::map,
        labels::list,
        labels::change,
        labels::get,
        labels::train,
        info::info,
        info::health,
        info::ready,
        info::metrics,
        info::reload
    ),
    components(schemas(ErrorBody, OpenAiErrorBody, LabelsFormat, ProbeChoice))
)]
struct Description;

/// Writes the limits into the document: the annotations cannot, because the command line sets them.
fn set_limits(document: &mut Value, limits: &Limits) {
    let properties = [
        ("ImagesBody", "images", "maxItems", limits.images),
        ("ItemsBody", "items", "maxItems", limits.images),
        ("SearchBody", "k", "maximum", limits.hits),
    ];
    for (schema, property, keyword, limit) in properties {
        document["components"]["schemas"][schema]["properties"][property][keyword] = limit.into();
    }
    let metadata = format!("At most {} bytes as JSON.", limits.metadata_bytes);
    document["components"]["schemas"]["ItemBody"]["properties"]["metadata"]["description"] = metadata.into();
    // The second of the two forms of `input` is a list.
    let inputs = limits.inputs.min(MAX_INPUTS);
    document["components"]["schemas"]["OneOrManyImages"]["oneOf"][1]["maxItems"] = inputs.into();
    let parameters = [
        ("/search", "post", "k", limits.hits),
        ("/items", "get", "limit", limits.hits),
        ("/duplicates", "get", "limit", limits.hits),
        ("/map", "get", "points", MAX_POINTS),
    ];
    for (path, method, name, limit) in parameters {
        let list = document["paths"][path][method]["parameters"].as_array_mut();
        for parameter in list.into_iter().flatten().filter(|parameter| parameter["name"] == name) {
            parameter["schema"]["maximum"] = limit.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_servers_limits_and_no_dangling_references() {
        let limits = Limits { images: 7, hits: 11, metadata_bytes: 13, inputs: 17, ..Limits::default() };
        let before = serde_json::to_value(Description::openapi()).unwrap();
        let after = document_for(&limits).unwrap();
        let names = |document: &Value, list: &str| {
            document.pointer(list).and_then(Value::as_object).map(|map| map.keys().cloned().collect::<Vec<_>>())
        };
        for list in ["/paths", "/components/schemas"] {
            assert_eq!(names(&before, list), names(&after, list), "a limit was set for what does not exist");
        }
        let text = after.to_string();
        let count = |needle: &str| text.matches(needle).count();
        assert_eq!((count("\"maxItems\":7"), count("\"maxItems\":17"), count("\"maximum\":11")), (2, 1, 4));
        assert_eq!((count("\"maximum\":100000"), count("At most 13 bytes")), (1, 1));
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(after["components"]["schemas"].get(name).is_some(), "there is no schema {name}");
        }
    }
}
