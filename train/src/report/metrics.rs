//! `metrics.jsonl` as series, and the charts made of them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::chart::{Chart, Scale, Series};

/// Every logged number, by kind of line.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Lines of kind `step`, by step.  A resumed run logs some steps again: the later line counts.
    steps: BTreeMap<u64, Value>,
    /// Lines of kind `eval`, by step.
    evals: BTreeMap<u64, Value>,
    /// Lines that aren't JSON with a kind and a step, such as one cut off by a power failure.
    pub(super) unreadable: usize,
}

/// (title, kind of line, [(key, name)], scale).
type Plan = (&'static str, bool, &'static [(&'static str, &'static str)], Scale);

const CHARTS: &[Plan] = &[
    ("Loss", false, &[("loss", "loss")], Scale::Linear),
    ("Contrast (InfoNCE)", false, &[("contrast", "contrast")], Scale::Linear),
    (
        "Reconstruction (L1)",
        false,
        &[("reconstruction_strong", "strong"), ("reconstruction_weak", "weak")],
        Scale::Linear,
    ),
    ("kNN accuracy on held-out images (%)", true, &[("knn", "kNN")], Scale::Percent),
    (
        "Similarity of query and key",
        false,
        &[("positive_similarity", "own"), ("negative_similarity", "others")],
        Scale::Linear,
    ),
    ("Age of the bank's keys (steps)", false, &[("bank_age", "mean"), ("bank_age_oldest", "oldest")], Scale::FromZero),
    ("Length of the bank's keys", false, &[("bank_norm", "mean")], Scale::FromZero),
    ("Effective rank of the features", true, &[("rank", "RankMe")], Scale::Linear),
    ("Feature spread (1 isotropic, 0 collapsed)", true, &[("feature_std", "std · √D")], Scale::Linear),
    (
        "Gradient norm",
        false,
        &[
            ("grad_norm", "all"),
            ("grad_norm_encoder", "encoder"),
            ("grad_norm_decoder", "decoders"),
            ("grad_norm_projector", "projector"),
        ],
        Scale::Log,
    ),
    ("Learning rate", false, &[("lr", "lr")], Scale::FromZero),
    ("Images per second", false, &[("images_per_second", "images/s")], Scale::FromZero),
    ("Time spent waiting for data (%)", false, &[("waiting", "waiting")], Scale::PercentFromZero),
];

impl Metrics {
    pub(super) fn parse(text: &str) -> Self {
        let mut metrics = Metrics::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let value: Value = serde_json::from_str(line).unwrap_or_default();
            let kind = value["kind"].as_str().map(str::to_string);
            match (kind.as_deref(), value["step"].as_u64()) {
                (Some("step"), Some(step)) => drop(metrics.steps.insert(step, value)),
                (Some("eval"), Some(step)) => drop(metrics.evals.insert(step, value)),
                // Kinds that other versions write are none of this page's business.
                (Some(_), _) => {}
                (None, _) => metrics.unreadable += 1,
            }
        }
        metrics
    }

    /// The last value of a key among lines of kind `step`.
    pub(super) fn last(&self, key: &str) -> Option<f64> {
        self.steps.values().rev().find_map(|line| line[key].as_f64())
    }

    /// The last step logged.
    pub(super) fn last_step(&self) -> Option<u64> {
        self.steps.keys().chain(self.evals.keys()).max().copied()
    }

    pub(super) fn series(&self, eval: bool, key: &str, name: &str) -> Series {
        let lines = if eval { &self.evals } else { &self.steps };
        let points = lines.iter().filter_map(|(step, line)| Some((*step as f64, line[key].as_f64()?)));
        Series { name: name.into(), points: points.collect(), marked: eval }
    }

    /// A chart for everything that was logged.
    pub(super) fn charts(&self) -> String {
        let charts: Vec<String> = CHARTS
            .iter()
            .filter_map(|(title, eval, keys, scale)| {
                let mut series: Vec<Series> = keys.iter().map(|(key, name)| self.series(*eval, key, name)).collect();
                series.retain(|s| !s.points.is_empty());
                (!series.is_empty()).then(|| Chart { title, series, scale: *scale }.html())
            })
            .collect();
        if charts.is_empty() {
            return String::new();
        }
        format!("<div class=\"charts\">\n{}\n</div>", charts.join("\n"))
    }
}
