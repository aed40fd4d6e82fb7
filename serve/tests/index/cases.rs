//! The suite: requirements on every backend.

use std::sync::Arc;

use macrl_serve::index::{EncoderIdentity, Index, IndexError, Item, ListQuery, Query};
use serde_json::json;

use crate::backends::*;
pub(crate) use crate::duplicates::*;
pub(crate) use crate::model::random_operations_agree_with_a_model;

pub(crate) async fn items_are_stored_replaced_and_deleted(backend: &dyn Backend) {
    let index = backend.open(&encoder(2)).await.unwrap();
    let first = item("a/ä b", &[1.0, 0.0], json!({ "x": [1, { "y": null }], "t": "é" }));
    let outcomes = index.put(&encoder(2), vec![first.clone(), item("b", &[0.0, 1.0], json!({}))]).await.unwrap();
    assert_eq!(outcomes, [Ok(true), Ok(true)]);
    assert_eq!(index.get("a/ä b").await.unwrap(), Some(first));
    let second = item("a/ä b", &[0.6, 0.8], json!({ "n": 1.5 }));
    assert_eq!(index.put(&encoder(2), vec![second.clone()]).await.unwrap(), [Ok(false)]);
    assert_eq!(index.get("a/ä b").await.unwrap(), Some(second));
    assert_eq!(index.status().await.unwrap().items, 2);
    assert!(index.delete("b").await.unwrap() && !index.delete("b").await.unwrap());
    assert_eq!(index.get("b").await.unwrap(), None);
    assert_eq!(ids(&search(index.as_ref(), query(&[0.0, 1.0], 9)).await), ["a/ä b"]);
    assert_eq!(index.put(&encoder(2), vec![item("b", &[0.0, 1.0], json!({}))]).await.unwrap(), [Ok(true)]);
    assert_eq!(index.put(&encoder(2), Vec::new()).await.unwrap(), []);
}

pub(crate) async fn each_item_of_a_batch_has_its_result(backend: &dyn Backend) {
    let index = backend.open(&encoder(2)).await.unwrap();
    let items = vec![
        item("a", &[1.0, 0.0], json!({ "v": 1 })),
        item("b", &[1.0, 0.0, 0.0], json!({})),
        item("a", &[0.0, 1.0], json!({ "v": 2 })),
        item("c", &[1.0, 0.0], json!({})),
    ];
    let outcomes = index.put(&encoder(2), items).await.unwrap();
    let wrong = Err(IndexError::Dimension { expected: 2, found: 3 });
    assert_eq!(outcomes, [Ok(true), wrong, Ok(false), Ok(true)]);
    assert_eq!(index.get("a").await.unwrap().unwrap().metadata, map(json!({ "v": 2 })).into());
    let wrong = index.search(vec![query(&[1.0], 1)]).await.unwrap_err();
    assert_eq!(wrong, IndexError::Dimension { expected: 2, found: 1 });
}

pub(crate) async fn the_nearest_come_first_and_ties_by_id(backend: &dyn Backend) {
    let index = backend.open(&encoder(2)).await.unwrap();
    let at = |degrees: f32| [degrees.to_radians().cos(), degrees.to_radians().sin()];
    let angles = [("far", 180.0), ("b", 10.0), ("C", 10.0), ("a", 10.0), ("near", 5.0), ("across", 90.0)];
    fill(index.as_ref(), angles.map(|(id, degrees)| item(id, &at(degrees), json!({}))).to_vec()).await;
    let hits = search(index.as_ref(), query(&[1.0, 0.0], 10)).await;
    // Ids are sorted by bytes: capitals come first.
    assert_eq!(ids(&hits), ["near", "C", "a", "b", "across", "far"]);
    for (hit, degrees) in hits.iter().zip([5.0f32, 10.0, 10.0, 10.0, 90.0, 180.0]) {
        assert!((hit.score - degrees.to_radians().cos()).abs() < 1e-6, "{hit:?}");
    }
    assert_eq!(ids(&search(index.as_ref(), query(&[1.0, 0.0], 3)).await), ["near", "C", "a"]);
    let without = Query { except: Some("near".into()), exact: true, ..query(&[1.0, 0.0], 2) };
    assert_eq!(ids(&search(index.as_ref(), without.clone()).await), ["C", "a"]);
    // Several queries in one call.
    let several = index.search(vec![query(&[-1.0, 0.0], 1), without, query(&[0.0, 1.0], 1)]).await.unwrap();
    assert_eq!(several.iter().map(|hits| ids(hits).join(" ")).collect::<Vec<_>>(), ["far", "C a", "across"]);
}

