//! Tests of an index in a folder: its lock, the graph's file, and its limits.

use std::fs;
use std::path::Path;

use macrl_serve::index::{EmbeddedIndex, EncoderIdentity, Index, IndexError, Item, OpenOptions, Query};
use serde_json::json;

use crate::backends::*;

#[tokio::test]
async fn a_second_process_is_told_which_process_has_the_folder() {
    let backend = Folder::new();
    let index = backend.open(&encoder(2)).await.unwrap();
    fill(index.as_ref(), vec![item("a", &[1.0, 0.0], json!({}))]).await;
    let Some(IndexError::Open(message)) = backend.open(&encoder(2)).await.err() else { panic!("opened twice") };
    let expected = format!("is being written by another process (pid {})", std::process::id());
    assert!(message.contains(&expected) && !message.contains('\n'), "{message}");
    // A second process may read, but not change the index.
    let (reader, holds) = EmbeddedIndex::open_read_only(backend.dir.path()).unwrap();
    assert_eq!(holds, encoder(2));
    assert!(reader.get("a").await.unwrap().is_some());
    assert!(matches!(reader.delete("a").await, Err(IndexError::Unavailable(_))));
    drop(index);
    assert!(backend.open(&encoder(2)).await.is_ok());
}

#[tokio::test]
async fn only_the_owner_can_read_an_index_and_its_backup() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (place, copy) = (dir.path().join("index"), dir.path().join("copy"));
    let modes = |folder: &Path| {
        let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap());
        files.map(|f| (f.file_name(), f.metadata().unwrap().permissions().mode() & 0o777)).collect::<Vec<_>>()
    };
    let index = EmbeddedIndex::open(&place, &encoder(2), &options()).unwrap();
    fill(&index, vec![item("a", &[1.0, 0.0], json!({}))]).await;
    EmbeddedIndex::back_up(&place, &copy).unwrap();
    let while_open = modes(&place);
    assert!(while_open.len() >= 3, "the database, its log and the lock: {while_open:?}");
    for (name, mode) in while_open.into_iter().chain(modes(&copy)) {
        assert_eq!(mode, 0o600, "{name:?}");
    }
    drop(index);
    // Permissions that an operator has set are kept.
    fs::set_permissions(place.join("items.sqlite"), fs::Permissions::from_mode(0o640)).unwrap();
    drop(EmbeddedIndex::open(&place, &encoder(2), &options()).unwrap());
    assert!(modes(&place).contains(&("items.sqlite".into(), 0o640)));
}

#[tokio::test]
async fn an_index_that_takes_more_memory_than_it_may_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(dir.path(), &encoder(2), &options()).unwrap();
    // Fields of their own: about 1,100 bytes each, of which the texts are 20.
    let fields = |i: usize| (0..100).map(|f| (format!("field {i} {f}"), json!(1))).collect::<serde_json::Map<_, _>>();
    fill(&index, (0..20).map(|i| item(&i.to_string(), &[1.0, i as f32], fields(i).into())).collect()).await;
    drop(index);
    let open = |max_bytes| EmbeddedIndex::open(dir.path(), &encoder(2), &OpenOptions { max_bytes, ..options() });
    let Some(IndexError::Open(message)) = open(2_000_000).err() else { panic!("opened") };
    assert!(message.contains("raise --max-index") && !message.contains('\n'), "{message}");
    assert!(open(3_000_000).is_ok());
}

#[tokio::test]
async fn reading_does_not_create_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nothing");
    let Err(IndexError::Open(message)) = EmbeddedIndex::open_read_only(&nowhere) else { panic!("opened") };
    assert!(message.starts_with(&format!("there is no index at {}", nowhere.display())), "{message}");
    assert!(!nowhere.exists());
    fs::write(&nowhere, "a file").unwrap();
    let refused = EmbeddedIndex::open(&nowhere, &encoder(2), &options()).err();
    assert!(matches!(refused, Some(IndexError::Open(_))), "{refused:?}");
}

