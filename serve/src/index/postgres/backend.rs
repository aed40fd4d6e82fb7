//! [`PostgresIndex`]: the parts of this module put together behind the [`Index`] trait.
//!
//! Work runs on threads of its own.  It is finished there even if its caller stops waiting, so no connection returns to the
//! pool with half a transaction.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use deadpool_postgres::Client;
use futures_util::StreamExt;
use futures_util::future::try_join;
use futures_util::stream;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::super::error::IndexError;
use super::super::interface::Index;
use super::super::item::{ContentHash, EncoderIdentity, Hit, Item, ScoredId};
use super::super::options::OpenOptions;
use super::super::query::{ListQuery, Page, Query, Status};
use super::address::Address;
use super::connector::{Connector, Retry};
use super::error::QueryError;
use super::graph_maintenance::GraphState;
use super::search::SearchContext;
use super::shared::Shared;
use super::statement::VectorTypes;
use super::writes::Batch;
use super::{graph_maintenance, reads, schema, writes};

/// Queries of one request that run at the same time.
const CONCURRENT_QUERIES: usize = 4;

/// An index in PostgreSQL with pgvector.
pub struct PostgresIndex {
    shared: Arc<Shared>,
    threads: Threads,
}

/// A runtime of its own.  Dropping it does not wait for its threads: waiting is not allowed on a thread of another runtime.
struct Threads(Option<Runtime>);

impl PostgresIndex {
    /// Connects, waiting for the server for as long as the options say, and creates the tables if there are none.
    ///
    /// # Errors
    /// [`IndexError::Open`] if the server does not answer or is not suitable, [`IndexError::EncoderMismatch`].
    pub fn open(address: &Address, encoder: &EncoderIdentity, options: &OpenOptions) -> Result<Self, IndexError> {
        let given = (address.clone(), encoder.clone());
        let prepare = move |mut client: Client| {
            let (address, encoder) = given.clone();
            async move {
                schema::prepare(&mut client, &address, &encoder).await?;
                Ok((VectorTypes::read(&client).await?, encoder))
            }
        };
        Self::start(address, options, false, prepare)
    }

    /// Connects to an existing index to read it; also returns the encoder of its vectors.
    ///
    /// # Errors
    /// [`IndexError::Open`].
    pub fn open_read_only(address: &Address) -> Result<(Self, EncoderIdentity), IndexError> {
        let given = address.clone();
        let read = move |client: Client| {
            let address = given.clone();
            async move {
                let encoder = schema::encoder_of(&client, &address).await?;
                Ok((VectorTypes::read(&client).await?, encoder))
            }
        };
        let index = Self::start(address, &OpenOptions::default(), true, read)?;
        let encoder = index.shared.encoder();
        Ok((index, encoder))
    }

    fn start<F>(
        address: &Address,
        options: &OpenOptions,
        read_only: bool,
        begin: impl Fn(Client) -> F + Send + Sync,
    ) -> Result<Self, IndexError>
    where
        F: Future<Output = Result<(VectorTypes, EncoderIdentity), QueryError>> + Send,
    {
        let threads = Threads::start()?;
        let connector = Connector::new(address, read_only)?;
        let opened = threads.wait(async {
            connector.wait_until_reachable(options.patience).await?;
            connector.perform(Retry::Yes, begin).await
        });
        let (types, encoder) = opened.map_err(|error| match error {
            IndexError::Unavailable(cause) | IndexError::Storage(cause) => {
                IndexError::Open(format!("cannot open {cause}"))
            }
            other => other,
        })?;
        let shared = Arc::new(Shared {
            connector,
            types,
            encoder: RwLock::new(encoder),
            // So that one more is still a bigint in SQL.
            exact_up_to: options.exact_up_to.min(1 << 40),
            has_graph: AtomicBool::new(false),
            written: Notify::new(),
            read_only,
        });
        threads.spawn(graph_maintenance::run(shared.clone()))?;
        Ok(Self { shared, threads })
    }

    /// Runs work on the index's own threads, to its end even if this future is dropped.
    async fn perform<T: Send + 'static, F>(
        &self,
        retry: Retry,
        work: impl Fn(Client) -> F + Send + Sync + 'static,
    ) -> Result<T, IndexError>
    where
        F: Future<Output = Result<T, QueryError>> + Send,
    {
        if retry == Retry::No && self.shared.read_only {
            return Err(IndexError::Unavailable("the index was opened to be read only".into()));
        }
        let shared = self.shared.clone();
        let done = self.threads.spawn(async move { shared.connector.perform(retry, work).await })?;
        done.await.unwrap_or_else(|_| Err(ended()))
    }

    /// The context of these queries, whose length it checks.
    fn search_context(&self, queries: &[Query]) -> Result<SearchContext, IndexError> {
        let encoder = self.shared.encoder();
        if let Some(wrong) = queries.iter().find(|query| query.vector.len() != encoder.dim) {
            return Err(IndexError::Dimension { expected: encoder.dim, found: wrong.vector.len() });
        }
        Ok(SearchContext {
            types: self.shared.types.clone(),
            encoder,
            exact_up_to: self.shared.exact_up_to,
            has_graph: self.shared.has_graph.load(Ordering::Relaxed),
        })
    }

    async fn search_one(&self, context: Arc<SearchContext>, query: Query) -> Result<Vec<Hit>, IndexError> {
        let query = Arc::new(query);
        let search = move |mut client: Client| {
            let (context, query) = (context.clone(), query.clone());
            async move { context.search(&mut client, &query).await }
        };
        self.perform(Retry::Yes, search).await
    }
}