pub(crate) async fn filters_narrow_searches_and_listings(backend: &dyn Backend) {
    let index = backend.open(&encoder(2)).await.unwrap();
    let items = [
        ("a", json!({ "label": "cat", "year": 2001, "tags": ["x", "y"] })),
        ("b", json!({ "label": "dog", "year": 2002.0, "box": { "w": 1, "h": 2 } })),
        ("c", json!({ "label": "cat", "year": 2003.5, "none": null })),
        ("d", json!({ "label": 7, "year": "2002", "flag": true })),
        ("e", json!({})),
    ];
    let items = items.into_iter().enumerate().map(|(i, (id, m))| item(id, &[1.0, i as f32 / 10.0], m));
    fill(index.as_ref(), items.collect()).await;
    for (conditions, expected) in [
        (json!({ "label": "cat" }), "a c"),
        (json!({ "label": { "in": ["dog", 7, "horse"] } }), "b d"),
        (json!({ "label": { "in": [] } }), ""),
        (json!({ "year": 2002 }), "b"),
        (json!({ "year": { "gte": 2001, "lt": 2003.5 } }), "a b"),
        (json!({ "year": { "gt": 2001 } }), "b c"),
        (json!({ "year": { "lte": 2002 }, "label": "cat" }), "a"),
        (json!({ "year": { "gt": 5000, "lt": 1 } }), ""),
        (json!({ "none": null }), "c"),
        (json!({ "flag": true }), "d"),
        (json!({ "tags": ["x", "y"] }), "a"),
        (json!({ "tags": "x" }), ""),
        (json!({ "box": { "eq": { "h": 2, "w": 1 } } }), "b"),
        (json!({ "box": { "eq": { "h": 2.0, "w": 1 } } }), "b"),
        (json!({ "box": { "eq": { "w": 1 } } }), ""),
        (json!({ "tags": ["y", "x"] }), ""),
        (json!({ "label": "it's \"quoted\" %_\\" }), ""),
        (json!({ "missing": null }), ""),
    ] {
        for exact in [true, false] {
            let narrow = Query { filter: filter(conditions.clone()), exact, ..query(&[1.0, 0.0], 10) };
            assert_eq!(ids(&search(index.as_ref(), narrow).await).join(" "), expected, "{conditions}");
        }
        let listing = ListQuery { limit: 10, filter: filter(conditions.clone()), ..ListQuery::default() };
        let page = index.list(listing).await.unwrap();
        let found: Vec<&str> = page.items.iter().map(|i| i.id.as_str()).collect();
        assert_eq!(found.join(" "), expected, "{conditions}");
        assert_eq!((page.total, page.next), (found.len(), None), "{conditions}");
    }
    // Old metadata of replaced and deleted items is no longer found.
    fill(index.as_ref(), vec![item("a", &[1.0, 0.0], json!({ "label": "dog" }))]).await;
    index.delete("c").await.unwrap();
    let narrow = |label: &str| Query { filter: filter(json!({ "label": label })), ..query(&[1.0, 0.0], 10) };
    assert!(search(index.as_ref(), narrow("cat")).await.is_empty());
    assert_eq!(ids(&search(index.as_ref(), narrow("dog")).await), ["a", "b"]);
}

