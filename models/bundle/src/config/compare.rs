//! Differences between two configurations.

use toml::{Table, Value};

use super::Config;
use super::load::as_table;

/// Keys that do not influence what pretraining computes; they may change when a run is resumed.
const FREE: [&str; 4] =
    ["train.tensorboard", "train.checkpoint_every", "train.checkpoint_minutes", "train.keep_checkpoints"];
/// A section that does not influence pretraining either.
const FREE_SECTION: &str = "finetune.";

/// A key whose values differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Dotted path, for example `train.lr`.
    pub key: String,
    /// Value in this configuration, as TOML.
    pub own: String,
    /// Value in the other configuration, as TOML.
    pub other: String,
}

impl Config {
    /// Keys that influence pretraining and differ in `other`; empty if both compute the same numbers.
    pub fn differences(&self, other: &Config) -> Vec<Difference> {
        let free = |key: &str| FREE.contains(&key) || key.starts_with(FREE_SECTION);
        self.all_differences(other).into_iter().filter(|d| !free(&d.key)).collect()
    }

    /// Keys of all sections that differ in `other`.
    pub fn all_differences(&self, other: &Config) -> Vec<Difference> {
        let mut found = Vec::new();
        collect(&as_table(self), &as_table(other), "", &mut found);
        found
    }
}

/// Both tables come from the same struct and have the same keys.
fn collect(own: &Table, other: &Table, prefix: &str, found: &mut Vec<Difference>) {
    for (key, value) in own {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (value, other.get(key)) {
            (Value::Table(own), Some(Value::Table(other))) => collect(own, other, &path, found),
            (own, Some(other)) if own == other => {}
            (own, other) => {
                let other = other.map(Value::to_string).unwrap_or_default();
                found.push(Difference { key: path, own: own.to_string(), other });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_keys_are_named_with_both_values() {
        let config = Config::default();
        let set = ["train.lr=1".into(), "views.weak.flip=0".into(), "finetune.epochs=3".into()];
        let other = Config::parse("[train]\ncheckpoint_every = 7\ntensorboard = true\n", "text", &set).unwrap();
        let found: Vec<_> = config.differences(&other).into_iter().map(|d| (d.key, d.own, d.other)).collect();
        let expected = [("train.lr", "0.00015", "1.0"), ("views.weak.flip", "0.5", "0.0")];
        assert_eq!(found, expected.map(|(k, a, b)| (k.to_string(), a.to_string(), b.to_string())));
        assert_eq!(config.all_differences(&other).len(), 5);
        assert!(config.differences(&config).is_empty() && !config.same_run(&other));
    }
}
