//! `kill -9` at random moments under concurrent upserts and deletes: every acknowledged change is stored, and no change
//! is stored in part.
//!
//! The killed process is this test program again (`child`).  Each of its workers changes its own items, in an order that
//! the parent can replay, and prints a line after each acknowledgement.  After a kill, a worker's items must be those of its
//! acknowledged changes, with or without the one change that was in progress.
//!
//! bench/index_kill.sh runs it with `MACRL_KILL_ROUNDS=100 MACRL_KILL_ITEMS=100000`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use macrl_serve::index::{EmbeddedIndex, Index, Item, OpenOptions, Query};
use serde_json::json;

use crate::backends::*;

const DIM: usize = 192;
const WORKERS: usize = 8;
/// Ids of each worker.
const IDS: usize = 40;
/// Environment variable with the child's folder.
const CHILD: &str = "MACRL_KILL_CHILD";
const OPEN_LIMIT: Duration = Duration::from_secs(2);

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn open(dir: &Path, items: usize) -> EmbeddedIndex {
    // Low enough that the graph is built, extended and saved during the rounds.
    let exact_up_to = (items / 2).min(50_000);
    EmbeddedIndex::open(dir, &encoder(DIM), &OpenOptions { exact_up_to, ..OpenOptions::default() }).unwrap()
}

enum Step {
    Put(Vec<Item>),
    Delete(String),
}

/// Change number `n` of a worker.
fn step(worker: usize, n: usize) -> Step {
    let mut noise = Noise((worker * 1_000_003 + n) as u64);
    noise.integer(2);
    let id = |noise: &mut Noise| format!("w{worker}-{}", noise.integer(IDS));
    match noise.integer(5) {
        0 => Step::Delete(id(&mut noise)),
        1 => Step::Put((0..3).map(|_| version(&id(&mut noise), n)).collect()),
        _ => Step::Put(vec![version(&id(&mut noise), n)]),
    }
}

/// An item whose vector, metadata, image and hash all depend on its version.
fn version(id: &str, n: usize) -> Item {
    let seed = id.bytes().fold(n as u64, |seed, byte| seed * 31 + u64::from(byte));
    let picture: Arc<[u8]> = format!("{id} {n} {}", "x".repeat(300)).into_bytes().into();
    let plain = item(id, &Noise(seed).vector(DIM), json!({ "n": n }));
    Item { image: Some(picture), has_image: true, hash: Some([n as u8; 32]), ..plain }
}

/// Items of a worker after its first `n` changes.
fn replay(worker: usize, n: usize) -> BTreeMap<String, Item> {
    let mut items = BTreeMap::new();
    for n in 0..n {
        match step(worker, n) {
            Step::Put(new) => items.extend(new.into_iter().map(|item| (item.id.clone(), item))),
            Step::Delete(id) => drop(items.remove(&id)),
        }
    }
    items
}

