//! Files of earlier versions can still be read: docs/formats.md.

use std::fs;
use std::path::{Path, PathBuf};

use macrl_serve::index::{EmbeddedIndex, Index, ListQuery, Query};
use serde_json::json;

use crate::backends::*;

/// Made by version 0.1.0: three images and three vectors, one of them replaced, with the encoder of
/// models/pretrained/cifar10, with `--exact-up-to 3`.
fn today() -> (tempfile::TempDir, PathBuf) {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/index_format_1");
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    fs::create_dir(&dir).unwrap();
    for file in ["items.sqlite", "graph.usearch"] {
        fs::copy(made.join(file), dir.join(file)).unwrap();
    }
    (parent, dir)
}

async fn is_whole(index: &EmbeddedIndex) {
    let page = index.list(ListQuery { limit: 10, vectors: true, ..ListQuery::default() }).await.unwrap();
    let ids: Vec<&str> = page.items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!(ids, ["picture 0", "picture 1", "picture 2", "vector-0", "vector-1", "vector-2"]);
    let picture = index.get("picture 0").await.unwrap().unwrap();
    assert_eq!(picture.metadata, map(json!({ "label": "d\u{f6}g", "n": 0 })).into());
    assert!(picture.image.unwrap().starts_with(b"\x89PNG") && picture.hash.is_some() && picture.vector.len() == 192);
    let vector = index.get("vector-1").await.unwrap().unwrap();
    assert_eq!(vector.metadata, map(json!({ "n": 1, "deep": { "list": [1, null, "x"] } })).into());
    assert!((vector.vector[1] - 2.0 / 5f32.sqrt()).abs() < 1e-6 && (vector.vector[2] - 1.0 / 5f32.sqrt()).abs() < 1e-6);
    assert_eq!(index.get("vector-0").await.unwrap().unwrap().vector[7], 1.0);
    for item in page.items {
        for exact in [true, false] {
            let hits = search(index, Query { exact, ..query(&item.vector, 1) }).await;
            assert_eq!(hits[0].id, item.id);
        }
    }
}

#[tokio::test]
async fn an_index_of_format_1_is_read_and_written() {
    let (_parent, dir) = today();
    let (reader, encoder) = EmbeddedIndex::open_read_only(&dir).unwrap();
    is_whole(&reader).await;
    drop(reader);
    assert_eq!(encoder.dim, 192);
    let options = macrl_serve::index::OpenOptions { exact_up_to: 3, ..options() };
    let index = EmbeddedIndex::open(&dir, &encoder, &options).unwrap();
    is_whole(&index).await;
    settled(&index).await;
    is_whole(&index).await;
    let new = item("new", &Noise(1).vector(192), json!({}));
    assert_eq!(index.put(&encoder, vec![new.clone()]).await.unwrap(), [Ok(true)]);
    drop(index);
    let index = EmbeddedIndex::open(&dir, &encoder, &options).unwrap();
    assert_eq!(index.get("new").await.unwrap(), Some(new));
    assert!(index.delete("new").await.unwrap());
    is_whole(&index).await;
}

#[test]
fn a_bundle_of_format_1_is_read() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pretrained/cifar10");
    let bundle = macrl_bundle::bundle::Bundle::open(&dir).unwrap();
    assert_eq!(macrl_serve::index::EncoderIdentity::of(&bundle).dim, 192);
}
