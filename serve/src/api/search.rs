//! `/search`, `/duplicates` and `/map`.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::bounded::{Numbers, RawObject};
use super::images::Prediction;
use crate::index::duplicates::Group;
use crate::index::{Hit, Metadata};

/// Options of `/search` in the query.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SearchParams {
    /// hits (default 10)
    #[param(nullable = false, minimum = 1)]
    pub(crate) k: Option<usize>,
    /// no approximation
    #[param(nullable = false)]
    pub(crate) exact: Option<bool>,
    /// with so many classes of the image, if the bundle has a linear probe
    #[param(nullable = false, minimum = 1)]
    pub(crate) top_k: Option<usize>,
    /// with the vector that was searched with
    #[param(required = false)]
    pub(crate) vector: bool,
}

/// Exactly one of `vector`, `id` and `image`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SearchBody {
    #[schema(value_type = Option<Vec<f32>>, required = false)]
    pub(crate) vector: Option<Numbers>,
    /// Id of an item, which is left out of the hits.
    #[schema(required = false)]
    pub(crate) id: Option<String>,
    /// Base64 or a `data:` URI.
    #[schema(required = false)]
    pub(crate) image: Option<String>,
    /// Conditions on metadata fields, all of which must hold: a value, `{"in": [...]}`, a range of numbers
    /// (`{"gte": 1, "lt": 9}`, gt, lte), or `{"eq": ...}` for a value that is itself an object.
    #[schema(
        required = false,
        value_type = Option<Map<String, Value>>,
        example = json!({"label": {"in": ["cat", "dog"]}, "year": {"gte": 2000}})
    )]
    pub(crate) filter: Option<RawObject>,
    /// Compare with every item instead of searching the approximate graph.
    #[schema(required = false)]
    pub(crate) exact: Option<bool>,
    #[schema(required = false, minimum = 1)]
    pub(crate) k: Option<usize>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Hits {
    /// At most `k` items, the most similar first.
    pub(crate) hits: Vec<HitBody>,
    /// The most probable classes of an image that was searched with; only if the query asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub(crate) predictions: Option<Vec<Prediction>>,
    /// What was searched with, of length 1; only if the query asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<f32>>, required = false, nullable = false)]
    pub(crate) vector: Option<Vec<f64>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HitBody {
    pub(crate) id: String,
    /// Cosine of the angle between the item and the query.
    #[schema(value_type = f32, minimum = -1, maximum = 1)]
    pub(crate) score: f64,
    #[schema(value_type = Map<String, Value>)]
    pub(crate) metadata: Metadata,
    /// Whether `/items/{id}/image` has a thumbnail.
    pub(crate) image: bool,
}

impl From<Hit> for HitBody {
    fn from(hit: Hit) -> Self {
        Self { id: hit.id, score: hit.score.into(), metadata: hit.metadata, image: hit.has_image }
    }
}

/// Options of `/duplicates` in the query.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DuplicatesParams {
    /// smallest cosine (default 0.98)
    #[param(nullable = false, minimum = -1, maximum = 1)]
    pub(crate) threshold: Option<f64>,
    /// from the page before
    #[param(nullable = false)]
    pub(crate) cursor: Option<String>,
    /// groups per page (default 100)
    #[param(nullable = false, minimum = 1)]
    pub(crate) limit: Option<usize>,
    /// a filter as in /search, as JSON
    #[param(nullable = false)]
    pub(crate) filter: Option<String>,
    /// no approximation
    #[param(required = false)]
    pub(crate) exact: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DuplicatesPage {
    pub(crate) groups: Vec<DuplicatesOf>,
    /// Cursor of the next page; null after the last.  A page ends after two seconds of comparing, and may then be empty.
    pub(crate) next: Option<String>,
}

/// An item and every item with a greater id whose score with it reaches the threshold.  An item whose pairs are all in an
/// earlier group has no group of its own: copies are one group.  A group that is too long for a page continues, under the
/// same id, on the next one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DuplicatesOf {
    pub(crate) id: String,
    /// Duplicates of the whole group; a page holds at most 2,000.
    pub(crate) count: usize,
    pub(crate) duplicates: Vec<HitBody>,
}

impl From<Group> for DuplicatesOf {
    fn from(group: Group) -> Self {
        let duplicates = group.duplicates.into_iter().map(HitBody::from).collect();
        Self { id: group.id, count: group.count, duplicates }
    }
}

/// Most points of a map.
pub(crate) const MAX_POINTS: usize = 100_000;

/// Options of `/map` in the query.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct MapParams {
    /// points, about (default 1500)
    #[param(nullable = false, minimum = 1)]
    pub(crate) points: Option<usize>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MapBody {
    pub(crate) points: Vec<MapPoint>,
    /// Share of the variance along x and y.
    #[schema(value_type = [f32; 2])]
    pub(crate) explained: [f64; 2],
    /// Where any vector has its place; left out if there are no points.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub(crate) plane: Option<MapPlane>,
    /// Items in the index.
    pub(crate) total: usize,
}

/// The coordinates of a vector of length 1 are its products with `x` and with `y`, plus `offset`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MapPlane {
    #[schema(value_type = Vec<f32>)]
    pub(crate) x: Vec<f64>,
    #[schema(value_type = Vec<f32>)]
    pub(crate) y: Vec<f64>,
    #[schema(value_type = [f32; 2])]
    pub(crate) offset: [f64; 2],
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MapPoint {
    pub(crate) id: String,
    /// In [-1, 1].
    #[schema(value_type = f32)]
    pub(crate) x: f64,
    /// In [-1, 1].
    #[schema(value_type = f32)]
    pub(crate) y: f64,
    #[schema(value_type = Map<String, Value>)]
    pub(crate) metadata: Metadata,
    /// Whether `/items/{id}/image` has a thumbnail.
    pub(crate) image: bool,
}
