//! Reads TOML and `--set` overrides on top of the defaults; errors name unknown keys and wrong types.

use std::path::Path;

use toml::{Table, Value};

use super::Config;
use super::error::{ConfigError, require};

impl Config {
    /// Reads a file and `--set key=value` overrides on top of the defaults, and validates the result.
    ///
    /// # Errors
    /// [`ConfigError`]: an unreadable file, invalid TOML, an unknown key or an invalid value.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = crate::regular::read_text(path).map_err(|cause| ConfigError::Read { path: name.clone(), cause })?;
        Self::parse(&text, &name, overrides)
    }

    /// [`Config::load`] on text in memory; `origin` is used in error messages.
    ///
    /// # Errors
    /// Every [`ConfigError`] except `Read`.
    ///
    /// # Examples
    /// ```
    /// use macrl_bundle::Config;
    ///
    /// let config = Config::parse("[train]\nepochs = 3", "run.toml", &["train.batch_size=32".into()])?;
    /// assert_eq!((config.train.epochs, config.train.batch_size), (3, 32));
    ///
    /// // Unknown keys are errors; the message names the most similar key.
    /// let error = Config::parse("[train]\nepoch = 3", "run.toml", &[]).unwrap_err();
    /// assert!(error.to_string().contains("train.epochs"));
    /// # Ok::<(), macrl_bundle::ConfigError>(())
    /// ```
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut merged = default_table();
        merge(&mut merged, parse_table(text, origin)?, "", origin)?;
        for argument in overrides {
            let (key, value) = argument.split_once('=').ok_or_else(|| ConfigError::Syntax {
                origin: format!("--set {argument}"),
                message: "expected key=value".into(),
            })?;
            merge(&mut merged, override_table(key.trim(), value.trim()), "", "--set")?;
        }
        let config: Config = Value::Table(merged).try_into().map_err(|e: toml::de::Error| ConfigError::Syntax {
            origin: origin.to_string(),
            message: first_line(e.message()),
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Reads a resolved configuration, which has all keys of the version that wrote it, and gives those that came later the
    /// value that the run had without them.
    ///
    /// # Errors
    /// Every [`ConfigError`] but `Read`.
    pub fn parse_resolved(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let table = parse_table(text, origin)?;
        let data = table.get("data").and_then(Value::as_table);
        let before = data.is_some_and(|data| !data.contains_key("exact_decoding"));
        let later: &[String] = if before { &["data.exact_decoding=true".to_string()] } else { &[] };
        Self::parse(text, origin, later)
    }

    /// [`Config::parse_resolved`] of a run's file.
    ///
    /// # Errors
    /// Every [`ConfigError`].
    pub fn load_resolved(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = crate::regular::read_text(path).map_err(|cause| ConfigError::Read { path: name.clone(), cause })?;
        Self::parse_resolved(&text, &name)
    }

    /// All keys with their values as TOML: the content of a run's `config.toml`.
    pub fn to_toml(&self) -> String {
        toml::to_string(&as_table(self)).unwrap_or_default()
    }
}

pub(super) fn as_table(config: &Config) -> Table {
    // A struct of plain values always serialises.
    Table::try_from(config).unwrap_or_default()
}

fn default_table() -> Table {
    as_table(&Config::default())
}

fn parse_table(text: &str, origin: &str) -> Result<Table, ConfigError> {
    text.parse::<Table>()
        .map_err(|e| ConfigError::Syntax { origin: origin.to_string(), message: first_line(e.to_string().trim()) })
}

/// `a.b.c = value`.  A value that is not TOML counts as a string, so enums need no quotes on the command line.
fn override_table(key: &str, value: &str) -> Table {
    let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    let mut value = parsed.unwrap_or_else(|| Value::String(value.to_string()));
    let mut parts = key.split('.').rev();
    let last = parts.next().unwrap_or_default().to_string();
    let mut table = Table::from_iter([(last, value)]);
    for part in parts {
        value = Value::Table(table);
        table = Table::from_iter([(part.to_string(), value)]);
    }
    table
}

fn merge(base: &mut Table, over: Table, prefix: &str, origin: &str) -> Result<(), ConfigError> {
    for (key, value) in over {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let Some(slot) = base.get_mut(&key) else {
            let path = leaf(path, &value);
            return Err(ConfigError::UnknownKey { hint: nearest(&path), key: path, origin: origin.into() });
        };
        match (slot, value) {
            (Value::Table(inner), Value::Table(over)) => merge(inner, over, &path, origin)?,
            (slot @ Value::Float(_), Value::Integer(i)) => *slot = Value::Float(i as f64),
            (Value::Array(base), Value::Array(over)) => {
                require(
                    base.len() == over.len(),
                    &path,
                    &format!("must be a list of {} numbers", base.len()),
                    format!("{} values", over.len()),
                )?;
                for (slot, value) in base.iter_mut().zip(over) {
                    *slot = match value {
                        Value::Integer(i) => Value::Float(i as f64),
                        Value::Float(_) => value,
                        other => return Err(wrong_type(&path, "a list of numbers", &other)),
                    };
                }
            }
            (slot, value) if slot.same_type(&value) => *slot = value,
            (slot, value) => return Err(wrong_type(&path, slot.type_str(), &value)),
        }
    }
    Ok(())
}

fn wrong_type(path: &str, expected: &str, found: &Value) -> ConfigError {
    ConfigError::Value {
        key: path.into(),
        expected: format!("must be of type {expected}"),
        found: format!("{found} ({})", found.type_str()),
    }
}

/// Path of the first key in an unknown section, which is more useful in a message than the section's name.
fn leaf(path: String, value: &Value) -> String {
    match value.as_table().and_then(|table| table.iter().next()) {
        Some((key, value)) => leaf(format!("{path}.{key}"), value),
        None => path,
    }
}

/// Suggests known keys for an unknown one: those with the most similar last part, in the most similar section.  A key
/// without a section gets the candidates of all sections.
fn nearest(key: &str) -> String {
    let mut known = Vec::new();
    flatten(&default_table(), "", &mut known);
    let (section, last) = parts(key);
    let alike = |known: &&String| strsim::jaro_winkler(parts(known).1, last);
    let best = known.iter().map(|k| alike(&k)).fold(0.0, f64::max);
    let mut found: Vec<&String> = known.iter().filter(|k| alike(k) >= best).collect();
    // For a name without a section, [train] is the most likely meaning.
    found.sort_by_key(|known| parts(known).0 != "train");
    if !section.is_empty() {
        let nearer = |known: &String| strsim::jaro_winkler(parts(known).0, section);
        let nearest = found.iter().map(|k| nearer(k)).fold(0.0, f64::max);
        found.retain(|known| nearer(known) >= nearest);
    }
    let named: Vec<String> = found.iter().map(|known| format!("`{known}`")).collect();
    format!("did you mean {}?", named.join(" or "))
}

/// Splits a key into section and name: (`views.strong`, `flip`).
fn parts(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

fn flatten(table: &Table, prefix: &str, out: &mut Vec<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => {
                out.push(path.clone());
                flatten(inner, &path, out);
            }
            _ => out.push(path),
        }
    }
}

