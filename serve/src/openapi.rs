//! The OpenAPI 3.1 description, generated from the handlers' annotations and the shapes below.

use axum::Json;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{OpenApi, ToSchema};

use crate::routes::{embed, explore, info, items, openai, search};

/// Of the HTTP interface; see docs/formats.md.
pub(crate) const FORMAT: u32 = 1;

/// `GET /openapi.json`.
pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
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
        info::info,
        info::health,
        info::ready,
        info::metrics,
        info::reload
    )
)]
struct Description;

/// An error: what programs compare, what people read, and which image of the request it concerns.
#[derive(ToSchema, Deserialize)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

#[derive(ToSchema, Deserialize)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct ErrorDetail {
    #[schema(example = "image_undecodable")]
    code: String,
    message: String,
    /// Position in the request, from 0.
    #[schema(required = false, nullable = false)]
    index: Option<usize>,
}

/// Images as base64 or `data:` URIs.
#[derive(ToSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct ImagesBody {
    #[schema(min_items = 1, max_items = 64)]
    images: Vec<String>,
    /// Scale vectors to length 1; true unless said otherwise.
    #[schema(required = false)]
    normalize: Option<bool>,
    #[schema(required = false)]
    encoding_format: Option<EncodingFormat>,
    /// Classes per image (`/classify`).
    #[schema(required = false, minimum = 1)]
    top_k: Option<usize>,
}

/// A list of numbers, or little-endian f32 as base64.
#[derive(ToSchema, Deserialize)]
#[schema(rename_all = "lowercase")]
#[allow(dead_code, reason = "described, not built")]
pub(crate) enum EncodingFormat {
    Float,
    Base64,
}

#[derive(ToSchema, Serialize)]
pub(crate) struct Embeddings {
    pub(crate) model: String,
    /// Numbers per vector.
    pub(crate) dim: usize,
    pub(crate) embeddings: Vec<Vector>,
}

/// A list of numbers, or base64 where that was asked for.
#[derive(ToSchema, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct Predictions {
    model: String,
    /// For each image its classes, best first.
    predictions: Vec<Vec<Prediction>>,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct Prediction {
    label: String,
    /// Probability.
    #[schema(minimum = 0, maximum = 1)]
    score: f32,
}

/// OpenAI's request, with images in `input`: data URIs (or base64), or objects that hold one.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct OpenAiBody {
    input: OneOrManyImages,
    #[schema(required = false)]
    model: Option<String>,
    #[schema(required = false)]
    encoding_format: Option<EncodingFormat>,
    /// Must be the model's own.
    #[schema(required = false, minimum = 0)]
    dimensions: Option<usize>,
}

#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) enum OneOrManyImages {
    One(OpenAiImage),
    Many(Vec<OpenAiImage>),
}

#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) enum OpenAiImage {
    /// A data URI, or base64.
    Text(String),
    /// As in OpenAI's messages.
    Object(OpenAiImagePart),
}

#[derive(ToSchema, Deserialize)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct OpenAiImagePart {
    /// image_url
    #[schema(example = "image_url")]
    r#type: String,
    image_url: OpenAiImageUrl,
}

#[derive(ToSchema, Deserialize)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct OpenAiImageUrl {
    /// A data URI; addresses are not fetched.
    url: String,
}

#[derive(ToSchema, Serialize)]
pub(crate) struct OpenAiModels {
    /// list
    pub(crate) object: &'static str,
    pub(crate) data: Vec<OpenAiModel>,
}

#[derive(ToSchema, Serialize)]
pub(crate) struct OpenAiModel {
    pub(crate) id: String,
    /// model
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) owned_by: &'static str,
}

/// An error in OpenAI's shape.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct OpenAiErrorBody {
    error: OpenAiErrorDetail,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct OpenAiErrorDetail {
    message: String,
    #[schema(example = "invalid_request_error")]
    r#type: String,
    /// The field at fault.
    #[schema(required = true, example = "input")]
    param: Option<String>,
    #[schema(example = "malformed")]
    code: String,
    /// Position in `input`, from 0.
    #[schema(required = false, nullable = false)]
    index: Option<usize>,
}

#[derive(ToSchema, Serialize)]
pub(crate) struct OpenAiEmbeddings {
    pub(crate) object: &'static str,
    pub(crate) data: Vec<OpenAiEmbedding>,
    pub(crate) model: String,
    pub(crate) usage: OpenAiUsage,
}

