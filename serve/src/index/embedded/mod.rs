//! The default index: all that a search reads in memory, and with a folder the truth on disk.
//!
//! With and without a folder everything goes the same way; only the [`store`] is missing in memory, so that tests and
//! demonstrations run the code that production runs.  Changes pass one [`writer`]; [`gallery`] holds the items,
//! [`postings`] answer filters, [`scan`] compares exactly, [`graph`] approximately by way of [`nodes`], [`gardener`] keeps
//! the graph.

mod folder;
mod gallery;
mod gardener;
mod graph;
mod nodes;
mod postings;
mod scan;
mod slots;
mod space;
mod store;
mod writer;

use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;

use async_trait::async_trait;
use roaring::RoaringBitmap;
use tokio::sync::{Semaphore, oneshot};

use super::{ContentHash, Encoder, Hit, Index, IndexError, Item, Listing, Near, OpenOptions, Page, Query, Status};
use gallery::Gallery;
use gardener::{Cache, Gardener};
use graph::Graph;
use store::{FORMAT, Opened, Pictures, Store};
use writer::{Job, Outcome, Work, Writer, read};

/// Searches at once; more wait.  Blocking threads are for decoding, too.
const SEARCHES: usize = 16;
/// Queries that are compared with every vector at a time.
const TOGETHER: usize = 64;

/// What searches, the writer and the gardener share.
struct Shared {
    gallery: RwLock<Gallery>,
    encoder: RwLock<Encoder>,
    exact_up_to: usize,
}

impl Shared {
    fn new(gallery: Gallery, encoder: Encoder, exact_up_to: usize) -> Arc<Self> {
        let (gallery, encoder) = (RwLock::new(gallery), RwLock::new(encoder));
        Arc::new(Self { gallery, encoder, exact_up_to })
    }

    fn encoder(&self) -> Encoder {
        self.encoder.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn graph(&self) -> Option<Arc<Graph>> {
        read(&self.gallery).nodes().graph().cloned()
    }

    fn set_graph(&self, graph: Option<Arc<Graph>>) {
        self.gallery.write().unwrap_or_else(PoisonError::into_inner).set_graph(graph);
    }

    /// The graph has these nodes now.
    fn cover(&self, nodes: &[u64]) {
        self.gallery.write().unwrap_or_else(PoisonError::into_inner).cover(nodes);
    }

    /// Of an index without items.
    fn adopt(&self, encoder: Encoder) {
        *self.gallery.write().unwrap_or_else(PoisonError::into_inner) = Gallery::new(encoder.dim, 0);
        *self.encoder.write().unwrap_or_else(PoisonError::into_inner) = encoder;
    }
}

/// A query that waits to be compared with every vector.
struct Ticket {
    query: Query,
    answer: OnceLock<Vec<Hit>>,
}

/// The part that searches.
struct Searcher {
    shared: Arc<Shared>,
    waiting: Mutex<Vec<Arc<Ticket>>>,
    turn: Mutex<()>,
}

/// See the module's documentation.
pub struct EmbeddedIndex {
    searcher: Arc<Searcher>,
    searches: Arc<Semaphore>,
    pictures: Option<Arc<Pictures>>,
    /// `None` where it was opened to be read.
    jobs: Option<Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    _gardener: Gardener,
}

impl EmbeddedIndex {
    /// An empty index that ends with the process.
    ///
    /// # Errors
    /// [`IndexError::Open`] where the system has no thread to give.
    pub fn in_memory(encoder: Encoder, options: &OpenOptions) -> Result<Self, IndexError> {
        let shared = Shared::new(Gallery::new(encoder.dim, 0), encoder, options.exact_up_to);
        let max_bytes = options.max_bytes;
        let writer = Writer { store: None, shared: shared.clone(), last_seq: 0, max_bytes };
        Self::start(shared, Some(writer), None, None)
    }

    /// Opens a folder, or makes it an index.
    ///
    /// # Errors
    /// [`IndexError::Open`] where another process has it or it is damaged, [`IndexError::Encoder`].
    pub fn open(dir: &Path, encoder: &Encoder, options: &OpenOptions) -> Result<Self, IndexError> {
        let Opened { mut store, pictures, gallery, encoder: holds, last_seq, identity } = Store::open(dir, encoder)?;
        let items = gallery.len();
        let gallery = match items {
            _ if holds == *encoder => gallery,
            0 => {
                store.adopt(encoder)?;
                Gallery::new(encoder.dim, 0)
            }
            _ => return Err(IndexError::Encoder { holds, items, given: encoder.clone() }),
        };
        let shared = Shared::new(gallery, encoder.clone(), options.exact_up_to);
        let cache = Cache { path: dir.join(graph::FILE), identity };
        let writer = Writer { store: Some(store), shared: shared.clone(), last_seq, max_bytes: options.max_bytes };
        Self::start(shared, Some(writer), Some(pictures), Some(cache))
    }

