//! What only a folder can be asked for: its lock, its cache of the graph, its bounds.

use std::fs;
use std::path::Path;

use macrl_serve::index::{EmbeddedIndex, Encoder, Index, IndexError, OpenOptions, Query};
use serde_json::json;

use crate::place::*;

#[tokio::test]
async fn a_second_process_is_told_who_has_the_folder() {
    let place = Folder::new();
    let index = place.open(&encoder(2)).await.unwrap();
    fill(index.as_ref(), vec![item("a", &[1.0, 0.0], json!({}))]).await;
    let Some(IndexError::Open(message)) = place.open(&encoder(2)).await.err() else { panic!("opened twice") };
    let expected = format!("is being written by another process (pid {})", std::process::id());
    assert!(message.contains(&expected) && !message.contains('\n'), "{message}");
    // Reading beside it is allowed; changing is not.
    let (reader, holds) = EmbeddedIndex::open_to_read(place.dir.path()).unwrap();
    assert_eq!(holds, encoder(2));
    assert!(reader.get("a").await.unwrap().is_some());
    assert!(matches!(reader.delete("a").await, Err(IndexError::Unavailable(_))));
    drop(index);
    assert!(place.open(&encoder(2)).await.is_ok());
}

#[tokio::test]
async fn an_index_that_is_not_there_is_not_made_by_reading() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nothing");
    let Err(IndexError::Open(message)) = EmbeddedIndex::open_to_read(&nowhere) else { panic!("opened") };
    assert!(message.starts_with(&format!("there is no index at {}", nowhere.display())), "{message}");
    assert!(!nowhere.exists());
    fs::write(&nowhere, "a file").unwrap();
    let refused = EmbeddedIndex::open(&nowhere, &encoder(2), &options()).err();
    assert!(matches!(refused, Some(IndexError::Open(_))), "{refused:?}");
}

#[tokio::test]
async fn a_nearly_full_index_takes_replacements_and_says_which_items_are_left_out() {
    let one = |id: &str| item(id, &[1.0, 0.0], json!({ "t": "x".repeat(100) }));
    let room = EmbeddedIndex::in_memory(encoder(2), &options()).unwrap();
    // Three items fit, a fourth does not: found by trying.
    let mut max_bytes = 100;
    let index = loop {
        let index = EmbeddedIndex::in_memory(encoder(2), &OpenOptions { max_bytes, ..options() }).unwrap();
        if index.put(&encoder(2), vec![one("a"), one("b"), one("c")]).await.unwrap().iter().all(Result::is_ok) {
            break index;
        }
        max_bytes += 10;
    };
    drop(room);
    let full = Err(IndexError::Full { limit: max_bytes });
    let outcomes = index.put(&encoder(2), vec![one("d"), one("b"), one("e"), one("a")]).await.unwrap();
    assert_eq!(outcomes, [full.clone(), Ok(false), full.clone(), Ok(false)]);
    assert!(index.delete("c").await.unwrap());
    assert_eq!(index.put(&encoder(2), vec![one("d"), one("e")]).await.unwrap(), [Ok(true), full]);
    // Smaller ones fit where larger ones were.
    let small = |id: &str| item(id, &[1.0, 0.0], json!({}));
    assert_eq!(index.put(&encoder(2), vec![small("a"), small("b")]).await.unwrap(), [Ok(false), Ok(false)]);
}

/// Opens, and says whether the graph was there at once or had to be built.
async fn answers(dir: &Path, queries: &[Vec<f32>], expected: &[Vec<String>]) {
    let index = EmbeddedIndex::open(dir, &encoder(16), &options()).unwrap();
    // At once, while the cache is being looked at, and when the graph is whole again.
    for _ in 0..2 {
        let mut found = 0;
        for (vector, expected) in queries.iter().zip(expected) {
            let exact = search(&index, Query { exact: true, ..query(vector, 10) }).await;
            assert_eq!(&ids(&exact), expected);
            let near = search(&index, query(vector, 10)).await;
            found += near.iter().filter(|hit| expected.contains(&hit.id)).count();
        }
        // All queries together: one may miss two of its ten in a graph that was built in another order.
        assert!(found * 10 >= queries.len() * 10 * 9, "{found} of {}", queries.len() * 10);
        settled(&index).await;
    }
}

#[tokio::test]
async fn a_torn_or_flipped_cache_is_built_anew() {
    let place = Folder::new();
    let dir = place.dir.path();
    let index = place.open(&encoder(16)).await.unwrap();
    fill(index.as_ref(), crowd(EXACT_UP_TO + 200, 16, 21)).await;
    settled(index.as_ref()).await;
    let queries = clouds(5, 16, 22);
    let exact = queries.iter().map(|v| Query { exact: true, ..query(v, 10) }).collect();
    let hits = index.search(exact).await.unwrap();
    let expected: Vec<Vec<String>> = hits.into_iter().map(|h| h.into_iter().map(|h| h.id).collect()).collect();
    drop(index);
    let cache = dir.join("graph.usearch");
    let whole = fs::read(&cache).unwrap();
    answers(dir, &queries, &expected).await;
    assert_eq!(fs::read(&cache).unwrap(), whole, "a whole cache is used as it is");
    let mut noise = Noise(23);
    for round in 0..50 {
        let at = noise.integer(whole.len());
        let mut damaged = whole.clone();
        if round % 2 == 0 {
            damaged[at] ^= 1 << noise.integer(8);
        } else {
            damaged.truncate(at);
        }
        fs::write(&cache, &damaged).unwrap();
        answers(dir, &queries, &expected).await;
        assert_ne!(fs::read(&cache).unwrap(), damaged, "round {round}, at {at}: the damage stayed");
    }
}

#[tokio::test]
async fn a_cache_of_another_past_is_built_anew() {
    let place = Folder::new();
    let dir = place.dir.path();
    let index = place.open(&encoder(16)).await.unwrap();
    fill(index.as_ref(), crowd(EXACT_UP_TO + 100, 16, 31)).await;
    drop(index);
    // A copy is put back after more was written: its numbers are given out again, to other items.
    let copy = fs::read(dir.join("items.sqlite")).unwrap();
    let index = place.open(&encoder(16)).await.unwrap();
    fill(index.as_ref(), crowd(EXACT_UP_TO + 300, 16, 32)).await;
    settled(index.as_ref()).await;
    drop(index);
    fs::write(dir.join("items.sqlite"), copy).unwrap();
    for journal in ["items.sqlite-wal", "items.sqlite-shm"] {
        let _ = fs::remove_file(dir.join(journal));
    }
    let index = place.open(&encoder(16)).await.unwrap();
    settled(index.as_ref()).await;
    for (i, vector) in clouds(EXACT_UP_TO + 100, 16, 31).iter().enumerate().step_by(50) {
        assert_eq!(search(index.as_ref(), query(vector, 1)).await[0].id, i.to_string());
    }
}

#[test]
fn a_damaged_item_is_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(EmbeddedIndex::open(dir.path(), &encoder(2), &options()).unwrap());
    let file = dir.path().join("items.sqlite");
    let mut bytes = fs::read(&file).unwrap();
    // The header's text, by which SQLite knows its files.
    bytes[0] ^= 1;
    fs::write(&file, bytes).unwrap();
    let other = Encoder { sha256: "one".into(), dim: 2 };
    let Err(IndexError::Open(message)) = EmbeddedIndex::open(dir.path(), &other, &options()) else { panic!("opened") };
    assert!(message.contains("items.sqlite is damaged"), "{message}");
}
