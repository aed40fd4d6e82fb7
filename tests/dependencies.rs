//! Enforces `deny.toml` without cargo-deny: licences, sources and duplicate versions of the crates in `Cargo.lock`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use macrl::root;
use serde_json::Value;

/// A crate of the resolved graph.
struct Package {
    name: String,
    version: String,
    license: String,
    source: Option<String>,
    manifest: String,
}

/// cargo's metadata for this machine with default features, tests included.
fn metadata() -> Value {
    let host = host();
    let json = cargo(&["metadata", "--locked", "--offline", "--format-version=1", "--filter-platform", &host]);
    serde_json::from_slice(&json).unwrap()
}

/// The crates that are built for this machine.
fn packages() -> Vec<Package> {
    let metadata = metadata();
    let used: BTreeSet<&str> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap()).collect();
    let text = |package: &Value, key: &str| package[key].as_str().unwrap_or_default().to_string();
    let package = |package: &Value| Package {
        name: text(package, "name"),
        version: text(package, "version"),
        license: text(package, "license"),
        source: package["source"].as_str().map(str::to_string),
        manifest: text(package, "manifest_path"),
    };
    let all = metadata["packages"].as_array().unwrap().iter();
    all.filter(|p| used.contains(p["id"].as_str().unwrap())).map(package).collect()
}

fn host() -> String {
    let version = String::from_utf8(cargo(&["version", "--verbose"])).unwrap();
    version.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host").to_string()
}

fn cargo(arguments: &[&str]) -> Vec<u8> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().expect("cargo starts");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn rules() -> toml::Table {
    std::fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap()
}

fn strings(list: &toml::Value) -> impl Iterator<Item = &str> {
    list.as_array().unwrap().iter().map(|v| v.as_str().unwrap())
}

/// Whether `allowed` licences alone satisfy an SPDX expression.  Old manifests write "/" for OR.
fn met(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any_of(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words, allowed: &BTreeSet<&str>) -> bool {
    let mut met = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut Words, allowed: &BTreeSet<&str>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words, allowed: &BTreeSet<&str>) -> bool {
    let Some(word) = words.next() else { return false };
    if word == "(" {
        let met = any_of(words, allowed);
        return words.next() == Some(")") && met;
    }
    match words.next_if_eq(&"WITH") {
        Some(_) => words.next().is_some_and(|exception| allowed.contains(format!("{word} WITH {exception}").as_str())),
        None => allowed.contains(word),
    }
}

#[test]
fn license_expressions_are_evaluated() {
    let allowed = BTreeSet::from(["MIT", "Apache-2.0", "Unicode-3.0"]);
    for good in ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "(GPL-3.0 OR MIT) AND Unicode-3.0", "X WITH Y OR Apache-2.0"] {
        assert!(met(good, &allowed), "{good}");
    }
    for bad in
        ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR GPL-3.0) AND GPL-3.0", "Apache-2.0 WITH Y", "(MIT", "MIT MIT"]
    {
        assert!(!met(bad, &allowed), "{bad}");
    }
}

#[test]
fn every_license_is_allowed() {
    let rules = rules();
    let common: BTreeSet<&str> = strings(&rules["licenses"]["allow"]).collect();
    let exceptions: BTreeMap<&str, Vec<&str>> = rules["licenses"]["exceptions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["crate"].as_str().unwrap(), strings(&e["allow"]).collect()))
        .collect();
    let packages = packages();
    assert!(packages.len() > 100, "{} packages", packages.len());
    for package in packages {
        let own = exceptions.get(package.name.as_str()).into_iter().flatten().copied();
        let allowed = common.iter().copied().chain(own).collect();
        let Package { name, version, license, .. } = &package;
        assert!(met(license, &allowed), "{name} {version}: its licence {license:?} is not allowed by deny.toml");
    }
}

#[test]
fn every_dependency_comes_from_one_registry_or_this_repository() {
    let packages = packages();
    let sources: BTreeSet<&str> = packages.iter().filter_map(|p| p.source.as_deref()).collect();
    assert!(sources.len() == 1 && sources.iter().all(|s| s.starts_with("registry+")), "{sources:?}");
    for package in packages.iter().filter(|p| p.source.is_none()) {
        assert!(
            Path::new(&package.manifest).starts_with(root()),
            "{} lies outside of the repository: {}",
            package.name,
            package.manifest
        );
    }
}

#[test]
fn every_duplicate_version_is_listed() {
    let rules = rules();
    let listed: BTreeSet<&str> =
        rules["bans"]["skip"].as_array().unwrap().iter().map(|s| s["crate"].as_str().unwrap()).collect();
    let packages = packages();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &packages {
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    for (name, versions) in versions {
        let kept: Vec<&&str> = versions.iter().filter(|v| !listed.contains(format!("{name}@{v}").as_str())).collect();
        assert!(
            kept.len() <= 1,
            "{name} has the versions {kept:?}, expected one: list the others in deny.toml, or remove them"
        );
    }
}

/// The names of all crates that `name` is built from, directly or not; what only its tests use does not count.
fn built_from(metadata: &Value, name: &str) -> BTreeSet<String> {
    let names: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["id"].as_str().unwrap(), p["name"].as_str().unwrap()))
        .collect();
    let nodes: BTreeMap<&str, &Value> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|n| (n["id"].as_str().unwrap(), n)).collect();
    let built =
        |dep: &&Value| dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].as_str() != Some("dev"));
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<&str> = names.iter().filter(|(_, n)| **n == name).map(|(id, _)| *id).collect();
    assert_eq!(waiting.len(), 1, "expected one crate {name}");
    while let Some(id) = waiting.pop() {
        let deps = nodes[id]["deps"].as_array().unwrap().iter().filter(built).map(|dep| dep["pkg"].as_str().unwrap());
        waiting.extend(deps.filter(|dep| seen.insert(*dep)));
    }
    seen.into_iter().map(|id| names[id].to_string()).collect()
}

#[test]
fn crates_use_only_what_their_layer_may() {
    let metadata = metadata();
    let unwanted = [
        ("macrl-kernels", &["macrl-bundle", "macrl-nn", "candle-core", "ort", "tokio"][..]),
        ("macrl-bundle", &["macrl-nn", "macrl-runtime", "candle-core", "ort", "tokio"]),
        ("macrl-nn", &["macrl-runtime", "ort", "tokio"]),
        ("macrl-runtime", &["macrl-nn", "candle-core", "tokio"]),
        ("macrl-train", &["macrl-export", "macrl-serve", "macrl-runtime", "ort", "tokio"]),
        ("macrl-export", &["macrl-train", "macrl-serve", "tokio"]),
        ("macrl-serve", &["macrl-train", "macrl-export", "macrl-nn", "candle-core", "candle-onnx"]),
        ("macrl-cli", &["macrl-train", "macrl-export", "macrl-serve", "macrl-nn", "candle-core", "ort", "tokio"]),
    ];
    for (name, unwanted) in unwanted {
        let used = built_from(&metadata, name);
        let found: Vec<_> = unwanted.iter().filter(|crate_name| used.contains(**crate_name)).collect();
        assert!(found.is_empty(), "{name} is built from {found:?}");
    }
}
