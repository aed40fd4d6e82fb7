//! Kills, copies and restorations in random order, below and above the limit of exact search: afterwards the index holds
//! the items of its database, and searches find exactly these.
//!
//! In each round a child process changes the index and is killed or ends by itself.  A copy may be made during the round or
//! after it.  An older copy may be restored, also beside a graph file that was saved later.  Then the index is opened, every
//! item is compared, and many are searched for by their own vectors.
//!
//! bench/index_matrix.sh runs it with `MACRL_MATRIX_ROUNDS=100`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use macrl_serve::index::{EmbeddedIndex, Index, Item, Query};
use serde_json::json;

use crate::backends::*;

const DIM: usize = 24;
const WORKERS: usize = 3;
/// Ids of each worker.
const IDS: usize = 30;
/// Environment variable with the child's folder.
const CHILD: &str = "MACRL_MATRIX_CHILD";
/// Number of items that each check searches for by their own vectors.
const SEARCHED: usize = 250;

/// One change.  Its number, which is never reused, determines what it does.
type Step = u64;

/// Changes made to an index so far.
#[derive(Clone, Default)]
struct Past {
    workers: [Vec<Step>; WORKERS],
    bulk: BTreeMap<String, Item>,
}

/// A folder with a copy, and the copy's changes.
struct Copied {
    dir: PathBuf,
    past: Past,
}