fn first_line(text: &str) -> String {
    // toml's message has a location, an excerpt of the line, then the cause; the first and last line are enough.
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    match lines.last() {
        Some(tail) => format!("{head}: {}", tail.trim()),
        None => head.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KeyBranch;

    #[test]
    fn defaults_survive_a_round_trip() {
        let config = Config::default();
        assert_eq!(Config::parse(&config.to_toml(), "text", &[]).unwrap(), config);
        assert_eq!(Config::parse_resolved(&config.to_toml(), "text").unwrap(), config);
        // Before there was the key, every image was decoded at its full size.
        let older = config.to_toml().replace("exact_decoding = false\n", "");
        assert!(Config::parse_resolved(&older, "text").unwrap().data.exact_decoding);
        assert!(!Config::parse(&older, "text", &[]).unwrap().data.exact_decoding);
    }

    #[test]
    fn overrides_win_and_integers_pass_for_floats() {
        let set =
            ["encoder.width=96".into(), "contrast.key_branch=shared".into(), "views.strong.crop_scale=[1, 1]".into()];
        let config = Config::parse("[train]\nlr = 1\n", "text", &set).unwrap();
        assert_eq!(config.encoder.width, 96);
        assert_eq!(config.contrast.key_branch, KeyBranch::Shared);
        assert_eq!(config.views.strong.crop_scale, [1.0, 1.0]);
        assert_eq!(config.train.lr, 1.0);
    }

    #[test]
    fn finetuning_and_loggers_are_not_part_of_a_run() {
        let config = Config::default();
        let set = |text: &str| Config::parse(text, "text", &[]).unwrap();
        assert!(config.same_run(&set("[finetune]\nepochs = 3\n[train]\ntensorboard = true\n")));
        assert!(!config.same_run(&set("[train]\nlr = 1\n")));
    }

    #[test]
    fn mistakes_are_named() {
        let message = |text: &str| Config::parse(text, "x.toml", &[]).unwrap_err().to_string();
        assert_eq!(
            message("[encoder]\nwidht = 3"),
            "unknown key `encoder.widht` in x.toml; did you mean `encoder.width`?"
        );
        assert_eq!(message("[encoder]\nwidth = 'a'"), "`encoder.width` must be of type integer, found \"a\" (string)");
        assert_eq!(message("[encoder]\nheads = 5"), "`encoder.heads` must divide the width (192), found 5");
        assert_eq!(message("[contrast]\nkey_branch = 'both'").lines().count(), 1);
        assert_eq!(message("[encoder\n").lines().count(), 1);
        assert!(message("[views.weak]\nmask_ratio = 1.0").contains("views.weak.mask_ratio"));
        assert_eq!(message("[finetune]\nmixup = 2"), "`finetune.mixup` must be in [0, 1], found 2");
        assert!(message("[finetune]\nlayer_dcay = 1").ends_with("did you mean `finetune.layer_decay`?"));
    }

    #[test]
    fn the_key_that_is_meant_is_found_by_its_last_part() {
        for (given, meant) in [
            ("epochs", "`train.epochs` or `finetune.epochs`"),
            ("trian.epochs", "`train.epochs`"),
            ("finetune.epoch", "`finetune.epochs`"),
            ("train.batchsize", "`train.batch_size`"),
            ("mask_ratio", "`views.strong.mask_ratio` or `views.weak.mask_ratio`"),
            ("views.stong.mask_ratio", "`views.strong.mask_ratio`"),
            ("temprature", "`contrast.temperature` or `evaluate.temperature`"),
            ("image_size", "`encoder.image_size`"),
        ] {
            let said = Config::parse("", "text", &[format!("{given}=5")]).unwrap_err().to_string();
            assert_eq!(said, format!("unknown key `{given}` in --set; did you mean {meant}?"));
        }
        let said = |text: &str| Config::parse(text, "x", &[]).unwrap_err().to_string();
        assert_eq!(said("[trian]\nlr = 1\n"), "unknown key `trian.lr` in x; did you mean `train.lr`?");
        assert_eq!(said("[trian]\n"), "unknown key `trian` in x; did you mean `train`?");
    }
}
