//! `/v1/embeddings` and `/v1/models`, in OpenAI's form.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::images::{EncodingFormat, Vector};
use super::openai_input::{Input, OneOrManyImages};

/// OpenAI's request, with images in `input`: data URIs (or base64), or objects that hold one.
///
/// Fields that make no difference here (`user`) are ignored, as OpenAI's own server does.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(description = "OpenAI's request, with images in `input`: data URIs (or base64), or objects that hold one.")]
pub(crate) struct OpenAiBody {
    /// Optional for the parser only: the route reports a missing one in OpenAI's form.
    #[schema(value_type = OneOrManyImages)]
    pub(crate) input: Option<Input>,
    #[schema(required = false)]
    pub(crate) model: Option<String>,
    /// A text for the parser: the route names the field if it is another one.
    #[schema(value_type = Option<EncodingFormat>, required = false)]
    pub(crate) encoding_format: Option<String>,
    /// Must be the model's own.
    #[schema(value_type = Option<usize>, required = false, minimum = 0)]
    pub(crate) dimensions: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiModels {
    /// list
    pub(crate) object: &'static str,
    pub(crate) data: Vec<OpenAiModel>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiModel {
    pub(crate) id: String,
    /// model
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) owned_by: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiEmbeddings {
    pub(crate) object: &'static str,
    pub(crate) data: Vec<OpenAiEmbedding>,
    pub(crate) model: String,
    pub(crate) usage: OpenAiUsage,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiEmbedding {
    pub(crate) object: &'static str,
    pub(crate) index: usize,
    pub(crate) embedding: Vector,
}

/// Patch tokens of all images.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiUsage {
    pub(crate) prompt_tokens: usize,
    pub(crate) total_tokens: usize,
}
