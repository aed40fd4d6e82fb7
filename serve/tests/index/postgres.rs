//! Cases that only PostgreSQL has: replicas, lost connections, values that its types cannot hold.

use std::sync::Arc;
use std::time::Duration;

use macrl_serve::index::postgres::Address;
use macrl_serve::index::{EncoderIdentity, Index, IndexError, Item, ListQuery, OpenOptions, PostgresIndex, Query};
use serde_json::json;

use crate::backends::*;
use crate::server::{self, sql};

fn open(database: &Postgres, encoder: &EncoderIdentity) -> Result<PostgresIndex, IndexError> {
    PostgresIndex::open(&database.address(), encoder, &options())
}

/// A new database; `None` if there is no server to test with.
fn database() -> Option<Postgres> {
    Some(Postgres::new()).filter(Backend::is_available)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_that_jsonb_would_change_comes_back_unchanged() {
    let Some(database) = database() else { return };
    let index = open(&database, &encoder(2)).unwrap();
    let odd = json!({
        "z": 1.0, "a": 1e15, "nul\0": "a\0b", "one": "\u{1}", "control": "\u{7f}\u{2}\n", "empty": "", "": "no name",
        "small": 5e-324, "large": 1.7976931348623157e308, "minus": -0.0, "whole": u64::MAX, "least": i64::MIN,
        "deep": [[[{ "\0": [null, true, "\u{10ffff}"] }]]], "quote'\"\\": "';--", "$1": "%s", "{}": {}, "[]": []
    });
    let id = "ö '\"\\ %_/?#";
    fill(&index, vec![item(id, &[1.0, 0.0], odd.clone()), item("b", &[0.0, 1.0], json!({}))]).await;
    let back = index.get(id).await.unwrap().unwrap().metadata;
    // Byte for byte: the order of the keys and the spelling of the numbers.
    assert_eq!(back.as_str(), odd.to_string());
    for (field, value) in map(odd) {
        let narrow = Query { filter: filter(json!({ field.clone(): { "eq": value } })), ..query(&[1.0, 0.0], 9) };
        assert_eq!(ids(&search(&index, narrow).await), [id], "{field}");
    }
    for other in [json!({ "nul\0": "a\u{1}0b" }), json!({ "nul\u{1}0": "a\0b" }), json!({ "one": "\0" })] {
        let narrow = Query { filter: filter(other), ..query(&[1.0, 0.0], 9) };
        assert!(search(&index, narrow).await.is_empty());
    }
    for (range, expected) in [
        (json!({ "whole": { "gte": 1.8446744073709552e19 } }), 0),
        (json!({ "whole": { "lt": 1.8446744073709552e19, "gt": 18446744073709551614u64 } }), 1),
        (json!({ "small": { "gt": 0, "lte": 5e-324 } }), 1),
        (json!({ "large": { "gte": 1.7976931348623157e308 } }), 1),
        (json!({ "minus": { "eq": 0 } }), 1),
        (json!({ "z": { "in": (0..100).collect::<Vec<_>>() } }), 1),
    ] {
        let narrow = Query { filter: filter(range.clone()), ..query(&[1.0, 0.0], 9) };
        assert_eq!(search(&index, narrow).await.len(), expected, "{range}");
    }
}

/// With the commands of docs/backup.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_is_restored_into_another_database() {
    let (Some(database), Some(other)) = (database(), database()) else { return };
    let (from, to) = (database.url.clone().unwrap(), other.url.clone().unwrap());
    let index = open(&database, &encoder(16)).unwrap();
    let items: Vec<Item> = crowd(700, 16, 81)
        .into_iter()
        .map(|item| Item { image: Some(Arc::from(item.id.as_bytes())), has_image: true, hash: Some([3; 32]), ..item })
        .collect();
    fill(&index, items.clone()).await;
    settled(&index).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("photos.dump");
    let file = file.to_str().unwrap();
    server::tool("pg_dump", &["--format=custom", "--file", file, &from]);
    // Items that are added after the dump are not in it.
    index.delete("5").await.unwrap();
    server::tool("pg_restore", &["--no-owner", "--dbname", &to, file]);
    let restored = open(&other, &encoder(16)).unwrap();
    settled(&restored).await;
    for item in &items {
        assert_eq!(restored.get(&item.id).await.unwrap().as_ref(), Some(item));
        assert_eq!(search(&restored, query(&item.vector, 1)).await[0].id, item.id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_no_item_can_have_are_not_found() {
    let Some(database) = database() else { return };
    let index = open(&database, &encoder(2)).unwrap();
    fill(&index, vec![item("a", &[1.0, 0.0], json!({})), item("ab", &[0.0, 1.0], json!({}))]).await;
    assert_eq!(index.get("a\0").await.unwrap(), None);
    assert!(!index.delete("a\0").await.unwrap());
    assert_eq!(index.hashes(&["a\0".into()]).await.unwrap(), [None]);
    let after = index.list(ListQuery { cursor: Some("a\0".into()), limit: 9, ..ListQuery::default() }).await.unwrap();
    assert_eq!(after.items.iter().map(|i| &*i.id).collect::<Vec<_>>(), ["ab"]);
    let without = Query { except: Some("\0".into()), ..query(&[1.0, 0.0], 9) };
    assert_eq!(search(&index, without).await.len(), 2);
    let items = vec![item("\0", &[1.0, 0.0], json!({})), item("c", &[1.0, 0.0], json!({}))];
    let outcomes = index.put(&encoder(2), items).await.unwrap();
    assert!(outcomes[0].is_err() && outcomes[1] == Ok(true), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_create_the_tables_once() {
    let Some(database) = database() else { return };
    let database = Arc::new(database);
    let start = |_| {
        let database = database.clone();
        std::thread::spawn(move || open(&database, &encoder(3)))
    };
    let replicas: Vec<_> = (0..6).map(start).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect();
    let replicas: Vec<PostgresIndex> = replicas.into_iter().map(Result::unwrap).collect();
    fill(&replicas[0], vec![item("a", &[1.0, 0.0, 0.0], json!({}))]).await;
    for replica in &replicas {
        assert!(replica.get("a").await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_another_encoder_is_refused_for_reading_and_writing() {
    let Some(database) = database() else { return };
    let (old, new) = (open(&database, &encoder(2)).unwrap(), open(&database, &encoder(2)).unwrap());
    for dim in [2, 3] {
        let other = EncoderIdentity { sha256: format!("new {dim}"), dim };
        new.adopt(&other).await.unwrap();
        let vector = vec![1.0; dim];
        let one = item("a", &vector, json!({}));
        assert_eq!(new.put(&other, vec![one]).await.unwrap(), [Ok(true)]);
        let refused = IndexError::EncoderMismatch { holds: other, items: 1, given: encoder(2) };
        let put = old.put(&encoder(2), vec![item("b", &[1.0, 0.0], json!({}))]).await;
        assert_eq!(put, Err(refused.clone()));
        for exact in [false, true] {
            let near = Query { exact, ..query(&[1.0, 0.0], 3) };
            assert_eq!(old.search(vec![near]).await, Err(refused.clone()));
        }
        assert!(new.delete("a").await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_of_many_items_use_the_graph() {
    let Some(database) = database() else { return };
    let url = database.url.clone().unwrap();
    let index = open(&database, &encoder(64)).unwrap();
    fill(&index, crowd(3000, 64, 3)).await;
    settled(&index).await;
    drop(index);
    // For so few items PostgreSQL plans an exact comparison.
    let address = format!("{url}?pool_size=1&options=-cenable_seqscan%3Doff").parse().unwrap();
    let index = PostgresIndex::open(&address, &encoder(64), &options()).unwrap();
    settled(&index).await;
    let scans = || -> usize {
        let asked = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'macrl_items_graph'";
        sql(&url, asked).pop().unwrap().parse().unwrap()
    };
    let vector = clouds(1, 64, 4).remove(0);
    for (conditions, exact, expected) in [
        (json!({}), false, true),
        (json!({}), true, false),
        (json!({ "rare": false }), false, true),
        (json!({ "rare": true }), false, false),
    ] {
        let before = scans();
        let near = Query { filter: filter(conditions.clone()), exact, ..query(&vector, 10) };
        for _ in 0..20 {
            assert_eq!(search(&index, near.clone()).await.len(), 10);
        }
        // A connection updates its statistics at most once a second, at the end of a statement.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        index.get("17").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(scans() > before, expected, "{conditions}, exact: {exact}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graph_whose_building_was_interrupted_is_built_anew() {
    let Some(database) = database() else { return };
    let index = open(&database, &encoder(8)).unwrap();
    fill(&index, crowd(EXACT_UP_TO + 100, 8, 3)).await;
    settled(&index).await;
    let broken = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'macrl_items_graph'::regclass";
    sql(database.url.as_ref().unwrap(), broken);
    assert_eq!(index.status().await.unwrap().approximate, None);
    // The second look waits for a change.
    fill(&index, vec![item("one more", &[1.0; 8], json!({}))]).await;
    settled(&index).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_server_closes_are_reopened() {
    let Some(database) = database() else { return };
    let index = open(&database, &encoder(2)).unwrap();
    fill(&index, vec![item("a", &[1.0, 0.0], json!({}))]).await;
    let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for round in 0..5 {
        assert_ne!(sql(database.url.as_ref().unwrap(), all), ["0"]);
        // Immediately, with a pool of dead connections.
        assert!(index.get("a").await.unwrap().is_some(), "round {round}");
        let many = (0..20).map(|_| query(&[1.0, 0.0], 1)).collect();
        assert_eq!(index.search(many).await.unwrap().len(), 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_needs_an_index_and_changes_nothing() {
    let Some(database) = database() else { return };
    let Err(IndexError::Open(message)) = PostgresIndex::open_read_only(&database.address()) else { panic!("opened") };
    assert!(message.starts_with("there is no index at postgres://127.0.0.1:"), "{message}");
    let index = open(&database, &encoder(2)).unwrap();
    fill(&index, vec![item("a", &[1.0, 0.0], json!({}))]).await;
    let (reader, holds) = PostgresIndex::open_read_only(&database.address()).unwrap();
    assert_eq!(holds, encoder(2));
    assert!(reader.get("a").await.unwrap().is_some());
    for refused in [
        reader.delete("a").await.map(drop),
        reader.put(&encoder(2), Vec::new()).await.map(drop),
        reader.adopt(&encoder(3)).await,
    ] {
        assert!(matches!(refused, Err(IndexError::Unavailable(_))), "{refused:?}");
    }
    sql(database.url.as_ref().unwrap(), "UPDATE macrl_index SET format = 99");
    for opened in [open(&database, &encoder(2)).err(), PostgresIndex::open_read_only(&database.address()).err()] {
        let Some(IndexError::Open(message)) = opened else { panic!("opened") };
        assert!(message.contains("has format 99, this program reads format 1"), "{message}");
    }
}

#[test]
fn errors_of_opening_are_one_line_without_the_password() {
    if !server::is_there() {
        return;
    }
    let right = server::shared().url("postgres");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = silent.local_addr().unwrap();
    for (url, hint) in [
        (server::shared().url("nowhere"), "\"nowhere\" does not exist"),
        (right.replace("macrl:", "macrl:not-"), "password authentication failed"),
        (format!("postgres://macrl:{}@{closed}/x", server::PASSWORD), "Connection refused"),
        (format!("postgres://macrl:{}@{mute}/x?connect_timeout=1", server::PASSWORD), "does not answer"),
        (format!("{right}?sslmode=require"), "TLS"),
        (format!("{right}?sslmode=verify-full&sslrootcert=/nowhere"), "sslrootcert /nowhere"),
    ] {
        let address: Address = url.parse().unwrap();
        let Some(IndexError::Open(message)) = PostgresIndex::open(&address, &encoder(2), &options()).err() else {
            panic!("{address} was opened")
        };
        assert!(message.starts_with("cannot open postgres://127.0.0.1:") && message.contains(hint), "{message}");
        assert!(!message.contains(server::PASSWORD) && !message.contains('\n'), "{message}");
    }
}

#[test]
fn a_server_that_starts_later_is_waited_for() {
    if !server::is_there() {
        return;
    }
    let server = server::Server::start("");
    let url = server.database();
    server.kill();
    let address: Address = url.parse().unwrap();
    let patient = OpenOptions { patience: Duration::from_secs(30), ..options() };
    let waiting = std::thread::spawn(move || PostgresIndex::open(&address, &encoder(2), &patient).map(drop));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished());
    server.resume();
    waiting.join().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_with_common_items_do_not_conflict() {
    let Some(database) = database() else { return };
    let replicas = [open(&database, &encoder(2)).unwrap(), open(&database, &encoder(2)).unwrap()].map(Arc::new);
    let tasks = (0..8usize).map(|task| {
        let index = replicas[task % 2].clone();
        tokio::spawn(async move {
            let mut noise = Noise(task as u64);
            for _ in 0..15 {
                let one = |noise: &mut Noise| -> Item {
                    let picture: Arc<[u8]> = vec![task as u8; 10].into();
                    let id = noise.integer(30).to_string();
                    Item { image: Some(picture), has_image: true, ..item(&id, &[1.0, 0.0], json!({ "task": task })) }
                };
                let batch = (0..20).map(|_| one(&mut noise)).collect();
                assert!(index.put(&encoder(2), batch).await.unwrap().iter().all(Result::is_ok));
                index.delete(&noise.integer(30).to_string()).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    // All parts of an item come from the same writer.
    for id in (0..30).map(|i| i.to_string()) {
        let Some(item) = replicas[0].get(&id).await.unwrap() else { continue };
        assert_eq!(item.metadata.to_map()["task"], json!(item.image.unwrap()[0]));
    }
    let orphans = "SELECT count(*) FROM macrl_pictures WHERE id NOT IN (SELECT id FROM macrl_items WHERE pictured)";
    assert_eq!(sql(database.url.as_ref().unwrap(), orphans), ["0"]);
}