/// Not a test by itself: the process that `a_kill_loses_nothing` starts and kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let index = Arc::new(open(dir.as_ref(), setting("MACRL_KILL_ITEMS", 0)));
    let starts = std::env::var("MACRL_KILL_STARTS").unwrap();
    let tasks: Vec<_> = starts
        .split(',')
        .enumerate()
        .map(|(worker, start)| {
            let (index, start) = (index.clone(), start.parse::<usize>().unwrap());
            tokio::spawn(async move {
                for n in start.. {
                    match step(worker, n) {
                        Step::Put(items) => {
                            let outcomes = index.put(&encoder(DIM), items).await.unwrap();
                            assert!(outcomes.iter().all(Result::is_ok));
                        }
                        Step::Delete(id) => drop(index.delete(&id).await.unwrap()),
                    }
                    // The whole line in one write, so that a kill cannot leave half of it among others.
                    std::io::stdout().lock().write_all(format!("ack {worker}\n").as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// Starts the child and kills it after a while; returns the number of acknowledged changes of each worker.
fn round(dir: &Path, items: usize, done: &[usize], pause: Duration) -> Vec<usize> {
    let starts: Vec<String> = done.iter().map(usize::to_string).collect();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["kill::child", "--exact", "--nocapture"])
        .env(CHILD, dir)
        .env("MACRL_KILL_ITEMS", items.to_string())
        .env("MACRL_KILL_STARTS", starts.join(","))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acks = vec![0; WORKERS];
    let mut killed = false;
    let mut first = None;
    let out = child.stdout.take().unwrap();
    for line in BufReader::new(out).split(b'\n') {
        let line = String::from_utf8(line.unwrap()).unwrap();
        let Some(worker) = line.rsplit("ack ").next().filter(|_| line.contains("ack ")) else { continue };
        // A line that the kill cut off does not count.
        let Ok(worker) = worker.parse::<usize>() else { continue };
        acks[worker] += 1;
        let since = *first.get_or_insert_with(Instant::now);
        if !killed && since.elapsed() >= pause {
            // SIGKILL.
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(killed, "the child ended by itself");
    acks
}

/// Compares the worker's items with the expected ones; the error says what differs.
fn compare(expected: &BTreeMap<String, Item>, found: &BTreeMap<String, Item>) -> Result<(), String> {
    let names = |items: &BTreeMap<String, Item>| items.keys().cloned().collect::<Vec<_>>();
    if names(expected) != names(found) {
        return Err(format!("expected {:?}, found {:?}", names(expected), names(found)));
    }
    match expected.values().zip(found.values()).find(|(a, b)| a != b) {
        Some((a, b)) => Err(format!("expected {} {:?}, found {:?}", a.id, a.metadata, b.metadata)),
        None => Ok(()),
    }
}

async fn found(index: &EmbeddedIndex, worker: usize) -> BTreeMap<String, Item> {
    let mut items = BTreeMap::new();
    for id in (0..IDS).map(|i| format!("w{worker}-{i}")) {
        if let Some(item) = index.get(&id).await.unwrap() {
            items.insert(id, item);
        }
    }
    items
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_nothing() {
    let (rounds, items) = (setting("MACRL_KILL_ROUNDS", 5), setting("MACRL_KILL_ITEMS", 1000));
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path();
    let mut noise = Noise(1);
    {
        let index = open(dir, usize::MAX);
        let crowd: Vec<Item> =
            (0..items).map(|i| item(&format!("base-{i}"), &noise.vector(DIM), json!({ "i": i }))).collect();
        fill(&index, crowd).await;
    }
    let mut done = vec![0; WORKERS];
    let (mut total, mut unacknowledged, mut slowest) = (0, 0, Duration::ZERO);
    for number in 0..rounds {
        let acks = round(dir, items, &done, Duration::from_millis(noise.integer(200) as u64));
        let since = Instant::now();
        let index = open(dir, items);
        slowest = slowest.max(since.elapsed());
        let mut expected = items;
        for (worker, acks) in acks.into_iter().enumerate() {
            let found = found(&index, worker).await;
            let acknowledged = done[worker] + acks;
            let as_acknowledged = compare(&replay(worker, acknowledged), &found);
            done[worker] = match as_acknowledged {
                Ok(()) => acknowledged,
                Err(cause) => {
                    let one_more = compare(&replay(worker, acknowledged + 1), &found);
                    assert!(one_more.is_ok(), "round {number}, worker {worker} after {acknowledged} changes: {cause}");
                    unacknowledged += 1;
                    acknowledged + 1
                }
            };
            total += acks;
            expected += found.len();
            // A search finds the listed items.
            if let Some(item) = found.values().next() {
                let query = Query { exact: true, ..query(&item.vector, 1) };
                assert_eq!(search(&index, query).await[0].id, item.id);
            }
        }
        assert_eq!(index.status().await.unwrap().items, expected, "round {number}");
    }
    println!(
        "{rounds} kills, {total} acknowledged changes all there, {unacknowledged} done but not yet acknowledged; \
         slowest opening of {items} x {DIM}: {:.2} s",
        slowest.as_secs_f64()
    );
    assert!(total > 0 && slowest < OPEN_LIMIT, "{total} changes, {slowest:?} to open");
}
