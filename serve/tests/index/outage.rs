//! Real servers on one PostgreSQL: `kill -9` of the database under load, and replicas beside an ingest.
//!
//! Each worker changes its own items over HTTP.  A status of 200, 201 or 404 acknowledges the change.  After any other answer
//! the item may be in its old or in its new state, so each item has one or two correct states.
//!
//! bench/postgres_kill.sh runs it with `MACRL_OUTAGES=20`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::backends::Noise;
use crate::server::{self, Server};
use crate::transfer::bundle;

const BINARY: &str = env!("CARGO_BIN_EXE_macrl-serve");
const WORKERS: usize = 6;
/// Ids of each worker.
const IDS: usize = 10;

/// `macrl-serve`; killed when dropped.
struct Replica {
    child: Child,
    url: String,
}

impl Replica {
    fn start(bundle: &Path, index: &str) -> Self {
        let mut child = Command::new(BINARY)
            .args(["--listen", "127.0.0.1:0", "--device", "cpu", "--workers", "1", "--index", index, "--bundle"])
            .arg(bundle)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines.next().unwrap().unwrap().strip_prefix("listening on ").unwrap().to_string();
        assert!(lines.next().unwrap().unwrap().starts_with("ready: "));
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }

    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value, bool) {
        ask(&format!("{}{path}", self.url), method, body)
    }

    /// Number of items that the replica reports.
    fn total(&self) -> u64 {
        let (status, page, _) = self.ask("GET", "/items?limit=1", None);
        assert_eq!(status, 200, "{page}");
        page["total"].as_u64().unwrap()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status, JSON, and whether there is a `Retry-After` header.
fn ask(url: &str, method: &str, body: Option<Value>) -> (u16, Value, bool) {
    let config =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(40)));
    let agent: ureq::Agent = config.build().into();
    let request = ureq::http::Request::builder().method(method).uri(url).header("content-type", "application/json");
    let body = body.map(|b| b.to_string()).unwrap_or_default();
    let mut answer = agent.run(request.body(body).unwrap()).unwrap();
    let again = answer.headers().contains_key("retry-after");
    (answer.status().as_u16(), answer.body_mut().read_json().unwrap_or(Value::Null), again)
}

/// State of an item: the `version` in its metadata, or absent.
type States = Vec<Option<u64>>;

/// State that the workers share.
struct Load {
    url: String,
    stop: AtomicBool,
    acknowledged: AtomicUsize,
    refused: AtomicUsize,
}

impl Load {
    fn vector(noise: &mut Noise) -> Vec<f32> {
        noise.vector(bundle::DIM)
    }

    /// Makes one change after the other; takes and returns the correct states of each item.
    fn work(&self, worker: usize, seed: u64, mut states: BTreeMap<String, States>) -> BTreeMap<String, States> {
        let mut noise = Noise(seed * 100 + worker as u64);
        let mut version = seed * 1_000_000;
        while !self.stop.load(Ordering::Relaxed) {
            version += 1;
            let id = format!("w{worker}-{}", noise.integer(IDS));
            let url = format!("{}/items/{id}", self.url);
            let (asked, (status, answer, again)) = if noise.integer(4) == 0 {
                (None, ask(&url, "DELETE", None))
            } else {
                let body = json!({ "vector": Self::vector(&mut noise), "metadata": { "version": version } });
                (Some(version), ask(&url, "PUT", Some(body)))
            };
            match status {
                200 | 201 | 404 => {
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                    states.insert(id, vec![asked]);
                }
                503 => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    assert!(again && answer["error"]["code"] == "index_unavailable", "{answer}");
                    states.entry(id).or_insert_with(|| vec![None]).push(asked);
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => panic!("{other} {answer}"),
            }
        }
        states
    }

    /// Searches until `stop` is set; every answer is 200 or 503.
    fn search(&self) {
        let mut noise = Noise(77);
        while !self.stop.load(Ordering::Relaxed) {
            let url = format!("{}/search?k=5", self.url);
            let (status, answer, _) = ask(&url, "POST", Some(json!({ "vector": Self::vector(&mut noise) })));
            assert!(status == 200 && answer["hits"].is_array() || status == 503, "{status} {answer}");
        }
    }
}