pub(crate) async fn pages_follow_each_other_without_gaps(backend: &dyn Backend) {
    let index = backend.open(&encoder(2)).await.unwrap();
    let one = |i: usize| item(&format!("i{i:02}"), &[1.0, i as f32], json!({ "even": i.is_multiple_of(2) }));
    fill(index.as_ref(), (0..25).map(one).collect()).await;
    for (conditions, total) in [(json!({}), 25), (json!({ "even": true }), 13)] {
        let (mut cursor, mut seen) = (None, Vec::new());
        loop {
            let filter = filter(conditions.clone());
            let page =
                index.list(ListQuery { cursor, limit: 6, filter, vectors: true, skip_total: false }).await.unwrap();
            assert!(page.items.len() <= 6 && page.items.iter().all(|i| i.vector.len() == 2));
            assert_eq!(page.total, total);
            seen.extend(page.items.into_iter().map(|i| i.id));
            cursor = page.next;
            // The next page begins after the cursor's id, even if that item was deleted.
            if let Some(last) = &cursor {
                index.delete(last).await.unwrap();
                fill(index.as_ref(), vec![one(last[1..].parse().unwrap())]).await;
            } else {
                break;
            }
        }
        assert_eq!(seen.len(), total);
        assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
    }
    let page = index.list(ListQuery { limit: 1, ..ListQuery::default() }).await.unwrap();
    assert!(page.items[0].vector.is_empty() && page.next.as_deref() == Some("i00"));
}

pub(crate) async fn another_encoders_vectors_are_refused(backend: &dyn Backend) {
    let index = backend.open(&encoder(2)).await.unwrap();
    let other = EncoderIdentity { sha256: "two".into(), dim: 2 };
    fill(index.as_ref(), vec![item("a", &[1.0, 0.0], json!({}))]).await;
    let refused = IndexError::EncoderMismatch { holds: encoder(2), items: 1, given: other.clone() };
    let put = index.put(&other, vec![item("b", &[1.0, 0.0], json!({}))]).await;
    assert_eq!(put, Err(refused.clone()));
    assert_eq!(index.adopt(&other).await, Err(refused.clone()));
    assert_eq!(index.adopt(&encoder(2)).await, Ok(()));
    assert_eq!(index.status().await.unwrap().items, 1);
    drop(index);
    if backend.is_persistent() {
        assert_eq!(backend.open(&other).await.err(), Some(refused));
        assert!(backend.open(&encoder(2)).await.is_ok());
    }
}

pub(crate) async fn an_empty_index_takes_another_encoder(backend: &dyn Backend) {
    let index = backend.open(&encoder(2)).await.unwrap();
    let other = EncoderIdentity { sha256: "two".into(), dim: 3 };
    fill(index.as_ref(), vec![item("a", &[1.0, 0.0], json!({}))]).await;
    index.delete("a").await.unwrap();
    index.adopt(&other).await.unwrap();
    let old = index.put(&encoder(2), vec![item("a", &[1.0, 0.0], json!({}))]).await;
    assert!(matches!(old, Err(IndexError::EncoderMismatch { .. })), "{old:?}");
    assert_eq!(index.put(&other, vec![item("a", &[1.0, 0.0, 0.0], json!({}))]).await.unwrap(), [Ok(true)]);
    assert_eq!(ids(&search(index.as_ref(), query(&[0.0, 0.0, 1.0], 1)).await), ["a"]);
    drop(index);
    if backend.is_persistent() {
        let index = backend.open(&other).await.unwrap();
        assert_eq!(index.get("a").await.unwrap().unwrap().vector, [1.0, 0.0, 0.0]);
    }
}

pub(crate) async fn thumbnails_and_hashes_are_kept(backend: &dyn Backend) {
    let png: Arc<[u8]> = Arc::from(&b"\x89PNG and so on"[..]);
    let with = |id: &str| Item {
        image: Some(png.clone()),
        has_image: true,
        hash: Some([7; 32]),
        ..item(id, &[1.0, 0.0], json!({}))
    };
    let index = backend.open(&encoder(2)).await.unwrap();
    fill(index.as_ref(), vec![with("a"), item("b", &[0.0, 1.0], json!({})), with("c")]).await;
    assert_eq!(index.get("a").await.unwrap(), Some(with("a")));
    let wanted = ["a", "b", "none"].map(String::from);
    assert_eq!(index.hashes(&wanted).await.unwrap(), [Some([7; 32]), None, None]);
    let hits = search(index.as_ref(), query(&[1.0, 0.0], 3)).await;
    assert_eq!(hits.iter().map(|h| h.has_image).collect::<Vec<_>>(), [true, true, false]);
    let page = index.list(ListQuery { limit: 3, ..ListQuery::default() }).await.unwrap();
    assert!(page.items.iter().all(|i| i.image.is_none()) && page.items[0].has_image && !page.items[1].has_image);
    // An item that is replaced without an image has no thumbnail.
    fill(index.as_ref(), vec![item("a", &[1.0, 0.0], json!({}))]).await;
    let plain = index.get("a").await.unwrap().unwrap();
    assert_eq!((plain.image, plain.has_image, plain.hash), (None, false, None));
    assert_eq!(index.get("c").await.unwrap().unwrap().image, Some(png));
}

