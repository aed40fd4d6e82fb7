//! `macrl-serve export` and `import` with the real binary: an exported index can be imported unchanged.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use macrl_serve::index::postgres::Address;
use macrl_serve::index::{EmbeddedIndex, Index, Item, ListQuery, PostgresIndex};
use serde_json::json;

use crate::backends::*;

#[path = "../http/bundle.rs"]
#[allow(dead_code)]
pub(crate) mod bundle;

const DIM: usize = bundle::DIM;

fn run(args: &[&str], path: &Path) -> Output {
    let at = |arg: &&str| match arg.strip_prefix('@') {
        Some(name) => path.join(name).display().to_string(),
        None => arg.to_string(),
    };
    Command::new(env!("CARGO_BIN_EXE_macrl-serve")).args(args.iter().map(at)).output().unwrap()
}

fn error(args: &[&str], path: &Path) -> String {
    let output = run(args, path);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.lines().count() == 1, "{args:?}: {text}");
    text
}

#[tokio::test]
async fn an_exported_index_can_be_imported() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    bundle::write_bundle(&dir.join("bundle"), "tiny", false);
    // The tiny bundle's name is also its checksum.
    let tiny = macrl_serve::index::EncoderIdentity { sha256: "tiny".into(), dim: DIM };
    let page = || ListQuery { limit: 10_000, vectors: true, ..ListQuery::default() };
    let index = EmbeddedIndex::open(&dir.join("one"), &tiny, &options()).unwrap();
    let items: Vec<_> = clouds(5000, DIM, 41)
        .iter()
        .enumerate()
        .map(|(i, v)| with_image(i, item(&format!("ü{i:04}"), v, json!({ "n": i, "text": "a \"b\"\n" }))))
        .collect();
    for block in items.chunks(1000) {
        assert!(index.put(&tiny, block.to_vec()).await.unwrap().iter().all(Result::is_ok));
    }
    let expected = index.list(page()).await.unwrap();
    for kind in ["parquet", "npy"] {
        let (file, copy) = (format!("@all.{kind}"), format!("@copy-{kind}"));
        // While another process has the index open.
        let output = run(&["export", "--index", "@one", &file], dir);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = run(&["import", "--bundle", "@bundle", "--index", &copy, &file], dir);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("5000 items of "));
        let (copy, _) = EmbeddedIndex::open_read_only(&dir.join(&copy[1..])).unwrap();
        let found = copy.list(page()).await.unwrap();
        assert_eq!(found.items.len(), expected.items.len());
        for (found, expected) in found.items.iter().zip(&expected.items) {
            assert_eq!((&found.id, &found.metadata), (&expected.id, &expected.metadata));
            // Equal to the bit.
            assert_eq!(found.vector, expected.vector);
        }
        // Parquet keeps thumbnails and hashes; NumPy's format has no place for them.
        for (i, expected) in items.iter().enumerate().step_by(997) {
            let found = copy.get(&expected.id).await.unwrap().unwrap();
            let kept = if kind == "parquet" { expected.clone() } else { bare(expected) };
            assert_eq!(found, kept, "{kind} {i}");
        }
    }
    // With the option to leave thumbnails out, hashes are still exported.
    let output = run(&["export", "--no-pictures", "--index", "@one", "@vectors.parquet"], dir);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let size = |name: &str| fs::metadata(dir.join(name)).unwrap().len();
    assert!(size("vectors.parquet") < size("all.parquet"));
    bundle::write_bundle(&dir.join("other"), "other", false);
    let refused = error(&["import", "--bundle", "@other", "--index", "@new", "@all.parquet"], dir);
    assert!(refused.contains("vectors of encoder tiny") && refused.contains("the bundle's is other"), "{refused}");
    let refused = error(&["import", "--bundle", "@other", "--index", "@copy-npy", "@all.npy"], dir);
    assert!(refused.contains("the index holds 5000 items of encoder tiny"), "{refused}");
}

#[tokio::test]
async fn only_an_exports_own_files_are_replaced() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let tiny = macrl_serve::index::EncoderIdentity { sha256: "tiny".into(), dim: DIM };
    let index = EmbeddedIndex::open(&dir.join("one"), &tiny, &options()).unwrap();
    let items = clouds(3, DIM, 41).iter().enumerate().map(|(i, v)| item(&i.to_string(), v, json!({}))).collect();
    assert!(index.put(&tiny, items).await.unwrap().iter().all(Result::is_ok));
    let export = |file: &str| run(&["export", "--index", "@one", file], dir);
    for _ in 0..2 {
        assert!(export("@a.npy").status.success() && export("@a.parquet").status.success());
    }
    // A user's array has the same header; only the file beside it shows that it is an export.
    fs::copy(dir.join("a.npy"), dir.join("b.npy")).unwrap();
    fs::write(dir.join("c.jsonl"), "{\"question\": 1}\n").unwrap();
    fs::write(dir.join("d.parquet"), "PAR1").unwrap();
    for (file, there) in [("@b.npy", "b.npy"), ("@c.npy", "c.jsonl"), ("@d.parquet", "d.parquet")] {
        let before = fs::read(dir.join(there)).unwrap();
        let output = export(file);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
        assert!(said.contains(there) && said.contains("did not write it: name another file"), "{said}");
        assert_eq!(fs::read(dir.join(there)).unwrap(), before);
    }
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.contains("tmp")), "temporary files are left");
}

