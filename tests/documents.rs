//! Checks references in documents: links, anchors, and the files that text, comments and configurations name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use macrl::root;

/// Folders of the project; words that start with one of these count as paths.
const FOLDERS: [&str; 11] = [
    "models/", "train/", "export/", "serve/", "tests/", "docs/", "configs/", "scripts/", "bench/", "deploy/",
    ".github/",
];

/// Every file of the project whose name ends with one of `endings`, except build outputs and data.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let link = path.symlink_metadata().unwrap().is_symlink();
            if path.is_dir() {
                let ours = !["target", "runs", "data", "lease", "corpus", "artifacts"].contains(&name.as_str());
                if ours && !link && (!name.starts_with('.') || name == ".github") {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A Markdown file's lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// The targets of `[text](target)` in a line.
fn links(line: &str) -> Vec<&str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
}

/// The anchor that GitHub generates for a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(file: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(file).unwrap();
    prose(&text).filter(|line| line.starts_with('#')).map(anchor).collect()
}

/// Describes the fault of a link; `None` if the link is valid.
fn broken(file: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, fragment) = target.split_once('#').map_or((target, None), |(path, fragment)| (path, Some(fragment)));
    let named = if path.is_empty() { file.to_path_buf() } else { file.parent().unwrap().join(path) };
    if !named.exists() {
        return Some(format!("{}: the link to {target} names a file that does not exist", file.display()));
    }
    let fragment = fragment.filter(|_| named.extension().is_some_and(|ending| ending == "md"))?;
    let missing = !anchors(&named).contains(fragment);
    missing.then(|| format!("{}: the link to {target} names a heading that does not exist", file.display()))
}

/// The words of a text that are paths of files or folders in the project.
fn paths(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| c.is_whitespace() || "`()[]<>\"'|,;=*".contains(c));
    let trimmed = words.map(|word| word.trim_end_matches(['.', ':', '!', '?']));
    let ours = trimmed
        .filter(|word| FOLDERS.iter().any(|folder| word.strip_prefix(folder).is_some_and(|rest| !rest.is_empty())));
    // A word with a variable or a pattern is not a single file; the fuzz target creates its corpus itself.
    ours.filter(|word| !word.contains(['$', '{', '}', '\\', '#']))
        .filter(|word| !word.contains("...") && !word.contains("/corpus/"))
        .collect()
}

#[test]
fn linked_files_and_headings_exist() {
    let documents = files(&[".md"]);
    assert!(documents.len() > 10, "{documents:?}");
    let mut faults = Vec::new();
    for file in documents {
        let text = fs::read_to_string(&file).unwrap();
        faults.extend(prose(&text).flat_map(links).filter_map(|target| broken(&file, target)));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn named_files_exist() {
    let mut faults = Vec::new();
    for file in files(&[".md", ".toml", ".sh", ".py", ".yml", "Makefile"]) {
        // The change log names files that no longer exist.
        if file.ends_with("CHANGELOG.md") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for path in paths(&text) {
            // In a crate's files, a path may be relative to the crate.
            let near = file.parent().unwrap().join(path);
            if !root().join(path).exists() && !near.exists() {
                faults.push(format!("{}: {path} does not exist", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn source_comments_name_documents_that_exist() {
    for file in files(&[".rs", ".html", ".cu", ".cuh", ".h", ".cpp"]) {
        let text = fs::read_to_string(&file).unwrap();
        for path in paths(&text).into_iter().filter(|path| path.starts_with("docs/") && path.ends_with(".md")) {
            assert!(root().join(path).exists(), "{}: {path} does not exist", file.display());
        }
    }
}

#[test]
fn the_readme_stays_short() {
    let lines = fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(lines <= 90, "README.md has {lines} lines, expected at most 90: details belong in docs/");
}
