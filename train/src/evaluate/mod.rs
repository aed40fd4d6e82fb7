//! Evaluation of frozen features: kNN, linear probe and few-shot accuracy, with raw pixels and an untrained encoder for
//! comparison.
//!
//! Everything here works on numbers in memory ([`Features`]), wherever they come from.

mod cholesky;
pub mod diagnostics;
pub mod draw;
pub mod export;
pub mod features;
pub mod few_shot;
pub mod knn;
pub mod linear;
pub(crate) mod matrix;
pub mod nearest;
mod pruned;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;
pub mod unlabelled;
pub mod whitening;

use anyhow::{Context, Result};
use macrl_bundle::config::Pooling;
use macrl_bundle::evaluation::{Evaluation, Protocol, Row};
use macrl_bundle::probe::Probe;
use serde_json::Map;

pub use features::{Features, Pixels, Split, average, pixel_edge, pixel_features};
pub use table::table;
use whitening::Whitening;

/// The effective rank of wider features and their whitening are not computed: the cost grows with the cube of the width, and only
/// pixels are so wide.
const SPECTRUM_WIDTH: usize = 1024;

/// The settings of the protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Number of neighbours that vote.
    pub k: usize,
    /// Temperature of the votes' weights.
    pub temperature: f64,
    /// How an image's feature is made from the encoder's tokens.
    pub pooling: Pooling,
    /// Seed of the held-out part and of the few-shot images.
    pub seed: u64,
    /// Description of the training and test sets.
    pub split: String,
    /// Class names in label order.
    pub labels: Vec<String>,
    /// Edge that the pixels of the baseline were averaged down to; `None` where they were not.
    pub averaged: Option<usize>,
}

/// Evaluates every set in turn, keeping one in memory at a time; also returns the probe of the first set, which is served.
///
/// `sets` are (`macrl` | `random` | `pixels`, features), in the order of the table.
///
/// # Errors
/// Features that don't fit together or aren't finite; a set that could not be made; no set at all.
pub fn evaluate(
    sets: impl IntoIterator<Item = Result<(String, Split)>>,
    settings: &Settings,
) -> Result<(Evaluation, Probe)> {
    let (mut rows, mut first, mut counts) = (Vec::new(), None, (0, 0));
    for set in sets {
        let (name, split) = set?;
        let (row, probe) = evaluate_set(&name, &split, settings)?;
        if first.is_none() {
            counts = (split.train.len(), split.test.len());
        }
        first = first.or(Some(probe));
        rows.push(row);
    }
    let probe = first.context("expected at least one set of features to evaluate, found none")?;
    Ok((evaluation(rows, counts, settings), probe))
}

/// Evaluates one set of features.
///
/// # Errors
/// Features that don't fit together or aren't finite.
pub fn evaluate_set(name: &str, split: &Split, settings: &Settings) -> Result<(Row, Probe)> {
    split.check(name)?;
    let Split { train, test } = split;
    let classes = train.classes().max(test.classes()).max(settings.labels.len());
    let labels: Vec<String> =
        (0..classes).map(|i| settings.labels.get(i).cloned().unwrap_or_else(|| i.to_string())).collect();
    let near = knn::accuracy(train, test, settings.k, settings.temperature);
    let narrow = test.dim <= SPECTRUM_WIDTH;
    let whitened = narrow.then(|| {
        let Split { train, test } = Whitening::fit(&train.values, train.dim).apply_to(split);
        knn::accuracy(&train, &test, settings.k, settings.temperature).knn
    });
    let fit = linear::fit(train, &labels, settings.seed);
    let few_labels = few_shot::curve(split, &labels, settings.seed);
    let confusion = confusion(&linear::predict(&fit.probe, test), &test.labels, classes);
    let row = Row {
        features: name.into(),
        dim: train.dim,
        knn: near.knn,
        knn1: near.knn1,
        knn_whitened: whitened,
        linear: trace(&confusion) as f64 / test.len() as f64,
        few_shot: few_labels.get(&few_shot::SHOTS).copied(),
        few_labels,
        l2: Some(fit.l2),
        feature_std: Some(diagnostics::feature_std(&test.values, test.dim)),
        rank: (narrow).then(|| diagnostics::effective_rank(&test.values, test.dim)),
        per_class: confusion.iter().enumerate().map(|(i, row)| share(row[i], row)).collect(),
        confusion,
        extra: Map::new(),
    };
    Ok((row, fit.probe))
}

