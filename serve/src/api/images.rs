//! `/embed` and `/classify`.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::bounded::{CappedList, MAX_LIST};
use crate::text_encoding::encode_vector;

/// Options of `/embed` and `/classify` in the query.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ImageOptions {
    /// scale vectors to length 1 (default true)
    #[param(nullable = false)]
    pub(crate) normalize: Option<bool>,
    /// float (default) or base64
    #[param(nullable = false)]
    pub(crate) encoding_format: Option<EncodingFormat>,
    /// classes per image, for /classify (default 5)
    #[param(nullable = false, minimum = 1)]
    pub(crate) top_k: Option<usize>,
    /// for /classify: bundle (default), or labels, the classifier trained from the labels of /labels
    #[param(nullable = false)]
    pub(crate) probe: Option<ProbeChoice>,
}

/// The classifier of `/classify`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProbeChoice {
    #[default]
    Bundle,
    Labels,
}

/// Images as base64 or `data:` URIs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImagesBody {
    #[schema(value_type = Vec<String>, min_items = 1)]
    pub(crate) images: CappedList<String, MAX_LIST>,
    /// Scale vectors to length 1; true by default.
    #[schema(required = false)]
    pub(crate) normalize: Option<bool>,
    #[schema(required = false)]
    pub(crate) encoding_format: Option<EncodingFormat>,
    /// Classes per image (`/classify`).
    #[schema(required = false, minimum = 1)]
    pub(crate) top_k: Option<usize>,
}

/// A list of numbers, or little-endian f32 as base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

impl EncodingFormat {
    /// The vector in this format.
    pub(crate) fn encode(self, vector: Vec<f32>) -> Vector {
        match self {
            Self::Float => Vector::Numbers(vector),
            Self::Base64 => Vector::Base64(encode_vector(&vector)),
        }
    }
}

/// A list of numbers, or base64 if the request asked for it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Embeddings {
    pub(crate) model: String,
    /// Numbers per vector.
    pub(crate) dim: usize,
    pub(crate) embeddings: Vec<Vector>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Predictions {
    pub(crate) model: String,
    /// The classes of each image, best first.
    pub(crate) predictions: Vec<Vec<Prediction>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Prediction {
    pub(crate) label: String,
    /// Probability of the label; not calibrated.
    #[schema(value_type = f32, minimum = 0, maximum = 1)]
    pub(crate) score: f64,
}