#[tokio::test]
async fn a_nearly_full_index_takes_replacements_and_refuses_other_items() {
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

/// Opens the index and compares its answers with the expected ones.
async fn answers(dir: &Path, queries: &[Vec<f32>], expected: &[Vec<String>]) {
    let index = EmbeddedIndex::open(dir, &encoder(16), &options()).unwrap();
    // At once, while the graph's file is being read, and when the graph is complete again.
    for _ in 0..2 {
        let mut found = 0;
        for (vector, expected) in queries.iter().zip(expected) {
            let exact = search(&index, Query { exact: true, ..query(vector, 10) }).await;
            assert_eq!(&ids(&exact), expected);
            let near = search(&index, query(vector, 10)).await;
            found += near.iter().filter(|hit| expected.contains(&hit.id)).count();
        }
        // Over all queries together: in a graph built in another order, a single query may miss two of its ten hits.
        assert!(found * 10 >= queries.len() * 10 * 9, "{found} of {}", queries.len() * 10);
        settled(&index).await;
    }
}

#[tokio::test]
async fn a_damaged_graph_file_is_rebuilt() {
    let backend = Folder::new();
    let dir = backend.dir.path();
    let index = backend.open(&encoder(16)).await.unwrap();
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

/// Puts back a copy of the database alone, without the graph's file.
fn put_back(dir: &Path, copy: &[u8]) {
    for journal in ["items.sqlite-wal", "items.sqlite-shm"] {
        let _ = fs::remove_file(dir.join(journal));
    }
    fs::write(dir.join("items.sqlite"), copy).unwrap();
}

/// Every one of these items is found by its own vector.
async fn are_found(index: &dyn Index, items: &[Item], what: &str) {
    for one in items {
        assert_eq!(search(index, query(&one.vector, 1)).await[0].id, one.id, "{what}");
    }
}

/// Items `{name}0`, `{name}1`, ... with random vectors.
fn named(name: &str, n: usize, seed: u64) -> Vec<Item> {
    let mut noise = Noise(seed);
    (0..n).map(|i| item(&format!("{name}{i}"), &noise.vector(16), json!({}))).collect()
}

#[tokio::test]
async fn an_old_graph_file_hides_no_item() {
    // Numbers of items when the copy is made, written after it, and written after it was put back: around the limit of
    // exact search, and so that writes have the numbers of earlier ones.
    for (kept, lost, new) in
        [(700, 300, 300), (700, 300, 250), (500, 300, 200), (500, 300, 350), (590, 400, 10), (700, 0, 300)]
    {
        let what = format!("{kept} kept, {lost} lost, {new} new");
        let backend = Folder::new();
        let dir = backend.dir.path();
        let index = backend.open(&encoder(16)).await.unwrap();
        let old = named("old", kept, 31);
        fill(index.as_ref(), old.clone()).await;
        drop(index);
        let copy = fs::read(dir.join("items.sqlite")).unwrap();
        let index = backend.open(&encoder(16)).await.unwrap();
        // Items deleted after the copy are back after its restoration.
        for i in 0..20 {
            index.delete(&format!("old{i}")).await.unwrap();
        }
        if lost > 0 {
            fill(index.as_ref(), named("lost", lost, 32)).await;
        }
        settled(index.as_ref()).await;
        drop(index);
        assert!(dir.join("graph.usearch").exists());
        put_back(dir, &copy);
        // At once, or by another process.
        let index = backend.open(&encoder(16)).await.unwrap();
        let fresh = named("new", new, 33);
        fill(index.as_ref(), fresh.clone()).await;
        are_found(index.as_ref(), &fresh, &what).await;
        drop(index);
        let index = backend.open(&encoder(16)).await.unwrap();
        are_found(index.as_ref(), &fresh, &what).await;
        if kept + new > EXACT_UP_TO {
            settled(index.as_ref()).await;
        }
        are_found(index.as_ref(), &fresh, &what).await;
        are_found(index.as_ref(), &old, &what).await;
        drop(index);
        // A graph that is not needed has no file.
        assert_eq!(dir.join("graph.usearch").exists(), kept + new > EXACT_UP_TO, "{what}");
    }
}

#[tokio::test]
async fn a_folder_that_holds_other_things_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let photos = parent.path().join("photos");
    fs::create_dir(&photos).unwrap();
    let open = || EmbeddedIndex::open(&photos, &encoder(2), &options());
    fs::write(photos.join("IMG_1.jpg"), "a photograph").unwrap();
    fs::create_dir(photos.join("2019")).unwrap();
    let Err(IndexError::Open(message)) = open() else { panic!("opened") };
    let expected = format!("{} is no index and holds other things (2019 and 1 more)", photos.display());
    assert!(message.starts_with(&expected) && !message.contains('\n'), "{message}");
    assert_eq!(fs::read_dir(&photos).unwrap().count(), 2);
    // A database of another program with our file's name is not changed.
    fs::remove_dir(photos.join("2019")).unwrap();
    fs::remove_file(photos.join("IMG_1.jpg")).unwrap();
    let file = photos.join("items.sqlite");
    let foreign = rusqlite::Connection::open(&file).unwrap();
    foreign.execute_batch("CREATE TABLE items (name TEXT); INSERT INTO items VALUES ('theirs')").unwrap();
    drop(foreign);
    let before = fs::read(&file).unwrap();
    for refused in [open().err(), EmbeddedIndex::open_read_only(&photos).err()] {
        let Some(IndexError::Open(message)) = refused else { panic!("opened") };
        assert!(message.contains("items.sqlite is no index of this program: it has the table `items`"), "{message}");
    }
    assert_eq!(fs::read(&file).unwrap(), before);
    // Empty folders, unfinished indexes and fresh file systems are accepted.  Files that the owner adds later are kept.
    fs::remove_file(&file).unwrap();
    fs::create_dir(photos.join("lost+found")).unwrap();
    fs::write(&file, "").unwrap();
    drop(open().unwrap());
    fs::write(photos.join("note.txt"), "mine").unwrap();
    drop(open().unwrap());
    assert_eq!(fs::read_to_string(photos.join("note.txt")).unwrap(), "mine");
}

#[tokio::test]
async fn an_index_of_a_later_format_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(EmbeddedIndex::open(dir.path(), &encoder(2), &options()).unwrap());
    let file = dir.path().join("items.sqlite");
    let connection = rusqlite::Connection::open(&file).unwrap();
    connection.execute("UPDATE meta SET value = '2' WHERE key = 'format'", []).unwrap();
    drop(connection);
    let Err(IndexError::Open(message)) = EmbeddedIndex::open(dir.path(), &encoder(2), &options()) else {
        panic!("opened")
    };
    let expected = "items.sqlite has format 2, this program reads format 1: use a newer version of it";
    assert!(message.ends_with(expected), "{message}");
}