#[derive(ToSchema, Serialize)]
pub(crate) struct OpenAiEmbedding {
    pub(crate) object: &'static str,
    pub(crate) index: usize,
    pub(crate) embedding: Vector,
}

/// Patch tokens of all images.
#[derive(ToSchema, Serialize)]
pub(crate) struct OpenAiUsage {
    pub(crate) prompt_tokens: usize,
    pub(crate) total_tokens: usize,
}

/// Exactly one of `vector`, `id` and `image`.
#[derive(ToSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct SearchBody {
    #[schema(required = false)]
    vector: Option<Vec<f32>>,
    /// An item, which is left out of its own answer.
    #[schema(required = false)]
    id: Option<String>,
    /// Base64 or a `data:` URI.
    #[schema(required = false)]
    image: Option<String>,
    /// Metadata fields and what they must be, all of them: a value, `{"in": [...]}`, a range of numbers
    /// (`{"gte": 1, "lt": 9}`, gt, lte), or `{"eq": ...}` for a value that is itself an object.
    #[schema(required = false, example = json!({"label": {"in": ["cat", "dog"]}, "year": {"gte": 2000}}))]
    filter: Option<Map<String, Value>>,
    /// No approximation.
    #[schema(required = false)]
    exact: Option<bool>,
    #[schema(required = false, minimum = 1, maximum = 1000)]
    k: Option<usize>,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct Hits {
    /// Best first.
    hits: Vec<HitBody>,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct HitBody {
    id: String,
    /// Cosine.
    #[schema(minimum = -1, maximum = 1)]
    score: f32,
    metadata: Map<String, Value>,
    /// Whether `/items/{id}/image` has a picture.
    image: bool,
}

/// Exactly one of `image` and `vector`.
#[derive(ToSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct ItemBody {
    /// Needed in a batch; where the path names the item too, both must agree.
    #[schema(required = false)]
    id: Option<String>,
    /// Base64 or a `data:` URI.
    #[schema(required = false)]
    image: Option<String>,
    #[schema(required = false)]
    vector: Option<Vec<f32>>,
    /// At most 16 KiB as JSON.
    #[schema(required = false)]
    metadata: Map<String, Value>,
}

#[derive(ToSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct ItemsBody {
    #[schema(min_items = 1, max_items = 64)]
    items: Vec<ItemBody>,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct Results {
    /// For each item `{"id", "status"}` or `{"error"}`.
    results: Vec<ItemResult>,
}

#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) enum ItemResult {
    Stored(Outcome),
    Refused(ErrorBody),
}

#[derive(ToSchema, Deserialize)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct Outcome {
    id: String,
    /// created, updated or deleted
    #[schema(example = "created")]
    status: String,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct ItemDescription {
    id: String,
    metadata: Map<String, Value>,
    /// Whether `/items/{id}/image` has a picture.
    image: bool,
    /// Length 1; where the query asks for it.
    #[schema(required = false, nullable = false)]
    vector: Option<Vec<f32>>,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct ItemsPage {
    items: Vec<ItemDescription>,
    /// Cursor of the next page; null on the last.
    next: Option<String>,
    /// Items on all pages.
    total: usize,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct DuplicatesPage {
    groups: Vec<DuplicatesOf>,
    /// Cursor of the next page; null where all items were compared.  A page ends after two seconds of comparing, and
    /// may then be empty.
    next: Option<String>,
}

/// An item and every item with a greater id that is near enough.  An item whose pairs are all in an earlier group has no
/// group of its own: copies are one group.  A group that is too long for the page goes on, under the same id, on the next.
#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct DuplicatesOf {
    id: String,
    /// Duplicates of the whole group; a page holds at most 2,000.
    count: usize,
    duplicates: Vec<HitBody>,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct MapBody {
    points: Vec<MapPoint>,
    /// Share of the variance along x and y.
    explained: [f32; 2],
    /// Items in the index.
    total: usize,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct MapPoint {
    id: String,
    /// In [-1, 1].
    x: f32,
    /// In [-1, 1].
    y: f32,
    metadata: Map<String, Value>,
    /// Whether `/items/{id}/image` has a picture.
    image: bool,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "described, not built")]
pub(crate) struct Status {
    status: String,
}
