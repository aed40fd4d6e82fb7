//! The index backends under test, and the items that tests store.

use std::sync::Arc;

use async_trait::async_trait;
use macrl_serve::index::postgres::Address;
use macrl_serve::index::{
    EmbeddedIndex, EncoderIdentity, Filter, Hit, Index, IndexError, Item, JsonMap, OpenOptions, PostgresIndex, Query,
};
use serde_json::{Value, json};

use crate::server;

/// With more items than this, the tests' indexes are approximate.
pub(crate) const EXACT_UP_TO: usize = 600;

/// A backend with storage of its own, in which a test opens one index at a time.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    async fn open(&self, encoder: &EncoderIdentity) -> Result<Arc<dyn Index>, IndexError>;

    /// Whether items are still there after it is opened again.
    fn is_persistent(&self) -> bool;

    /// Whether this machine has the software that it needs.
    fn is_available(&self) -> bool {
        true
    }
}

pub(crate) struct Memory;

#[async_trait]
impl Backend for Memory {
    async fn open(&self, encoder: &EncoderIdentity) -> Result<Arc<dyn Index>, IndexError> {
        Ok(Arc::new(EmbeddedIndex::in_memory(encoder.clone(), &options())?))
    }

    fn is_persistent(&self) -> bool {
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
impl Backend for Folder {
    async fn open(&self, encoder: &EncoderIdentity) -> Result<Arc<dyn Index>, IndexError> {
        Ok(Arc::new(EmbeddedIndex::open(self.dir.path(), encoder, &options())?))
    }

    fn is_persistent(&self) -> bool {
        true
    }
}

/// A new database on the server that tests share.
pub(crate) struct Postgres {
    /// `None` if there is no server.
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
impl Backend for Postgres {
    async fn open(&self, encoder: &EncoderIdentity) -> Result<Arc<dyn Index>, IndexError> {
        Ok(Arc::new(PostgresIndex::open(&self.address(), encoder, &options())?))
    }

    fn is_persistent(&self) -> bool {
        true
    }

    fn is_available(&self) -> bool {
        self.url.is_some()
    }
}

pub(crate) fn options() -> OpenOptions {
    OpenOptions { exact_up_to: EXACT_UP_TO, ..OpenOptions::default() }
}

pub(crate) fn encoder(dim: usize) -> EncoderIdentity {
    EncoderIdentity { sha256: "one".into(), dim }
}

pub(crate) fn map(json: Value) -> JsonMap {
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
    Item {
        id: id.into(),
        vector: unit(vector),
        metadata: map(metadata).into(),
        image: None,
        has_image: false,
        hash: None,
    }
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