/// Bytes of the database and its journal.
fn size(dir: &Path) -> u64 {
    let length = |name: &str| fs::metadata(dir.join(name)).map_or(0, |file| file.len());
    length("items.sqlite") + length("items.sqlite-wal")
}

async fn shrinks_below(dir: &Path, bytes: u64) {
    let since = std::time::Instant::now();
    while size(dir) > bytes {
        assert!(since.elapsed().as_secs() < 60, "{} bytes, expected at most {bytes}", size(dir));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn disk_space_of_deleted_items_is_given_back() {
    for old in [false, true] {
        let backend = Folder::new();
        let dir = backend.dir.path();
        if old {
            // Like indexes of early versions, without auto_vacuum.
            drop(backend.open(&encoder(64)).await.unwrap());
            let connection = rusqlite::Connection::open(dir.join("items.sqlite")).unwrap();
            connection.execute_batch("PRAGMA journal_mode = delete; PRAGMA auto_vacuum = none; VACUUM").unwrap();
        }
        let index = backend.open(&encoder(64)).await.unwrap();
        let picture: std::sync::Arc<[u8]> = vec![7; 3000].into();
        let with = |i: usize| Item {
            image: Some(picture.clone()),
            has_image: true,
            ..item(&i.to_string(), &Noise(i as u64).vector(64), json!({ "n": i }))
        };
        fill(index.as_ref(), (0..2000).map(with).collect()).await;
        let full = size(dir);
        assert!(full > 7 << 20, "{full}");
        remove(index.as_ref(), (0..1900).map(|i| i.to_string())).await;
        // While the index is open, and after it was closed.
        shrinks_below(dir, full / 5).await;
        for i in 1900..2000 {
            assert_eq!(index.get(&i.to_string()).await.unwrap(), Some(with(i)), "old {old}");
        }
        fill(index.as_ref(), (0..1000).map(with).collect()).await;
        remove(index.as_ref(), (0..1000).map(|i| i.to_string())).await;
        drop(index);
        assert!(size(dir) < full / 5, "old {old}: {} of {full}", size(dir));
        let index = backend.open(&encoder(64)).await.unwrap();
        assert_eq!(index.status().await.unwrap().items, 100);
    }
}

#[tokio::test]
async fn a_backup_is_made_beside_the_writer_and_is_an_index() {
    let backend = Folder::new();
    let index = backend.open(&encoder(16)).await.unwrap();
    let items = named("i", 300, 51);
    fill(index.as_ref(), items.clone()).await;
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("new/copy");
    assert_eq!(EmbeddedIndex::back_up(backend.dir.path(), &copy).unwrap(), 300);
    fill(index.as_ref(), named("later", 10, 52)).await;
    let copied = EmbeddedIndex::open(&copy, &encoder(16), &options()).unwrap();
    assert_eq!(copied.status().await.unwrap().items, 300);
    are_found(&copied, &items, "copy").await;
    drop(copied);
    // Nothing is overwritten.
    let Err(IndexError::Open(message)) = EmbeddedIndex::back_up(backend.dir.path(), &copy) else { panic!("copied") };
    assert!(message.contains("there is an index already"), "{message}");
    fs::write(copies.path().join("photo.jpg"), "mine").unwrap();
    let refused = EmbeddedIndex::back_up(backend.dir.path(), copies.path()).err();
    assert!(refused.unwrap().to_string().contains("holds other things"));
    // The remains of a killed backup do not block its target.  They are removed, unless an early version left them.
    let interrupted = copies.path().join("interrupted");
    fs::create_dir(&interrupted).unwrap();
    let leftovers = [".items.sqlite.tmp-1-0", "items.tmp"].map(|name| interrupted.join(name));
    leftovers.iter().for_each(|file| fs::write(file, "half of a copy").unwrap());
    assert_eq!(EmbeddedIndex::back_up(backend.dir.path(), &interrupted).unwrap(), 310);
    assert_eq!(leftovers.map(|file| file.exists()), [false, true]);
    let nothing = EmbeddedIndex::back_up(&copies.path().join("none"), &copies.path().join("other")).err();
    assert!(nothing.unwrap().to_string().starts_with("there is no index at"));
    assert!(!copies.path().join("other").exists());
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
    let other = EncoderIdentity { sha256: "one".into(), dim: 2 };
    let Err(IndexError::Open(message)) = EmbeddedIndex::open(dir.path(), &other, &options()) else { panic!("opened") };
    assert!(message.contains("items.sqlite is damaged"), "{message}");
}