/// Every second item has a thumbnail, every third a hash.
fn with_image(i: usize, plain: Item) -> Item {
    let picture = || Arc::from([b"\x89PNG\r\n\x1a\n".as_slice(), &i.to_le_bytes(), &[i as u8; 200]].concat());
    let image = i.is_multiple_of(2).then(picture);
    Item { has_image: image.is_some(), image, hash: i.is_multiple_of(3).then_some([i as u8; 32]), ..plain }
}

/// The parts of an item that NumPy's files keep.
fn bare(item: &Item) -> Item {
    Item { image: None, has_image: false, hash: None, ..item.clone() }
}

#[test]
fn mistakes_are_one_line() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    bundle::write_bundle(&dir.join("bundle"), "tiny", false);
    assert!(error(&["export", "--index", "@none", "@a.parquet"], dir).contains("there is no index at"));
    assert!(error(&["export", "--index", "@none", "@a.csv"], dir).contains("expected FILE.parquet or FILE.npy"));
    fs::write(dir.join("a.npy"), "no array").unwrap();
    fs::write(dir.join("a.parquet"), "no table").unwrap();
    for (file, hint) in [("@a.npy", "is not a .npy file"), ("@a.parquet", "is not a Parquet file")] {
        assert!(error(&["import", "--bundle", "@bundle", "--index", "@new", file], dir).contains(hint));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_moves_into_a_database_and_back() {
    let place = Postgres::new();
    let Some(url) = place.url.clone() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    bundle::write_bundle(&dir.join("bundle"), "tiny", false);
    let tiny = macrl_serve::index::EncoderIdentity { sha256: "tiny".into(), dim: DIM };
    let items: Vec<_> = clouds(5000, DIM, 42)
        .iter()
        .enumerate()
        .map(|(i, v)| {
            with_image(i, item(&format!("ü{i:04}"), v, json!({ "n": i, "text": "a \"b\"\n\0", "whole": 1.0 })))
        })
        .collect();
    let page = || ListQuery { limit: 10_000, vectors: true, ..ListQuery::default() };
    {
        let index = EmbeddedIndex::open(&dir.join("one"), &tiny, &options()).unwrap();
        assert!(index.put(&tiny, items.clone()).await.unwrap().iter().all(Result::is_ok));
    }
    for args in [
        ["export", "--index", "@one", "@a.parquet"].as_slice(),
        &["import", "--bundle", "@bundle", "--index", &url, "@a.parquet"],
        &["export", "--index", &url, "@b.npy"],
        &["export", "--index", &url, "@b.parquet"],
        &["import", "--bundle", "@bundle", "--index", "@two", "@b.parquet"],
    ] {
        let output = run(args, dir);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let (one, _) = EmbeddedIndex::open_read_only(&dir.join("one")).unwrap();
    let (two, _) = EmbeddedIndex::open_read_only(&dir.join("two")).unwrap();
    let (there, _) = PostgresIndex::open_read_only(&url.parse::<Address>().unwrap()).unwrap();
    let expected = one.list(page()).await.unwrap();
    for copy in [there.list(page()).await.unwrap(), two.list(page()).await.unwrap()] {
        assert_eq!((copy.total, copy.items.len()), (5000, 5000));
        for (found, expected) in copy.items.iter().zip(&expected.items) {
            assert_eq!(
                (&found.id, &found.metadata, &found.vector),
                (&expected.id, &expected.metadata, &expected.vector)
            );
        }
    }
    for expected in items.iter().step_by(997) {
        assert_eq!(there.get(&expected.id).await.unwrap().as_ref(), Some(expected));
        assert_eq!(two.get(&expected.id).await.unwrap().as_ref(), Some(expected));
    }
    bundle::write_bundle(&dir.join("other"), "other", false);
    let refused = error(&["import", "--bundle", "@other", "--index", &url, "@b.npy"], dir);
    assert!(refused.contains("the index holds 5000 items of encoder tiny"), "{refused}");
    let nobody = url.replace("macrl:", "macrl:not-");
    let refused = error(&["export", "--index", &nobody, "@b.npy"], dir);
    assert!(refused.contains("password authentication failed") && !refused.contains(crate::server::PASSWORD));
    let typo = error(&["export", "--index", &format!("{url}?colour=red"), "@b.npy"], dir);
    assert!(typo.contains("unknown option `colour`") && !typo.contains(crate::server::PASSWORD), "{typo}");
    let backup = run(&["backup", "--index", &url, "@copy"], dir);
    let text = String::from_utf8_lossy(&backup.stderr).into_owned();
    assert!(backup.status.code() == Some(2) && text.contains("pg_dump"), "{text}");
}