fn change(step: Step) -> (String, Option<Item>) {
    let mut noise = Noise(step.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    noise.integer(2);
    let id = format!("w{}-{}", step % WORKERS as u64, noise.integer(IDS));
    let put = noise.integer(5) > 0;
    let item = put.then(|| item(&id, &noise.vector(DIM), json!({ "step": step })));
    (id, item)
}

fn steps(round: usize, worker: usize) -> impl Iterator<Item = Step> {
    (0u64..).map(move |n| ((round as u64) << 32 | n) * WORKERS as u64 + worker as u64)
}

fn replay(steps: &[Step]) -> BTreeMap<String, Item> {
    let mut items = BTreeMap::new();
    for step in steps {
        match change(*step) {
            (id, Some(item)) => drop(items.insert(id, item)),
            (id, None) => drop(items.remove(&id)),
        }
    }
    items
}

impl Past {
    fn items(&self) -> BTreeMap<String, Item> {
        let mut items = self.bulk.clone();
        self.workers.iter().for_each(|steps| items.extend(replay(steps)));
        items
    }

    /// Finds out how many of a round's changes each worker made: at least `done`, at most `most` + 1.
    async fn settle(&mut self, index: &EmbeddedIndex, round: usize, done: [usize; WORKERS], most: [usize; WORKERS]) {
        for worker in 0..WORKERS {
            let mut found = BTreeMap::new();
            for id in (0..IDS).map(|i| format!("w{worker}-{i}")) {
                found.extend(index.get(&id).await.unwrap().map(|item| (id, item)));
            }
            let past = &mut self.workers[worker];
            let (begun, mut new) = (past.len(), steps(round, worker));
            past.extend(new.by_ref().take(done[worker]));
            while replay(past) != found {
                let more = past.len() - begun;
                assert!(
                    more <= most[worker],
                    "round {round}, worker {worker}: not as after {done:?} to {most:?} changes"
                );
                past.extend(new.next());
            }
        }
    }
}

/// Not a test by itself: the process that `restored_and_killed_indexes_hold_their_databases_items` starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<usize>().unwrap();
    let (round, count) = (number("MACRL_MATRIX_ROUND"), number("MACRL_MATRIX_STEPS"));
    let index = Arc::new(EmbeddedIndex::open(dir.as_ref(), &encoder(DIM), &options()).unwrap());
    let tasks: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let index = index.clone();
            tokio::spawn(async move {
                for step in steps(round, worker).take(count) {
                    match change(step) {
                        (_, Some(item)) => assert!(index.put(&encoder(DIM), vec![item]).await.unwrap()[0].is_ok()),
                        (id, None) => drop(index.delete(&id).await.unwrap()),
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

/// A child that changes the index, and the changes that it has acknowledged.
struct Running {
    child: Child,
    acknowledged: Arc<[AtomicUsize; WORKERS]>,
    reader: std::thread::JoinHandle<()>,
}

impl Running {
    fn start(dir: &Path, round: usize, steps: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["matrix::child", "--exact", "--nocapture"])
            .env(CHILD, dir)
            .env("MACRL_MATRIX_ROUND", round.to_string())
            .env("MACRL_MATRIX_STEPS", steps.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let acknowledged: Arc<[AtomicUsize; WORKERS]> = Arc::default();
        let counts = acknowledged.clone();
        let reader = std::thread::spawn(move || {
            for line in out.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                // A line that the kill cut off does not count.
                let worker = line.rsplit_once("ack ").and_then(|(_, worker)| worker.parse::<usize>().ok());
                if let Some(count) = worker.and_then(|worker| counts.get(worker)) {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self { child, acknowledged, reader }
    }

    fn acknowledged(&self) -> [usize; WORKERS] {
        std::array::from_fn(|worker| self.acknowledged[worker].load(Ordering::SeqCst))
    }

    /// Waits for the first acknowledgement.
    fn begun(&mut self) {
        while self.acknowledged().iter().sum::<usize>() == 0 && self.child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the child's end, by itself or by a kill; returns all acknowledgements.
    fn end(mut self, kill: bool) -> [usize; WORKERS] {
        if kill {
            // SIGKILL.
            let _ = self.child.kill();
        }
        let status = self.child.wait().unwrap();
        assert!(kill || status.success());
        self.reader.join().unwrap();
        std::array::from_fn(|worker| self.acknowledged[worker].load(Ordering::SeqCst))
    }
}

/// Checks that every item is stored, that its own vector finds it, and that nothing else is found.
async fn check(index: &EmbeddedIndex, past: &Past, noise: &mut Noise, what: &str) {
    let items = past.items();
    assert_eq!(index.status().await.unwrap().items, items.len(), "{what}");
    for (id, item) in &items {
        assert_eq!(index.get(id).await.unwrap().as_ref(), Some(item), "{what}");
    }
    let all: Vec<&Item> = items.values().collect();
    for _ in 0..SEARCHED.min(all.len()) {
        let wanted = all[noise.integer(all.len())];
        let exact = noise.integer(8) == 0;
        let hits = search(index, Query { exact, ..query(&wanted.vector, 5) }).await;
        assert_eq!(hits.len(), 5.min(all.len()), "{what}");
        let status = index.status().await;
        assert_eq!(hits[0].id, wanted.id, "{what}: exact {exact}, {status:?}, {hits:?}");
        for hit in hits {
            let item = items.get(&hit.id).unwrap_or_else(|| panic!("{what}: there is no {}", hit.id));
            let score: f32 = item.vector.iter().zip(&wanted.vector).map(|(a, b)| a * b).sum();
            assert!(item.metadata == hit.metadata && (hit.score - score).abs() < 1e-5, "{what}: {hit:?}");
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Restores a copy: all of it, or the database alone.
fn restore(copy: &Path, dir: &Path, whole: bool) {
    if whole {
        fs::remove_dir_all(dir).unwrap();
        return copy_folder(copy, dir);
    }
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("items.sqlite") {
            fs::remove_file(path).unwrap();
        }
    }
    for file in fs::read_dir(copy).unwrap() {
        let file = file.unwrap();
        if file.file_name().to_str().unwrap().starts_with("items.sqlite") {
            fs::copy(file.path(), dir.join(file.file_name())).unwrap();
        }
    }
}

/// Adds or removes many items, so that the index crosses the limit of exact search in both directions.
async fn load(index: &EmbeddedIndex, past: &mut Past, round: usize, noise: &mut Noise) {
    if past.bulk.len() > EXACT_UP_TO && noise.integer(2) == 0 {
        let gone: Vec<String> = past.bulk.keys().skip(noise.integer(300)).cloned().collect();
        gone.iter().for_each(|id| drop(past.bulk.remove(id)));
        return remove(index, gone).await;
    }
    let count = 100 + noise.integer(900);
    let new: Vec<Item> = (0..count)
        .map(|i| item(&format!("b{}", noise.integer(1500)), &noise.vector(DIM), json!({ "at": [round, i] })))
        .collect();
    fill(index, new.clone()).await;
    past.bulk.extend(new.into_iter().map(|item| (item.id.clone(), item)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_and_killed_indexes_hold_their_databases_items() {
    let rounds = std::env::var("MACRL_MATRIX_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(6);
    let seed = std::env::var("MACRL_MATRIX_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(3);
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let mut noise = Noise(seed);
    let mut past = Past::default();
    let mut copies: Vec<Copied> = Vec::new();
    let (mut kills, mut restored, mut living, mut searched) = (0, 0, 0, 0);
    for round in 0..rounds {
        // All in one call.
        if noise.integer(3) > 0 || round == 0 {
            let index = EmbeddedIndex::open(&dir, &encoder(DIM), &options()).unwrap();
            load(&index, &mut past, round, &mut noise).await;
            if noise.integer(2) == 0 && past.bulk.len() > EXACT_UP_TO {
                settled(&index).await;
            }
        }
        // One at a time, until the child is killed or done; a copy may be made during it.
        let kill = noise.integer(3) > 0;
        let mut running = Running::start(&dir, round, if kill { usize::MAX } else { 40 });
        running.begun();
        let fresh = parent.path().join(format!("copy-{round}"));
        let meanwhile = (noise.integer(3) == 0).then(|| {
            let before = running.acknowledged();
            EmbeddedIndex::back_up(&dir, &fresh).unwrap();
            (before, running.acknowledged())
        });
        std::thread::sleep(Duration::from_millis(noise.integer(150) as u64));
        let done = running.end(kill);
        kills += usize::from(kill);
        if let Some((before, after)) = meanwhile {
            let mut copied = past.clone();
            let index = EmbeddedIndex::open(&fresh, &encoder(DIM), &options()).unwrap();
            copied.settle(&index, round, before, after).await;
            check(&index, &copied, &mut noise, &format!("round {round}, copy")).await;
            copies.push(Copied { dir: fresh, past: copied });
            living += 1;
        } else if noise.integer(2) == 0 {
            copy_folder(&dir, &fresh);
            let mut copied = past.clone();
            {
                let index = EmbeddedIndex::open(&dir, &encoder(DIM), &options()).unwrap();
                copied.settle(&index, round, done, done).await;
            }
            copies.push(Copied { dir: fresh, past: copied });
        }
        let index = EmbeddedIndex::open(&dir, &encoder(DIM), &options()).unwrap();
        past.settle(&index, round, done, done).await;
        check(&index, &past, &mut noise, &format!("round {round}")).await;
        drop(index);
        if noise.integer(3) == 0 && !copies.is_empty() {
            let copy = &copies[noise.integer(copies.len())];
            let whole = noise.integer(2) == 0;
            restore(&copy.dir, &dir, whole);
            past = copy.past.clone();
            restored += 1;
            let index = EmbeddedIndex::open(&dir, &encoder(DIM), &options()).unwrap();
            // After a restoration, write numbers are assigned a second time.
            load(&index, &mut past, round, &mut noise).await;
            check(&index, &past, &mut noise, &format!("round {round}, restored (whole: {whole})")).await;
            if past.items().len() > EXACT_UP_TO {
                settled(&index).await;
            }
            check(&index, &past, &mut noise, &format!("round {round}, restored and settled (whole: {whole})")).await;
            searched += 2;
        }
        searched += 1;
    }
    println!(
        "{rounds} rounds, {kills} kills, {} copies ({living} of them while running), {restored} restorations; \
         {searched} times every item looked at and {SEARCHED} searched for",
        copies.len()
    );
}