impl Threads {
    fn start() -> Result<Self, IndexError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).thread_name("postgres").enable_all().build();
        let cannot = |e| IndexError::Open(format!("cannot start the index's threads: {e}"));
        runtime.map(|runtime| Self(Some(runtime))).map_err(cannot)
    }

    /// Starts work in the background.
    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<JoinHandle<T>, IndexError> {
        self.0.as_ref().map(|runtime| runtime.spawn(work)).ok_or_else(ended)
    }

    /// Blocks until work is done.  It blocks on a new thread: the caller's may belong to a runtime.
    fn wait<T: Send>(&self, work: impl Future<Output = Result<T, IndexError>> + Send) -> Result<T, IndexError> {
        let Some(runtime) = &self.0 else { return Err(ended()) };
        std::thread::scope(|scope| scope.spawn(|| runtime.block_on(work)).join()).unwrap_or_else(|_| Err(ended()))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn ended() -> IndexError {
    IndexError::Storage("the index's threads have ended".into())
}

#[async_trait]
impl Index for PostgresIndex {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn format(&self) -> u32 {
        schema::FORMAT as u32
    }

    async fn status(&self) -> Result<Status, IndexError> {
        let look = |client: Client| async move {
            let (items, graph) = try_join(schema::count(&client), graph_maintenance::graph_state(&client)).await?;
            Ok(Status { items, approximate: (graph == GraphState::Ready).then_some(items) })
        };
        self.perform(Retry::Yes, look).await
    }

    async fn adopt(&self, encoder: &EncoderIdentity) -> Result<(), IndexError> {
        let given = encoder.clone();
        let adopt = move |mut client: Client| {
            let given = given.clone();
            async move { schema::adopt(&mut client, &given).await }
        };
        self.perform(Retry::No, adopt).await?;
        *self.shared.encoder.write().unwrap_or_else(PoisonError::into_inner) = encoder.clone();
        Ok(())
    }

    async fn put(
        &self,
        encoder: &EncoderIdentity,
        items: Vec<Item>,
    ) -> Result<Vec<Result<bool, IndexError>>, IndexError> {
        let given = (Arc::new(Batch::new(encoder, items)), self.shared.types.clone());
        let put = move |mut client: Client| {
            let (batch, types) = given.clone();
            async move { batch.put(&mut client, &types).await }
        };
        let outcomes = self.perform(Retry::No, put).await?;
        self.shared.written.notify_one();
        Ok(outcomes)
    }

    async fn get(&self, id: &str) -> Result<Option<Item>, IndexError> {
        let Some(id) = storable(id) else { return Ok(None) };
        let get = move |client: Client| {
            let id = id.clone();
            async move { reads::get(&client, &id).await }
        };
        self.perform(Retry::Yes, get).await
    }

    async fn delete(&self, id: &str) -> Result<bool, IndexError> {
        let Some(id) = storable(id) else { return Ok(false) };
        let delete = move |client: Client| {
            let id = id.clone();
            async move { writes::delete(&client, &id).await }
        };
        self.perform(Retry::No, delete).await
    }

    async fn list(&self, query: ListQuery) -> Result<Page, IndexError> {
        let query = Arc::new(query);
        let list = move |client: Client| {
            let query = query.clone();
            async move { reads::list(&client, &query).await }
        };
        self.perform(Retry::Yes, list).await
    }

    async fn search(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError> {
        let context = Arc::new(self.search_context(&queries)?);
        let answers = queries.into_iter().map(|query| self.search_one(context.clone(), query));
        let answers: Vec<_> = stream::iter(answers).buffered(CONCURRENT_QUERIES).collect().await;
        answers.into_iter().collect()
    }

    async fn within(&self, query: Query, threshold: f32) -> Result<Vec<ScoredId>, IndexError> {
        let (context, query) = (Arc::new(self.search_context(std::slice::from_ref(&query))?), Arc::new(query));
        let within = move |client: Client| {
            let (context, query) = (context.clone(), query.clone());
            async move { context.within(&client, &query, threshold).await }
        };
        self.perform(Retry::Yes, within).await
    }

    async fn hits(&self, scored: Vec<ScoredId>) -> Result<Vec<Hit>, IndexError> {
        let scored: Arc<[ScoredId]> = scored.into();
        let hits = move |client: Client| {
            let scored = scored.clone();
            async move { reads::hits(&client, &scored).await }
        };
        self.perform(Retry::Yes, hits).await
    }

    async fn hashes(&self, ids: &[String]) -> Result<Vec<Option<ContentHash>>, IndexError> {
        let ids: Arc<[String]> = ids.into();
        let hashes = move |client: Client| {
            let ids = ids.clone();
            async move { reads::hashes(&client, &ids).await }
        };
        self.perform(Retry::Yes, hashes).await
    }

    async fn sample(&self, count: usize) -> Result<Vec<Item>, IndexError> {
        let sample = move |client: Client| async move { reads::sample(&client, count).await };
        self.perform(Retry::Yes, sample).await
    }
}

/// The id, unless no item can have it: PostgreSQL cannot store U+0000 in a text.
fn storable(id: &str) -> Option<String> {
    (!id.contains('\0')).then(|| id.to_string())
}
