//! `/labels` and `/probe`.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::bounded::{CappedList, MAX_LIST};
use crate::index::Metadata;
use crate::labels::{LabelChange, PastProbe};

/// Most characters of a label.
pub(crate) const MAX_LABEL: usize = 200;

/// Options of `GET /labels` in the query.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LabelsParams {
    /// json (default) or csv
    #[param(nullable = false)]
    pub(crate) format: Option<LabelsFormat>,
    /// with the most probable label of every other item
    #[param(required = false)]
    pub(crate) guesses: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LabelsFormat {
    #[default]
    Json,
    Csv,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ItemLabel {
    pub(crate) id: String,
    /// 1 to 200 characters; null removes the label.
    #[schema(required = false)]
    pub(crate) label: Option<String>,
}

impl From<ItemLabel> for LabelChange {
    fn from(ItemLabel { id, label }: ItemLabel) -> Self {
        Self { id, label }
    }
}

impl From<LabelChange> for ItemLabel {
    fn from(LabelChange { id, label }: LabelChange) -> Self {
        Self { id, label }
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LabelsBody {
    #[schema(value_type = Vec<ItemLabel>, min_items = 1, max_items = 10000)]
    pub(crate) labels: CappedList<ItemLabel, MAX_LIST>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LabelsChanged {
    /// Version of the labels after the change.
    pub(crate) version: u64,
    /// What the items were labelled before; sent as `labels`, it undoes the change.
    pub(crate) previous: Vec<ItemLabel>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LabelsList {
    /// Grows with every change.
    pub(crate) version: u64,
    pub(crate) labels: Vec<ItemLabel>,
    /// The other items; only if the query asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub(crate) guesses: Option<Vec<GuessedLabel>>,
}

/// The most probable label of an item.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GuessedLabel {
    pub(crate) id: String,
    pub(crate) label: String,
    /// Probability of the label; not calibrated.
    #[schema(value_type = f32, minimum = 0, maximum = 1)]
    pub(crate) score: f64,
}

/// What is wanted beside the classifier.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProbeBody {
    /// So many unlabelled items that it is least certain of.
    #[schema(required = false, maximum = 1000)]
    pub(crate) uncertain: Option<usize>,
    /// Ids of items to classify.
    #[schema(value_type = Vec<String>, required = false, max_items = 10000)]
    pub(crate) classify: Option<CappedList<String, MAX_LIST>>,
}

/// A classifier that was trained from the labels.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProbeReport {
    /// Version of the labels.
    pub(crate) version: u64,
    /// SHA-256 of the encoder's weights.
    pub(crate) encoder: String,
    /// Labelled items that it was trained on.
    pub(crate) labelled: usize,
    pub(crate) classes: Vec<ClassCount>,
    /// Left out if no class has two examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub(crate) held_out: Option<HeldOutBody>,
    /// How the accuracy changed with the labels, oldest first.
    pub(crate) history: Vec<PastProbeBody>,
    /// Unlabelled items, the least certain first.
    pub(crate) uncertain: Vec<Guess>,
    /// Items that were looked at for the least certain: all, or a sample spread evenly.
    pub(crate) looked_at: usize,
    pub(crate) classified: Vec<Guess>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClassCount {
    pub(crate) label: String,
    /// Items with this label.
    pub(crate) labelled: usize,
}

/// Accuracy in cross-validation: each fifth of the labelled items is left out once.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HeldOutBody {
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) accuracy: f64,
    /// Labelled items that were judged.
    pub(crate) judged: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PastProbeBody {
    pub(crate) version: u64,
    pub(crate) labelled: usize,
    pub(crate) judged: usize,
    pub(crate) accuracy: f64,
}

impl From<PastProbe> for PastProbeBody {
    fn from(PastProbe { version, labelled, judged, accuracy }: PastProbe) -> Self {
        Self { version, labelled, judged, accuracy }
    }
}

/// An item and its most probable label.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Guess {
    pub(crate) id: String,
    #[schema(value_type = Map<String, Value>)]
    pub(crate) metadata: Metadata,
    /// Whether `/items/{id}/image` has a thumbnail.
    pub(crate) image: bool,
    pub(crate) label: String,
    /// Probability of the label; not calibrated.
    #[schema(value_type = f32, minimum = 0, maximum = 1)]
    pub(crate) score: f64,
}
