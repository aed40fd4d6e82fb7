//! Bodies of answers that report an error.

use serde::Serialize;
use utoipa::ToSchema;

/// What went wrong with a request, or with one of its entries.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    pub(crate) error: ErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// A fixed word that programs can compare.
    #[schema(example = "image_undecodable")]
    pub(crate) code: &'static str,
    /// One line for people: what was expected and what was found.
    pub(crate) message: String,
    /// Which image of the request caused it, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub(crate) index: Option<usize>,
}

/// An error in OpenAI's form.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiErrorBody {
    pub(crate) error: OpenAiErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiErrorDetail {
    #[schema(example = "malformed")]
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// Which entry of `input` caused it, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub(crate) index: Option<usize>,
    #[schema(example = "invalid_request_error")]
    pub(crate) r#type: &'static str,
    /// The field that caused it.
    #[schema(required = true, example = "input")]
    pub(crate) param: Option<&'static str>,
}
