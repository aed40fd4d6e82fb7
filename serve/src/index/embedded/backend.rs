//! [`EmbeddedIndex`]: the parts of this module put together behind the [`Index`] trait.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use async_trait::async_trait;
use tokio::sync::{Semaphore, oneshot};

use super::super::error::IndexError;
use super::super::interface::Index;
use super::super::item::{ContentHash, EncoderIdentity, Hit, Item, ScoredId};
use super::super::options::OpenOptions;
use super::super::query::{ListQuery, Page, Query, Status};
use super::graph;
use super::graph_maintenance::{GraphFile, GraphMaintenance};
use super::item_table::ItemTable;
use super::search::Searcher;
use super::shared::Shared;
use super::store::{self, FORMAT, OpenedStore, Store, ThumbnailReader};
use super::writer::{self, Request, Work, WriteResult, Writer};

/// Searches that run at once; more wait.  Decoding needs blocking threads, too.
const CONCURRENT_SEARCHES: usize = 16;

/// The default index: everything that a search reads is in memory; with a folder, every change is on disk.
pub struct EmbeddedIndex {
    searcher: Arc<Searcher>,
    searches: Arc<Semaphore>,
    /// `None` for an index in memory.
    thumbnails: Option<Arc<ThumbnailReader>>,
    /// `None` for an index that was opened read-only.
    requests: Option<Sender<Request>>,
    writer: Option<JoinHandle<()>>,
    _graph_maintenance: GraphMaintenance,
}

impl EmbeddedIndex {
    /// An empty index that ends with the process.
    ///
    /// # Errors
    /// [`IndexError::Open`] if the system cannot start a thread.
    pub fn in_memory(encoder: EncoderIdentity, options: &OpenOptions) -> Result<Self, IndexError> {
        let shared = Shared::new(ItemTable::new(encoder.dim, 0), encoder, options.exact_up_to);
        let max_bytes = options.max_bytes;
        let writer = Writer { store: None, shared: shared.clone(), last_seq: 0, max_bytes };
        Self::start(shared, Some(writer), None, None)
    }

    /// Opens the index in a folder, or creates one there.
    ///
    /// # Errors
    /// [`IndexError::Open`] if another process has it open or it is damaged, [`IndexError::EncoderMismatch`].
    pub fn open(dir: &Path, encoder: &EncoderIdentity, options: &OpenOptions) -> Result<Self, IndexError> {
        let opened = Store::open(dir, encoder, options.max_bytes)?;
        let OpenedStore { mut store, thumbnails, table, encoder: holds, last_seq, identity } = opened;
        let items = table.len();
        let table = match items {
            _ if holds == *encoder => table,
            0 => {
                store.adopt(encoder)?;
                ItemTable::new(encoder.dim, 0)
            }
            _ => return Err(IndexError::EncoderMismatch { holds, items, given: encoder.clone() }),
        };
        let shared = Shared::new(table, encoder.clone(), options.exact_up_to);
        let file = GraphFile { path: dir.join(graph::FILE), identity };
        let writer = Writer { store: Some(store), shared: shared.clone(), last_seq, max_bytes: options.max_bytes };
        Self::start(shared, Some(writer), Some(thumbnails), Some(file))
    }

    /// Opens the index in a folder as it is now, read-only, beside the process that writes it; also returns the encoder of
    /// its vectors.
    ///
    /// # Errors
    /// [`IndexError::Open`].
    pub fn open_read_only(dir: &Path) -> Result<(Self, EncoderIdentity), IndexError> {
        let OpenedStore { thumbnails, table, encoder, .. } = Store::open_read_only(dir)?;
        let shared = Shared::new(table, encoder.clone(), usize::MAX);
        Ok((Self::start(shared, None, Some(thumbnails), None)?, encoder))
    }

    /// Copies an index as it is now into an empty or new folder, beside the process that writes it.  Returns the number of
    /// items.
    ///
    /// # Errors
    /// [`IndexError::Open`].
    pub fn back_up(dir: &Path, to: &Path) -> Result<usize, IndexError> {
        store::back_up(dir, to)
    }