#[test]
fn a_kill_of_the_database_loses_nothing_and_servers_recover() {
    if !server::is_there() {
        return;
    }
    let rounds = std::env::var("MACRL_OUTAGES").ok().and_then(|v| v.parse().ok()).unwrap_or(2);
    let place = tempfile::tempdir().unwrap();
    bundle::write_bundle(place.path(), "tiny", false);
    let server = Server::start("");
    let url = server.database();
    let replica = Replica::start(place.path(), &url);
    let (mut acknowledged, mut refused, mut slowest) = (0, 0, Duration::ZERO);
    let mut states: BTreeMap<String, States> = BTreeMap::new();
    let mut noise = Noise(1);
    for round in 1..=rounds {
        let load = Arc::new(Load {
            url: replica.url.clone(),
            stop: AtomicBool::new(false),
            acknowledged: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        });
        let work = |worker| {
            let (load, states) = (load.clone(), states.clone());
            std::thread::spawn(move || load.work(worker, round, states))
        };
        let workers: Vec<_> = (0..WORKERS).map(work).collect();
        let searcher = {
            let load = load.clone();
            std::thread::spawn(move || load.search())
        };
        std::thread::sleep(Duration::from_millis(300 + noise.integer(300) as u64));
        server.kill();
        std::thread::sleep(Duration::from_millis(300 + noise.integer(300) as u64));
        // The process is healthy, and /ready names what is missing.
        assert_eq!(replica.ask("GET", "/health", None).0, 200);
        let (status, answer, again) = replica.ask("GET", "/items", None);
        assert!(status == 503 && again && answer["error"]["code"] == "index_unavailable", "{status} {answer}");
        assert!(!answer.to_string().contains(server::PASSWORD), "{answer}");
        server.resume();
        // PostgreSQL accepts connections before it has recovered from its log and can answer.
        server::sql(&url, "SELECT 1");
        let since = Instant::now();
        while replica.ask("GET", "/items?limit=1", None).0 != 200 {
            assert!(since.elapsed() < Duration::from_secs(60), "it does not recover");
            std::thread::sleep(Duration::from_millis(20));
        }
        slowest = slowest.max(since.elapsed());
        std::thread::sleep(Duration::from_millis(300));
        load.stop.store(true, Ordering::Relaxed);
        for (worker, thread) in workers.into_iter().enumerate() {
            let own = |id: &String| id.starts_with(&format!("w{worker}-"));
            states.extend(thread.join().unwrap().into_iter().filter(|(id, _)| own(id)));
        }
        searcher.join().unwrap();
        acknowledged += load.acknowledged.load(Ordering::Relaxed);
        refused += load.refused.load(Ordering::Relaxed);
        for (id, right) in &mut states {
            let (status, item, _) = replica.ask("GET", &format!("/items/{id}"), None);
            let found = (status == 200).then(|| item["metadata"]["version"].as_u64().unwrap());
            assert!(right.contains(&found), "round {round}: {id} is {found:?}, expected one of {right:?}");
            *right = vec![found];
        }
        let there = states.values().filter(|s| s[0].is_some()).count() as u64;
        assert_eq!(replica.total(), there);
    }
    println!(
        "{rounds} kills, {acknowledged} acknowledged changes all there, {refused} refused meanwhile; \
         back {:.2} s after the database at the latest",
        slowest.as_secs_f64()
    );
    assert!(acknowledged > 0 && refused > 0);
}

/// A picture that is different for every seed.
fn picture(seed: u32) -> Vec<u8> {
    let mut noise = Noise(u64::from(seed));
    let image = image::RgbImage::from_fn(12, 12, |_, _| image::Rgb([0; 3].map(|_: u8| noise.integer(256) as u8)));
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

#[test]
fn replicas_agree_while_a_third_process_ingests() {
    if !server::is_there() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (bundle_dir, images) = (place.path().join("bundle"), place.path().join("images"));
    bundle::write_bundle(&bundle_dir, "tiny", false);
    const IMAGES: u32 = 3000;
    for seed in 0..IMAGES {
        let folder = images.join(format!("{}", seed % 3));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{seed}.png")), picture(seed)).unwrap();
    }
    let url = server::shared().database();
    let replicas = [Replica::start(&bundle_dir, &url), Replica::start(&bundle_dir, &url)];
    let ingest = || {
        let mut command = Command::new(BINARY);
        command.args(["ingest", "--device", "cpu", "--index", &url, "--bundle"]).arg(&bundle_dir).arg(&images);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut third = ingest();
    let (mut counted, mut steps, mut written) = (0, 0, 0);
    while third.try_wait().unwrap().is_none() {
        for (replica, other) in [(&replicas[0], &replicas[1]), (&replicas[1], &replicas[0])] {
            // Later requests never count fewer items.
            let total = replica.total();
            assert!(total >= counted, "{total} items after {counted}");
            steps += usize::from(total > counted);
            counted = total;
            // Items that one replica acknowledged are visible through the other.
            let id = format!("own-{written}");
            written += 1;
            let body = json!({ "vector": vec![1.0 + written as f32; bundle::DIM], "metadata": { "n": written } });
            assert_eq!(replica.ask("PUT", &format!("/items/{id}"), Some(body)).0, 201);
            let (status, item, _) = other.ask("GET", &format!("/items/{id}"), None);
            assert!(status == 200 && item["metadata"]["n"] == written, "{status} {item}");
        }
    }
    let output = third.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).to_string();
    assert!(said.starts_with(&format!("{IMAGES} of {IMAGES} images stored")), "{said}");
    assert!(steps > 3, "the ingest was not seen under way: {steps}");
    let again = ingest().wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).contains(&format!("{IMAGES} were there")));
    for (method, path, body) in [
        ("GET", "/items?limit=1000", None),
        ("POST", "/search?k=50", Some(json!({ "id": "1/1.png", "exact": true }))),
        ("POST", "/search?k=50", Some(json!({ "id": "2/5.png", "filter": { "label": "1" } }))),
        ("GET", "/duplicates?threshold=0.999&limit=5", None),
        ("GET", "/map?points=100", None),
    ] {
        let [one, two] = [0, 1].map(|i: usize| replicas[i].ask(method, path, body.clone()));
        assert_eq!((one.0, &one.1), (200, &two.1), "{path}");
    }
    let (_, info, _) = replicas[0].ask("GET", "/info", None);
    assert_eq!(info["index"]["kind"], "postgres");
    assert_eq!(info["index"]["items"], u64::from(IMAGES) + written);
    assert!(!info.to_string().contains(server::PASSWORD));
}
