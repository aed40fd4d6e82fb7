//! Where a test's index is, and what is put into it.

use std::sync::Arc;

use async_trait::async_trait;
use macrl_serve::index::postgres::Address;
use macrl_serve::index::{
    EmbeddedIndex, Encoder, Filter, Hit, Index, IndexError, Item, Metadata, OpenOptions, PostgresIndex, Query,
};
use serde_json::{Value, json};

use crate::server;

/// With more items than this, the tests' indexes are approximate.
pub(crate) const EXACT_UP_TO: usize = 600;

/// A place at which an index can be opened, one at a time.
#[async_trait]
pub(crate) trait Place: Send + Sync {
    async fn open(&self, encoder: &Encoder) -> Result<Arc<dyn Index>, IndexError>;

    /// Whether what was stored is there when it is opened again.
    fn lasts(&self) -> bool;

    /// Whether this machine has what it takes.
    fn is_there(&self) -> bool {
        true
    }
}

pub(crate) struct Memory;

#[async_trait]
impl Place for Memory {
    async fn open(&self, encoder: &Encoder) -> Result<Arc<dyn Index>, IndexError> {
        Ok(Arc::new(EmbeddedIndex::in_memory(encoder.clone(), &options())?))
    }

    fn lasts(&self) -> bool {
        false
    }
}

pub(crate) struct Folder {
    pub(crate) dir: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
}

#[async_trait]
impl Place for Folder {
    async fn open(&self, encoder: &Encoder) -> Result<Arc<dyn Index>, IndexError> {
        Ok(Arc::new(EmbeddedIndex::open(self.dir.path(), encoder, &options())?))
    }

    fn lasts(&self) -> bool {
        true
    }
}

/// A data base of its own on the server that tests share.
pub(crate) struct Postgres {
    /// `None` where there is no server.
    pub(crate) url: Option<String>,
}

impl Postgres {
    pub(crate) fn new() -> Self {
        Self { url: server::is_there().then(|| server::shared().database()) }
    }

    pub(crate) fn address(&self) -> Address {
        self.url.as_ref().unwrap().parse().unwrap()
    }
}

#[async_trait]
impl Place for Postgres {
    async fn open(&self, encoder: &Encoder) -> Result<Arc<dyn Index>, IndexError> {
        Ok(Arc::new(PostgresIndex::open(&self.address(), encoder, &options())?))
    }

    fn lasts(&self) -> bool {
        true
    }

    fn is_there(&self) -> bool {
        self.url.is_some()
    }
}

pub(crate) fn options() -> OpenOptions {
    OpenOptions { exact_up_to: EXACT_UP_TO, ..OpenOptions::default() }
}

pub(crate) fn encoder(dim: usize) -> Encoder {
    Encoder { sha256: "one".into(), dim }
}

pub(crate) fn map(json: Value) -> Metadata {
    let Value::Object(map) = json else { panic!("not an object: {json}") };
    map
}

pub(crate) fn filter(json: Value) -> Filter {
    Filter::parse(map(json)).unwrap()
}

pub(crate) fn unit(vector: &[f32]) -> Vec<f32> {
    let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    vector.iter().map(|v| v / norm).collect()
}

pub(crate) fn item(id: &str, vector: &[f32], metadata: Value) -> Item {
    Item { id: id.into(), vector: unit(vector), metadata: map(metadata), image: None, pictured: false, hash: None }
}

pub(crate) fn query(vector: &[f32], k: usize) -> Query {
    Query { vector: unit(vector), k, filter: Filter::default(), exact: false, except: None }
}

/// Stores items, all of which must be taken.
pub(crate) async fn fill(index: &dyn Index, items: Vec<Item>) {
    let dim = items[0].vector.len();
    for block in items.chunks(1000) {
        let outcomes = index.put(&encoder(dim), block.to_vec()).await.unwrap();
        assert!(outcomes.iter().all(Result::is_ok));
    }
}

/// Deletes items, all of which must be there; together, so that they share commits.
pub(crate) async fn remove(index: &dyn Index, ids: impl IntoIterator<Item = String>) {
    let ids: Vec<String> = ids.into_iter().collect();
    let outcomes = futures_util::future::join_all(ids.iter().map(|id| index.delete(id))).await;
    assert!(outcomes.into_iter().all(|outcome| outcome == Ok(true)));
}

pub(crate) async fn search(index: &dyn Index, query: Query) -> Vec<Hit> {
    index.search(vec![query]).await.unwrap().remove(0)
}

pub(crate) fn ids(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.id.as_str()).collect()
}

/// Numbers in [-1, 1) that look random and are always the same.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn integer(&mut self, below: usize) -> usize {
        // Knuth's MMIX generator; the high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % below
    }

    pub(crate) fn vector(&mut self, dim: usize) -> Vec<f32> {
        (0..dim).map(|_| self.integer(1 << 20) as f32 / (1 << 19) as f32 - 1.0).collect()
    }
}

/// Vectors that lie in clouds, as those of images do.
pub(crate) fn clouds(n: usize, dim: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut noise = Noise(seed);
    let centres: Vec<Vec<f32>> = (0..20).map(|_| noise.vector(dim)).collect();
    let near = |noise: &mut Noise| {
        let centre = &centres[noise.integer(centres.len())];
        unit(&noise.vector(dim).iter().zip(centre).map(|(x, c)| c + 0.7 * x).collect::<Vec<_>>())
    };
    (0..n).map(|_| near(&mut noise)).collect()
}

/// Waits until approximate searches cover every item.
pub(crate) async fn settled(index: &dyn Index) {
    let since = std::time::Instant::now();
    loop {
        let status = index.status().await.unwrap();
        if status.approximate == Some(status.items) {
            return;
        }
        assert!(since.elapsed().as_secs() < 60, "{status:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Items `0` to `n - 1` in clouds; every tenth is rare.
pub(crate) fn crowd(n: usize, dim: usize, seed: u64) -> Vec<Item> {
    let vectors = clouds(n, dim, seed).into_iter().enumerate();
    vectors.map(|(i, v)| item(&i.to_string(), &v, json!({ "n": i, "rare": i % 10 == 0 }))).collect()
}