    fn start(
        shared: Arc<Shared>,
        writer: Option<Writer>,
        thumbnails: Option<ThumbnailReader>,
        graph_file: Option<GraphFile>,
    ) -> Result<Self, IndexError> {
        let started = writer.map(writer::start).transpose()?;
        let (requests, writer) = started.map_or((None, None), |(requests, thread)| (Some(requests), Some(thread)));
        let graph_maintenance = GraphMaintenance::start(shared.clone(), graph_file);
        Ok(Self {
            searcher: Arc::new(Searcher::new(shared)),
            searches: Arc::new(Semaphore::new(CONCURRENT_SEARCHES)),
            thumbnails: thumbnails.map(Arc::new),
            requests,
            writer,
            _graph_maintenance: graph_maintenance,
        })
    }

    /// Sends work to the writer thread, which does it even if this future is dropped.
    async fn write(&self, work: Work) -> WriteResult {
        let (reply, answer) = oneshot::channel();
        let Some(requests) = &self.requests else {
            return Err(IndexError::Unavailable("the index was opened to be read only".into()));
        };
        let ended = || IndexError::Storage("the index's writer has ended".into());
        requests.send(Request { work, reply }).map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Runs a search on a blocking thread.
    async fn run_search<T: Send + 'static>(
        &self,
        search: impl FnOnce(&Searcher) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, IndexError> {
        let permit = self.searches.clone().acquire_owned().await;
        let searcher = self.searcher.clone();
        blocking(move || {
            // Held by the search and not by its caller: a search whose caller has gone still occupies a core.
            let _permit = permit;
            search(&searcher)
        })
        .await
    }

    /// [`Index::search`] on the calling thread.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn search_blocking(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError> {
        self.searcher.search(queries)
    }

    fn shared(&self) -> &Shared {
        &self.searcher.shared
    }
}

impl Drop for EmbeddedIndex {
    fn drop(&mut self) {
        // The writer ends when the last sender is dropped.
        self.requests = None;
        if let Some(thread) = self.writer.take() {
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl Index for EmbeddedIndex {
    fn kind(&self) -> &'static str {
        if self.thumbnails.is_some() { "folder" } else { "memory" }
    }

    fn format(&self) -> u32 {
        FORMAT
    }

    async fn status(&self) -> Result<Status, IndexError> {
        let table = self.shared().table();
        let nodes = table.nodes();
        let covered = nodes.graph().map(|_| table.len() - nodes.missing_items());
        Ok(Status { items: table.len(), approximate: covered })
    }

    async fn adopt(&self, encoder: &EncoderIdentity) -> Result<(), IndexError> {
        self.write(Work::Adopt(encoder.clone())).await.map(drop)
    }

    async fn put(
        &self,
        encoder: &EncoderIdentity,
        items: Vec<Item>,
    ) -> Result<Vec<Result<bool, IndexError>>, IndexError> {
        self.write(Work::Put(encoder.clone(), items)).await
    }

    async fn get(&self, id: &str) -> Result<Option<Item>, IndexError> {
        let Some((mut item, seq)) = self.shared().table().item(id) else { return Ok(None) };
        if let (true, Some(thumbnails)) = (item.has_image, self.thumbnails.clone()) {
            item.image = blocking(move || thumbnails.get(seq)).await?;
        }
        Ok(Some(item))
    }

    async fn delete(&self, id: &str) -> Result<bool, IndexError> {
        let outcome = self.write(Work::Delete(id.into())).await?;
        outcome.into_iter().next().unwrap_or(Ok(false))
    }

    async fn list(&self, query: ListQuery) -> Result<Page, IndexError> {
        let searcher = self.searcher.clone();
        blocking(move || Ok(searcher.shared.table().list(&query))).await
    }

    async fn search(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError> {
        self.run_search(move |searcher| searcher.search(queries)).await
    }

    async fn within(&self, query: Query, threshold: f32) -> Result<Vec<ScoredId>, IndexError> {
        self.run_search(move |searcher| searcher.within(&query, threshold)).await
    }

    async fn hits(&self, scored: Vec<ScoredId>) -> Result<Vec<Hit>, IndexError> {
        let table = self.shared().table();
        Ok(scored.iter().filter_map(|scored| table.hit(table.slot(&scored.id)?, scored.score)).collect())
    }

    async fn hashes(&self, ids: &[String]) -> Result<Vec<Option<ContentHash>>, IndexError> {
        let table = self.shared().table();
        Ok(ids.iter().map(|id| table.hash(id)).collect())
    }

    async fn sample(&self, count: usize) -> Result<Vec<Item>, IndexError> {
        let searcher = self.searcher.clone();
        blocking(move || Ok(searcher.shared.table().sample(count))).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IndexError> + Send + 'static,
) -> Result<T, IndexError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(IndexError::Storage("the index failed".into())))
}