    /// Opens a folder beside the process that writes it, as it is now; also whose vectors it holds.
    ///
    /// # Errors
    /// [`IndexError::Open`].
    pub fn open_to_read(dir: &Path) -> Result<(Self, Encoder), IndexError> {
        let Opened { pictures, gallery, encoder, .. } = Store::open_to_read(dir)?;
        let shared = Shared::new(gallery, encoder.clone(), usize::MAX);
        Ok((Self::start(shared, None, Some(pictures), None)?, encoder))
    }

    /// Copies an index, as it is now, into a folder that is empty or new; beside the process that writes it.  Its items.
    ///
    /// # Errors
    /// [`IndexError::Open`].
    pub fn back_up(dir: &Path, to: &Path) -> Result<usize, IndexError> {
        store::back_up(dir, to)
    }

    fn start(
        shared: Arc<Shared>,
        writer: Option<Writer>,
        pictures: Option<Pictures>,
        cache: Option<Cache>,
    ) -> Result<Self, IndexError> {
        let started = writer.map(writer::start).transpose()?;
        let (jobs, writer) = started.map_or((None, None), |(jobs, thread)| (Some(jobs), Some(thread)));
        let gardener = Gardener::start(shared.clone(), cache);
        let searcher = Arc::new(Searcher { shared, waiting: Mutex::default(), turn: Mutex::default() });
        let searches = Arc::new(Semaphore::new(SEARCHES));
        Ok(Self { searcher, searches, pictures: pictures.map(Arc::new), jobs, writer, _gardener: gardener })
    }

    /// Leaves work to the writer; it is done even where nobody awaits it any more.
    async fn ask(&self, work: Work) -> Outcome {
        let (reply, answer) = oneshot::channel();
        let Some(jobs) = &self.jobs else {
            return Err(IndexError::Unavailable("the index was opened to be read only".into()));
        };
        let ended = || IndexError::Storage("the index's writer has ended".into());
        jobs.send(Job { work, reply }).map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// [`Index::search`] on the calling thread.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn search_blocking(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError> {
        self.searcher.search(queries)
    }

    fn gallery(&self) -> std::sync::RwLockReadGuard<'_, Gallery> {
        read(&self.searcher.shared.gallery)
    }
}

impl Drop for EmbeddedIndex {
    fn drop(&mut self) {
        // The writer ends when nobody can ask any more.
        self.jobs = None;
        if let Some(thread) = self.writer.take() {
            let _ = thread.join();
        }
    }
}