pub(crate) async fn samples_are_spread(backend: &dyn Backend) {
    let index = backend.open(&encoder(8)).await.unwrap();
    assert!(index.sample(10).await.unwrap().is_empty());
    fill(index.as_ref(), crowd(500, 8, 6)).await;
    let sample = index.sample(50).await.unwrap();
    assert!((25..=100).contains(&sample.len()), "{}", sample.len());
    let numbers: Vec<usize> = sample.iter().map(|i| i.id.parse().unwrap()).collect();
    for part in 0..5 {
        let here = numbers.iter().filter(|n| **n / 100 == part).count();
        assert!(here * 20 >= numbers.len(), "{here} of {} are from {part}00 on", numbers.len());
    }
    assert!(sample.iter().all(|i| i.vector.len() == 8));
    assert_eq!(index.sample(50).await.unwrap(), sample);
    assert_eq!(index.sample(5000).await.unwrap().len(), 500);
}

/// Share of the exact hits that the approximate search finds.
pub(crate) async fn recall(index: &dyn Index, queries: &[Vec<f32>], conditions: serde_json::Value) -> f64 {
    let (mut found, mut wanted) = (0, 0);
    for vector in queries {
        let near = Query { filter: filter(conditions.clone()), ..query(vector, 10) };
        let exact = search(index, Query { exact: true, ..near.clone() }).await;
        let near = search(index, near).await;
        assert_eq!(near.len(), exact.len());
        assert!(near.windows(2).all(|w| w[0].score >= w[1].score));
        wanted += exact.len();
        // Every hit has the exact score, up to rounding.
        let same = |hit: &macrl_serve::index::Hit| exact.iter().find(|e| e.id == hit.id);
        for hit in &near {
            if let Some(exact) = same(hit) {
                assert!((exact.score - hit.score).abs() < 1e-5, "{exact:?} {hit:?}");
                found += 1;
            }
        }
    }
    found as f64 / wanted as f64
}

pub(crate) async fn approximate_searches_agree_with_exact_ones(backend: &dyn Backend) {
    let index = backend.open(&encoder(32)).await.unwrap();
    let mut crowd = crowd(3050, 32, 7);
    let queries: Vec<Vec<f32>> = crowd.drain(3000..).map(|item| item.vector).collect();
    let some = crowd[17].vector.clone();
    fill(index.as_ref(), crowd).await;
    settled(index.as_ref()).await;
    for conditions in [
        json!({}),
        // Filters that pass more and fewer items than are compared exactly.
        json!({ "rare": false }),
        json!({ "n": { "lt": 1500 } }),
        json!({ "rare": true }),
    ] {
        let recall = recall(index.as_ref(), &queries, conditions.clone()).await;
        assert!(recall >= 0.98, "recall {recall} with {conditions}");
    }
    // An item is its own nearest neighbour, unless it is left out.
    let hits = search(index.as_ref(), query(&some, 5)).await;
    assert_eq!(hits[0].id, "17");
    let without = Query { except: Some("17".into()), ..query(&some, 5) };
    assert_eq!(ids(&search(index.as_ref(), without).await)[..4], ids(&hits)[1..]);
}

