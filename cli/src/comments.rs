//! A configuration as TOML with what each key means, taken from the documentation of the types.

use std::collections::HashMap;

use macrl_bundle::Config;

/// The definition of the sections and keys.
const SOURCE: &str = include_str!("../../models/bundle/src/config/mod.rs");

/// The configuration as TOML with a comment before each section and key.
pub(crate) fn commented(config: &Config) -> String {
    let comments = comments();
    let comment =
        |place: &str| comments.get(place).map_or_else(String::new, |lines| format!("# {}\n", lines.join("\n# ")));
    let (mut text, mut section) = (String::new(), String::new());
    for line in config.to_toml().lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_string();
            text += &comment(&section);
        } else if let Some((key, _)) = line.split_once(" = ") {
            text += &comment(&format!("{section}.{key}"));
        }
        text += line;
        text.push('\n');
    }
    text
}

/// Documentation by section (`train`) and key (`train.epochs`).
fn comments() -> HashMap<String, Vec<String>> {
    let (mut found, mut pending, mut sections) = (HashMap::new(), Vec::<String>::new(), Vec::<String>::new());
    for line in SOURCE.lines() {
        let trimmed = line.trim_start();
        if let Some(text) = trimmed.strip_prefix("///") {
            pending.push(plain(text.trim()));
        } else if line.starts_with("pub struct ") {
            sections = named(pending.first().map_or("", String::as_str));
            for section in &sections {
                found.insert(section.clone(), pending.clone());
            }
            pending.clear();
        } else if let Some((key, _)) = trimmed.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")) {
            for section in &sections {
                found.insert(format!("{section}.{key}"), pending.clone());
            }
            pending.clear();
        } else if !trimmed.starts_with("#[") {
            pending.clear();
        }
    }
    found
}

/// The sections that a struct's first line names: `[views.strong]` and `[views.weak]`.
fn named(line: &str) -> Vec<String> {
    let parts = line.split('[').skip(1).filter_map(|part| part.split_once(']'));
    parts.map(|(name, _)| name.to_string()).collect()
}

/// Without Rust's marks for code and links.
fn plain(text: &str) -> String {
    text.replace("[`", "").replace("`]", "").replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_comment_and_the_text_reads_back() {
        let config = Config::default();
        let text = commented(&config);
        assert_eq!(Config::parse(&text, "", &[]).unwrap(), config);
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let is_key = !line.starts_with('#') && line.contains(" = ");
            assert!(!is_key || lines[i - 1].starts_with("# "), "{line} has no comment");
        }
        assert!(text.contains("# Passes over the training images.\nepochs = 100\n"), "{text}");
        assert!(text.contains("# Share of patches removed, in [0, 1).\nmask_ratio = 0.25\n"));
    }
}
