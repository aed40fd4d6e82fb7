//! `/items`.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::bounded::{CappedList, MAX_LIST, Numbers, RawObject};
use super::errors::ErrorBody;
use crate::index::{Item, Metadata};

/// Options of `PUT /items/{id}` in the query.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PutParams {
    /// a JSON object, for a raw image
    #[param(nullable = false)]
    pub(crate) metadata: Option<String>,
}

/// Options of `GET /items` in the query.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// from the page before
    #[param(nullable = false)]
    pub(crate) cursor: Option<String>,
    /// items per page (default 100)
    #[param(nullable = false, minimum = 1)]
    pub(crate) limit: Option<usize>,
    /// a filter as in /search, as JSON
    #[param(nullable = false)]
    pub(crate) filter: Option<String>,
    /// with their vectors
    #[param(required = false)]
    pub(crate) vectors: bool,
}

/// Options of `GET /items/{id}` in the query.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct GetParams {
    /// with its vector
    #[param(required = false)]
    pub(crate) vector: bool,
}

/// Exactly one of `image` and `vector`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ItemBody {
    /// Needed in a batch.  If the path names the item, too, both must agree.
    #[schema(required = false)]
    pub(crate) id: Option<String>,
    /// Base64 or a `data:` URI.
    #[schema(required = false)]
    pub(crate) image: Option<String>,
    #[schema(value_type = Option<Vec<f32>>, required = false)]
    pub(crate) vector: Option<Numbers>,
    /// A JSON object.
    #[serde(default)]
    #[schema(value_type = Map<String, Value>, required = false)]
    pub(crate) metadata: RawObject,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ItemsBody {
    #[schema(value_type = Vec<ItemBody>, min_items = 1)]
    pub(crate) items: CappedList<ItemBody, MAX_LIST>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Results {
    /// For each item `{"id", "status"}` or `{"error"}`.
    pub(crate) results: Vec<ItemResult>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum ItemResult {
    Stored(Outcome),
    Refused(ErrorBody),
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Outcome {
    pub(crate) id: String,
    /// created, updated or deleted
    #[schema(example = "created")]
    pub(crate) status: &'static str,
}

impl Outcome {
    pub(crate) fn stored(id: String, created: bool) -> Self {
        Self { id, status: if created { "created" } else { "updated" } }
    }

    pub(crate) fn deleted(id: String) -> Self {
        Self { id, status: "deleted" }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ItemDescription {
    pub(crate) id: String,
    #[schema(value_type = Map<String, Value>)]
    pub(crate) metadata: Metadata,
    /// Whether `/items/{id}/image` has a thumbnail.
    pub(crate) image: bool,
    /// Of length 1; only if the query asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<f32>>, required = false, nullable = false)]
    pub(crate) vector: Option<Vec<f64>>,
}

impl From<Item> for ItemDescription {
    fn from(item: Item) -> Self {
        let Item { id, vector, metadata, has_image, .. } = item;
        let vector = (!vector.is_empty()).then(|| vector.into_iter().map(f64::from).collect());
        Self { id, metadata, image: has_image, vector }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ItemsPage {
    pub(crate) items: Vec<ItemDescription>,
    /// Cursor of the next page; null on the last.
    pub(crate) next: Option<String>,
    /// Items on all pages.
    pub(crate) total: usize,
}