pub(crate) async fn changes_after_the_graph_was_built_are_seen(backend: &dyn Backend) {
    let index = backend.open(&encoder(16)).await.unwrap();
    let mut crowd = crowd(2630, 16, 9);
    // Half of the items change or are deleted, one at a time at first.
    let moved: Vec<Vec<f32>> = crowd.drain(2000..).map(|item| item.vector).collect();
    let queries = &moved[600..];
    fill(index.as_ref(), crowd).await;
    settled(index.as_ref()).await;
    for (i, vector) in moved[..20].iter().enumerate() {
        fill(index.as_ref(), vec![item(&i.to_string(), vector, json!({}))]).await;
        assert_eq!(search(index.as_ref(), query(vector, 1)).await[0].id, i.to_string());
    }
    let all: Vec<Item> = (20..600).map(|i| item(&i.to_string(), &moved[i], json!({}))).collect();
    fill(index.as_ref(), all).await;
    for i in 600..1000 {
        index.delete(&i.to_string()).await.unwrap();
    }
    let found = recall(index.as_ref(), queries, json!({})).await;
    assert!(found >= 0.98, "recall {found}");
    for vector in queries {
        let hits = search(index.as_ref(), query(vector, 100)).await;
        assert!(hits.iter().all(|h| !(600..1000).contains(&h.id.parse::<usize>().unwrap())));
        let distinct: std::collections::HashSet<&str> = ids(&hits).into_iter().collect();
        assert_eq!(distinct.len(), 100);
    }
    assert_eq!(index.status().await.unwrap().items, 1600);
}

pub(crate) async fn concurrent_changes_are_all_applied(backend: &dyn Backend) {
    let index = backend.open(&encoder(4)).await.unwrap();
    let tasks = (0..8u64).map(|task| {
        let index = index.clone();
        tokio::spawn(async move {
            let mut noise = Noise(task);
            // The expected items of this task.
            let mut expected = std::collections::BTreeMap::new();
            for step in 0..40 {
                let id = format!("{task}-{}", noise.integer(10));
                if noise.integer(3) == 0 {
                    let there = index.delete(&id).await.unwrap();
                    assert_eq!(there, expected.remove(&id).is_some());
                } else {
                    let new = item(&id, &noise.vector(4), json!({ "step": step }));
                    let outcome = index.put(&encoder(4), vec![new.clone()]).await.unwrap();
                    assert_eq!(outcome, [Ok(expected.insert(id, new).is_none())]);
                }
                // A concurrent search sees complete items.
                for hit in search(index.as_ref(), query(&noise.vector(4), 3)).await {
                    assert!(hit.metadata.to_map().contains_key("step"));
                }
            }
            expected
        })
    });
    let mut expected = std::collections::BTreeMap::new();
    for task in tasks.collect::<Vec<_>>() {
        expected.extend(task.await.unwrap());
    }
    assert_eq!(index.status().await.unwrap().items, expected.len());
    for (id, item) in expected {
        assert_eq!(index.get(&id).await.unwrap(), Some(item));
    }
}

pub(crate) async fn all_items_are_there_after_reopening(backend: &dyn Backend) {
    if !backend.is_persistent() {
        return;
    }
    let index = backend.open(&encoder(16)).await.unwrap();
    let mut items = crowd(1010, 16, 12);
    let queries: Vec<Vec<f32>> = items.drain(1000..).map(|item| item.vector).collect();
    fill(index.as_ref(), items.clone()).await;
    fill(index.as_ref(), vec![item("5", &items[6].vector, json!({ "again": true }))]).await;
    index.delete("7").await.unwrap();
    let page = |vectors| ListQuery { limit: 5000, vectors, ..ListQuery::default() };
    let before = index.list(page(true)).await.unwrap();
    let ask = |vector: &Vec<f32>| Query { exact: true, ..query(vector, 20) };
    let hits = index.search(queries.iter().map(ask).collect()).await.unwrap();
    drop(index);
    let index = backend.open(&encoder(16)).await.unwrap();
    assert_eq!(index.list(page(true)).await.unwrap(), before);
    let again = index.search(queries.iter().map(ask).collect()).await.unwrap();
    for (hits, again) in hits.iter().zip(&again) {
        assert_eq!(ids(hits), ids(again));
    }
    settled(index.as_ref()).await;
    let found = recall(index.as_ref(), &queries, json!({})).await;
    assert!(found >= 0.98, "recall {found}");
}