impl Searcher {
    fn search(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError> {
        let dim = read(&self.shared.gallery).dim();
        if let Some(wrong) = queries.iter().find(|q| q.vector.len() != dim) {
            return Err(IndexError::Dimension { expected: dim, found: wrong.vector.len() });
        }
        let mut hits: Vec<Option<Vec<Hit>>> = queries.iter().map(|q| self.narrow(q)).collect();
        let rest = queries.into_iter().zip(&hits).filter(|(_, hits)| hits.is_none()).map(|(query, _)| query);
        let mut compared = self.compare(rest.collect())?.into_iter();
        hits.iter_mut().filter(|hits| hits.is_none()).for_each(|hits| *hits = compared.next());
        Ok(hits.into_iter().flatten().collect())
    }

    fn within(&self, query: &Query, threshold: f32) -> Result<Vec<Near>, IndexError> {
        let gallery = read(&self.shared.gallery);
        if query.vector.len() != gallery.dim() {
            return Err(IndexError::Dimension { expected: gallery.dim(), found: query.vector.len() });
        }
        let slots: Vec<u32> = match gallery.select(&query.filter) {
            Some(selected) => selected.iter().collect(),
            None => (0..gallery.slots() as u32).collect(),
        };
        Ok(scan::within(&gallery, &slots, query, threshold))
    }

    /// The answer where not every vector need be looked at.
    fn narrow(&self, query: &Query) -> Option<Vec<Hit>> {
        let gallery = read(&self.shared.gallery);
        let selected = gallery.select(&query.filter);
        // While much is not in the graph yet, comparing all is quicker than comparing the rest item by item.
        let far = gallery.nodes().missing_items() > self.shared.exact_up_to / 4;
        let many = selected.as_ref().is_none_or(|s| s.len() > self.shared.exact_up_to as u64);
        if !query.exact
            && many
            && !far
            && let Some(hits) = approximate(&gallery, query, selected.as_ref())
        {
            return Some(hits);
        }
        selected.map(|slots| scan::subset(&gallery, &slots.iter().collect::<Vec<_>>(), query))
    }

    /// Compares with every vector.  Whoever has the turn does so for all that wait: together they read memory once.
    fn compare(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError> {
        let ticket = |query| Arc::new(Ticket { query, answer: OnceLock::new() });
        let mine: Vec<Arc<Ticket>> = queries.into_iter().map(ticket).collect();
        lock(&self.waiting).extend(mine.iter().cloned());
        while mine.iter().any(|ticket| ticket.answer.get().is_none()) {
            let _turn = lock(&self.turn);
            if mine.iter().all(|ticket| ticket.answer.get().is_some()) {
                break;
            }
            let batch: Vec<Arc<Ticket>> = {
                let mut waiting = lock(&self.waiting);
                let count = waiting.len().min(TOGETHER);
                waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                return Err(IndexError::Storage("a search of several failed".into()));
            }
            let queries: Vec<&Query> = batch.iter().map(|ticket| &ticket.query).collect();
            let found = scan::all(&read(&self.shared.gallery), &queries);
            batch.iter().zip(found).for_each(|(ticket, hits)| drop(ticket.answer.set(hits)));
        }
        Ok(mine.iter().filter_map(|ticket| ticket.answer.get().cloned()).collect())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The items of the nodes that the graph finds, and those that it lacks, with exact scores; `None` where it finds too few
/// or there is none.
fn approximate(gallery: &Gallery, query: &Query, selected: Option<&RoaringBitmap>) -> Option<Vec<Hit>> {
    let nodes = gallery.nodes();
    let graph = nodes.graph()?;
    let passing = |node: u64| nodes.slots(node).filter(|slot| selected.is_none_or(|s| s.contains(*slot)));
    let mut slots: Vec<u32> = nodes.missing().iter().flat_map(|node| passing(*node)).collect();
    // Some more than asked for: half precision may have changed the order, and the item itself may be among them.
    let count = query.k + query.k / 2 + 8;
    let stale = graph.len() + nodes.missing().len() > nodes.len();
    let passes = (selected.is_some() || stale).then_some(|node| passing(node).next().is_some());
    let found = graph.search(&query.vector, count, passes).ok()?;
    let candidates: Vec<u32> = found.into_iter().flat_map(passing).collect();
    let reachable = selected.map_or(gallery.len(), |s| s.len() as usize).saturating_sub(slots.len());
    if candidates.len() < query.k.min(reachable) {
        return None;
    }
    slots.extend(candidates);
    slots.sort_unstable();
    slots.dedup();
    Some(scan::subset(gallery, &slots, query))
}

#[async_trait]
impl Index for EmbeddedIndex {
    fn kind(&self) -> &'static str {
        if self.pictures.is_some() { "folder" } else { "memory" }
    }

    fn format(&self) -> u32 {
        FORMAT
    }

    async fn status(&self) -> Result<Status, IndexError> {
        let gallery = self.gallery();
        let nodes = gallery.nodes();
        let found = nodes.graph().map(|_| gallery.len() - nodes.missing_items());
        Ok(Status { items: gallery.len(), approximate: found })
    }

    async fn adopt(&self, encoder: &Encoder) -> Result<(), IndexError> {
        self.ask(Work::Adopt(encoder.clone())).await.map(drop)
    }

    async fn put(&self, encoder: &Encoder, items: Vec<Item>) -> Result<Vec<Result<bool, IndexError>>, IndexError> {
        self.ask(Work::Put(encoder.clone(), items)).await
    }

    async fn get(&self, id: &str) -> Result<Option<Item>, IndexError> {
        let Some((mut item, seq)) = self.gallery().item(id) else { return Ok(None) };
        if let (true, Some(pictures)) = (item.pictured, self.pictures.clone()) {
            item.image = blocking(move || pictures.get(seq)).await?;
        }
        Ok(Some(item))
    }

    async fn delete(&self, id: &str) -> Result<bool, IndexError> {
        let outcome = self.ask(Work::Delete(id.into())).await?;
        outcome.into_iter().next().unwrap_or(Ok(false))
    }

    async fn list(&self, listing: Listing) -> Result<Page, IndexError> {
        let searcher = self.searcher.clone();
        blocking(move || Ok(read(&searcher.shared.gallery).list(&listing))).await
    }

    async fn search(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError> {
        let slot = self.searches.clone().acquire_owned().await;
        let searcher = self.searcher.clone();
        blocking(move || {
            // Held by the search, not by who asked for it.
            let _slot = slot;
            searcher.search(queries)
        })
        .await
    }

    async fn within(&self, query: Query, threshold: f32) -> Result<Vec<Near>, IndexError> {
        let slot = self.searches.clone().acquire_owned().await;
        let searcher = self.searcher.clone();
        blocking(move || {
            let _slot = slot;
            searcher.within(&query, threshold)
        })
        .await
    }

    async fn describe(&self, near: Vec<Near>) -> Result<Vec<Hit>, IndexError> {
        let gallery = self.gallery();
        Ok(near.iter().filter_map(|near| gallery.hit(gallery.slot(&near.id)?, near.score)).collect())
    }

    async fn hashes(&self, ids: &[String]) -> Result<Vec<Option<ContentHash>>, IndexError> {
        let gallery = self.gallery();
        Ok(ids.iter().map(|id| gallery.hash(id)).collect())
    }

    async fn sample(&self, count: usize) -> Result<Vec<Item>, IndexError> {
        let searcher = self.searcher.clone();
        blocking(move || Ok(read(&searcher.shared.gallery).sample(count))).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IndexError> + Send + 'static,
) -> Result<T, IndexError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(IndexError::Storage("the index failed".into())))
}
