//! `evaluation.json`: the evaluation protocol and the measured accuracies of frozen features.
//!
//! Accuracies are shares in [0, 1].  Unknown keys are kept, so that a file written by a newer version passes through
//! unchanged.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Pooling;

/// Why an `evaluation.json` was refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message shows its fields")]
pub enum EvaluationError {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read { path: String, cause: std::io::Error },
    /// The file is not JSON, or a field is missing or has the wrong type.
    #[error("{path} is not an evaluation: {message}")]
    Syntax { path: String, message: String },
    /// A number is outside its range.
    #[error("{path}: `{field}` {expected}, found {found}")]
    Value {
        path: String,
        /// JSON path, for example `rows[0].knn`.
        field: String,
        /// The accepted range.
        expected: &'static str,
        found: String,
    },
}

/// How the numbers were measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// Number of neighbours that vote in `knn` (`knn1` uses one).
    pub k: usize,
    /// Temperature of the votes: a vote's weight is exp(cosine / temperature).
    pub temperature: f64,
    /// How an image's tokens become one feature.
    pub pooling: Pooling,
    /// Number of images that neighbours are searched in and that the probe is fitted on.
    #[serde(default)]
    pub train_images: usize,
    /// Number of images that are classified.
    #[serde(default)]
    pub test_images: usize,
    /// Where the two sets come from, as text.
    #[serde(default)]
    pub split: String,
    /// Seed of the random draws (held-out part, few-shot subset).
    #[serde(default)]
    pub seed: u64,
    /// How the linear probe was fitted, as text.
    #[serde(default)]
    pub linear: String,
    /// Unknown keys, kept when the file is written again.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The results of one kind of features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `macrl`, `random` (an untrained encoder of the same shape) or `pixels`.
    pub features: String,
    /// D, values per feature; 0 if unknown.
    #[serde(default)]
    pub dim: usize,
    /// Accuracy of the k-nearest-neighbour vote.
    pub knn: f64,
    /// Accuracy of the single nearest neighbour.
    pub knn1: f64,
    /// Accuracy of the k-nearest-neighbour vote with whitened features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knn_whitened: Option<f64>,
    /// Accuracy of the linear probe.
    pub linear: f64,
    /// Accuracy of a linear probe fitted on a few images per class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_shot: Option<f64>,
    /// The same by the number of images per class.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub few_labels: BTreeMap<usize, f64>,
    /// L2 penalty of the probe (on the mean loss), chosen on a held-out part of the training images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<f64>,
    /// Mean standard deviation of the L2-normalised features' coordinates, times sqrt(D): 1 is isotropic, 0 collapsed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_std: Option<f64>,
    /// Effective rank of the features (RankMe).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<f64>,
    /// The linear probe's accuracy on each class (C).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_class: Vec<f64>,
    /// Confusion matrix of the linear probe in images: (C true, C predicted).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confusion: Vec<Vec<u32>>,
    /// Unknown keys, kept when the file is written again.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The content of `evaluation.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// How the numbers were measured.
    pub protocol: Protocol,
    /// `macrl` and its baselines, in the order of the table.
    pub rows: Vec<Row>,
    /// Class names in label order (C); empty if unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Unknown keys, kept when the file is written again.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Evaluation {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`EvaluationError`], with the file's name.
    pub fn read(path: &Path) -> Result<Self, EvaluationError> {
        let name = path.display().to_string();
        let bytes = crate::regular::read_up_to(path, crate::regular::MAX_TEXT)
            .map_err(|cause| EvaluationError::Read { path: name.clone(), cause })?;
        Self::from_json(&bytes, &name)
    }

    /// [`Evaluation::read`] on bytes in memory; `path` is used in error messages.
    ///
    /// # Errors
    /// Every [`EvaluationError`] except `Read`.
    pub fn from_json(bytes: &[u8], path: &str) -> Result<Self, EvaluationError> {
        let evaluation: Self = serde_json::from_slice(bytes)
            .map_err(|e| EvaluationError::Syntax { path: path.into(), message: e.to_string() })?;
        evaluation.validate(path)?;
        Ok(evaluation)
    }

    /// The file's content: indented JSON.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists always serialise.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// The row of one kind of features, for example `macrl`.
    pub fn row(&self, features: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.features == features)
    }

    fn validate(&self, path: &str) -> Result<(), EvaluationError> {
        let wrong = |field: String, expected, found: String| {
            Err(EvaluationError::Value { path: path.into(), field, expected, found })
        };
        if self.protocol.k == 0 {
            return wrong("protocol.k".into(), "must be at least 1", "0".into());
        }
        if !(self.protocol.temperature > 0.0 && self.protocol.temperature.is_finite()) {
            return wrong("protocol.temperature".into(), "must be positive", self.protocol.temperature.to_string());
        }
        for (i, row) in self.rows.iter().enumerate() {
            let named = [("knn", row.knn), ("knn1", row.knn1), ("linear", row.linear)];
            let optional = [("few_shot", row.few_shot), ("knn_whitened", row.knn_whitened)];
            let optional = optional.into_iter().filter_map(|(field, value)| Some((field, value?)));
            let few = row.few_labels.values().map(|value| ("few_labels", *value));
            for (field, value) in named.into_iter().chain(optional).chain(few) {
                if !(0.0..=1.0).contains(&value) {
                    return wrong(format!("rows[{i}].{field}"), "must be an accuracy in [0, 1]", value.to_string());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{"protocol": {"k": 20, "temperature": 0.07, "pooling": "mean", "light": "moon"},
        "rows": [{"features": "macrl", "knn": 0.71, "knn1": 0.69, "linear": 0.74, "finetuned": 0.9}]}"#;

    #[test]
    fn unknown_keys_survive_a_round_trip() {
        let evaluation = Evaluation::from_json(MINIMAL.as_bytes(), "evaluation.json").unwrap();
        assert_eq!(evaluation.row("macrl").unwrap().linear, 0.74);
        let again = Evaluation::from_json(evaluation.to_json().as_bytes(), "evaluation.json").unwrap();
        assert_eq!(again, evaluation);
        assert_eq!(again.protocol.extra["light"], "moon");
        assert_eq!(again.rows[0].extra["finetuned"], 0.9);
    }

    #[test]
    fn faults_are_named() {
        let message = |from: &str, to: &str| {
            Evaluation::from_json(MINIMAL.replace(from, to).as_bytes(), "evaluation.json").unwrap_err().to_string()
        };
        assert_eq!(message("0.71", "71.0"), "evaluation.json: `rows[0].knn` must be an accuracy in [0, 1], found 71");
        assert_eq!(message("\"k\": 20", "\"k\": 0"), "evaluation.json: `protocol.k` must be at least 1, found 0");
        assert!(message("\"knn\"", "\"nnk\"").contains("missing field `knn`"));
        assert_eq!(message("}]}", "").lines().count(), 1);
    }
}
