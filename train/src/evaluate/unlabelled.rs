//! Evaluation without labels: the spread of the features, and the number of directions that they use.

use macrl_bundle::evaluation::{Evaluation, Protocol};
use serde_json::{Map, Value, json};

use super::Settings;

/// Key of these results in evaluation.json, whose `rows` are then empty.
pub const KEY: &str = "unlabelled";

/// Spread and rank of one set of features.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// Name of the features: `macrl` or `random`.
    pub features: &'static str,
    /// Number of images measured.
    pub images: usize,
    /// D, the number of values of a feature.
    pub dim: usize,
    /// Mean standard deviation of the normalised features, 1 isotropic, 0 collapsed.
    pub feature_std: f64,
    /// Effective rank (RankMe) of the features.
    pub rank: f64,
}

/// The content of evaluation.json.
pub fn evaluation(spread: &[Spread], settings: &Settings) -> Evaluation {
    let row = |s: &Spread| json!({"features": s.features, "dim": s.dim, "feature_std": s.feature_std, "rank": s.rank});
    let images = spread.first().map_or(0, |s| s.images);
    let held = json!({
        "images": images,
        "rows": spread.iter().map(row).collect::<Vec<_>>(),
        "feature_std": "mean standard deviation of the normalised features' coordinates x sqrt(D): 1 isotropic, 0 collapsed",
        "rank": "effective number of directions that the features use (RankMe), at most D",
    });
    Evaluation {
        protocol: Protocol {
            k: settings.k,
            temperature: settings.temperature,
            pooling: settings.pooling,
            train_images: 0,
            test_images: images,
            split: settings.split.clone(),
            seed: settings.seed,
            linear: String::new(),
            extra: Map::new(),
        },
        rows: Vec::new(),
        labels: Vec::new(),
        extra: Map::from_iter([(KEY.to_string(), held)]),
    }
}

/// A row as read from the file: (features, D, spread, rank).
pub type Row = (String, u64, f64, f64);

/// The rows of a file; none where it was evaluated with labels.
pub fn rows(evaluation: &Evaluation) -> Vec<Row> {
    let held = evaluation.extra.get(KEY).and_then(|held| held["rows"].as_array());
    let number = |row: &Value, key: &str| row[key].as_f64();
    let read = |row: &Value| {
        let name = row["features"].as_str()?.to_string();
        Some((name, row["dim"].as_u64()?, number(row, "feature_std")?, number(row, "rank")?))
    };
    held.into_iter().flatten().filter_map(read).collect()
}

/// The rows as aligned text.
pub fn table(evaluation: &Evaluation) -> String {
    let mut text = format!("{:<10} {:>5} {:>8} {:>8}\n", "features", "dim", "spread", "rank");
    for (name, dim, spread, rank) in rows(evaluation) {
        text += &format!("{name:<10} {dim:>5} {spread:>8.3} {rank:>8.1}\n");
    }
    text + "spread: 1 isotropic, 0 collapsed; rank: directions in use, at most dim; random: an untrained encoder\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_accuracies_is_read_back() {
        let spread = ["macrl", "random"].map(|features| Spread {
            features,
            images: 64,
            dim: 192,
            feature_std: 0.75,
            rank: 20.5,
        });
        let settings = super::super::tests::settings();
        let written = evaluation(&spread, &settings);
        let read = Evaluation::from_json(written.to_json().as_bytes(), "evaluation.json").unwrap();
        assert_eq!(rows(&read), rows(&written));
        assert_eq!(rows(&read)[1], ("random".to_string(), 192, 0.75, 20.5));
        assert!(read.row("macrl").is_none() && read.rows.is_empty());
        assert!(table(&read).starts_with("features     dim   spread     rank\nmacrl        192    0.750     20.5\n"));
        assert!(rows(&super::super::evaluation(Vec::new(), (0, 0), &settings)).is_empty());
    }
}