/// The content of evaluation.json from the rows; `counts` are the numbers of training and test images.
pub fn evaluation(rows: Vec<Row>, counts: (usize, usize), settings: &Settings) -> Evaluation {
    let protocol = Protocol {
        k: settings.k,
        temperature: settings.temperature,
        pooling: settings.pooling,
        train_images: counts.0,
        test_images: counts.1,
        split: settings.split.clone(),
        seed: settings.seed,
        linear: format!(
            "multinomial logistic regression (L-BFGS to convergence) on features standardised by the training \
             images' mean and standard deviation; L2 on the mean loss chosen from {:?} on a sixth of the training \
             images (at most 10,000), then refitted on all of them",
            linear::L2_GRID
        ),
        extra: Map::from_iter([
            ("knn".to_string(), "cosine; votes weighted by exp(similarity / temperature)".into()),
            (
                "knn_whitened".to_string(),
                format!(
                    "the same after a linear map that whitens the training images' features ({} of the mean variance added)",
                    whitening::DAMPING
                )
                .into(),
            ),
            (
                "few_shot".to_string(),
                format!(
                    "the linear probe on {} training images per class (few_labels: also on others) with L2 {}, mean of {} draws",
                    few_shot::SHOTS,
                    few_shot::L2,
                    few_shot::DRAWS
                )
                .into(),
            ),
            (
                "pixels".to_string(),
                format!(
                    "in [0, 1]; {}grey images as one channel, always-black pixels left out",
                    settings.averaged.map_or_else(String::new, |edge| format!("averaged down to {edge} x {edge}; "))
                )
                .into(),
            ),
        ]),
    };
    Evaluation { protocol, rows, labels: settings.labels.clone(), extra: Map::new() }
}

/// Counts (C true, C predicted).
pub fn confusion(answers: &[u32], labels: &[u32], classes: usize) -> Vec<Vec<u32>> {
    let mut counts = vec![vec![0; classes]; classes];
    for (answer, label) in answers.iter().zip(labels) {
        counts[*label as usize][*answer as usize] += 1;
    }
    counts
}

fn trace(confusion: &[Vec<u32>]) -> u32 {
    confusion.iter().enumerate().map(|(i, row)| row[i]).sum()
}

/// `count` of all in `row`; 0 where there is none.
fn share(count: u32, row: &[u32]) -> f64 {
    f64::from(count) / f64::from(row.iter().sum::<u32>().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn settings() -> Settings {
        Settings {
            k: 20,
            temperature: 0.07,
            pooling: Pooling::Mean,
            seed: 0,
            split: "synthetic".into(),
            labels: vec!["low".into(), "middle".into(), "high".into()],
            averaged: None,
        }
    }

    fn split() -> Split {
        Split { train: testing::three_classes(), test: testing::three_classes() }
    }

    #[test]
    fn rows_stand_in_order_and_agree_with_themselves() {
        let sets = ["macrl", "pixels"].map(|name| Ok((name.to_string(), split())));
        let (evaluation, probe) = evaluate(sets, &settings()).unwrap();
        assert_eq!(evaluation.rows.iter().map(|r| r.features.as_str()).collect::<Vec<_>>(), ["macrl", "pixels"]);
        let row = &evaluation.rows[0];
        // Where the training images are also the test images, the nearest neighbour is the image itself.
        assert_eq!(row.knn1, 1.0);
        assert_eq!(row.confusion.iter().flatten().sum::<u32>(), 60);
        let right: u32 = (0..3).map(|i| row.confusion[i][i]).sum();
        assert_eq!(row.linear, f64::from(right) / 60.0);
        assert_eq!(row.per_class.len(), 3);
        assert_eq!(probe.labels, settings().labels);
        let read = Evaluation::from_json(evaluation.to_json().as_bytes(), "evaluation.json").unwrap();
        assert_eq!((&read.protocol, &read.rows[1].confusion), (&evaluation.protocol, &row.confusion));
        assert!((read.rows[1].linear - row.linear).abs() < 1e-12);
        assert_eq!(table(&evaluation).lines().count(), 3);
    }

    #[test]
    fn rows_and_columns_of_the_confusion() {
        assert_eq!(confusion(&[0, 1, 1, 2], &[0, 0, 1, 1], 3), [[1, 1, 0], [0, 1, 1], [0, 0, 0]]);
    }

    #[test]
    fn unsound_features_are_refused() {
        let mut bad = split();
        bad.test.values[5] = f32::INFINITY;
        let error = evaluate_set("macrl", &bad, &settings()).unwrap_err().to_string();
        assert_eq!(error, "test features `macrl`: expected finite features, found inf at image 1");
        assert!(evaluate(Vec::new(), &settings()).is_err());
    }
}
