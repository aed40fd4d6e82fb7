//! An index in PostgreSQL with pgvector: any number of servers share it, and it holds more than one machine's memory.
//!
//! Nothing is kept here but connections: every answer is the data base's.  [`address`] says where it is, [`connector`]
//! comes back to it, [`schema`] makes its tables, [`conditions`] turn filters into SQL, [`search`], [`reads`] and
//! [`writes`] are the trait's functions, and [`keeper`] builds the graph.
//!
//! Work runs on threads of its own.  Whoever gives up waiting leaves it to be finished there, so that no connection goes
//! back with half a transaction.

mod address;
mod conditions;
mod connector;
mod fault;
mod keeper;
mod reads;
mod rows;
mod schema;
mod search;
mod statement;
mod tls;
mod writes;

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

use super::{ContentHash, Encoder, Hit, Index, IndexError, Item, Listing, Near, OpenOptions, Page, Query, Status};
pub use address::Address;
use connector::{Again, Connector};
use fault::Fault;
use search::Asker;
use statement::Types;
use writes::Batch;

/// Queries of one request that run at the same time.
const LANES: usize = 4;

/// What requests and the keeper share.
struct Shared {
    connector: Connector,
    types: Types,
    encoder: RwLock<Encoder>,
    exact_up_to: usize,
    /// Whether there is a graph, when last looked at.
    graph: AtomicBool,
    /// Items were put.
    written: Notify,
    read_only: bool,
}

/// See the module's documentation.
pub struct PostgresIndex {
    shared: Arc<Shared>,
    threads: Threads,
}

/// Threads that end without being waited for: waiting is not allowed on a thread of another runtime.
struct Threads(Option<Runtime>);

impl Shared {
    fn encoder(&self) -> Encoder {
        self.encoder.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl PostgresIndex {
    /// Connects, waiting for the server for as long as the options say, and makes the tables where there are none.
    ///
    /// # Errors
    /// [`IndexError::Open`] where the server does not answer or is not what it should be, [`IndexError::Encoder`].
    pub fn open(address: &Address, encoder: &Encoder, options: &OpenOptions) -> Result<Self, IndexError> {
        let given = (address.clone(), encoder.clone());
        let prepare = move |mut client: Client| {
            let (address, encoder) = given.clone();
            async move {
                schema::prepare(&mut client, &address, &encoder).await?;
                Ok((Types::read(&client).await?, encoder))
            }
        };
        Self::start(address, options, false, prepare)
    }

    /// Connects to an index that is there, to read it; also whose vectors it holds.
    ///
    /// # Errors
    /// [`IndexError::Open`].
    pub fn open_to_read(address: &Address) -> Result<(Self, Encoder), IndexError> {
        let given = address.clone();
        let read = move |client: Client| {
            let address = given.clone();
            async move {
                let encoder = schema::encoder_of(&client, &address).await?;
                Ok((Types::read(&client).await?, encoder))
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
        F: Future<Output = Result<(Types, Encoder), Fault>> + Send,
    {
        let threads = Threads::start()?;
        let connector = Connector::new(address, read_only)?;
        let opened = threads.wait(async {
            connector.arrive(options.patience).await?;
            connector.perform(Again::Yes, begin).await
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
            // As far as SQL can count.
            exact_up_to: options.exact_up_to.min(1 << 40),
            graph: AtomicBool::new(false),
            written: Notify::new(),
            read_only,
        });
        threads.spawn(keeper::keep(shared.clone()))?;
        Ok(Self { shared, threads })
    }

    /// Leaves work to the index's own threads; it is done even where nobody awaits it any more.
    async fn perform<T: Send + 'static, F>(
        &self,
        again: Again,
        work: impl Fn(Client) -> F + Send + Sync + 'static,
    ) -> Result<T, IndexError>
    where
        F: Future<Output = Result<T, Fault>> + Send,
    {
        if again == Again::No && self.shared.read_only {
            return Err(IndexError::Unavailable("the index was opened to be read only".into()));
        }
        let shared = self.shared.clone();
        let done = self.threads.spawn(async move { shared.connector.perform(again, work).await })?;
        done.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Who asks these queries.
    fn asker(&self, queries: &[Query]) -> Result<Asker, IndexError> {
        let encoder = self.shared.encoder();
        if let Some(wrong) = queries.iter().find(|query| query.vector.len() != encoder.dim) {
            return Err(IndexError::Dimension { expected: encoder.dim, found: wrong.vector.len() });
        }
        Ok(Asker {
            types: self.shared.types.clone(),
            encoder,
            exact_up_to: self.shared.exact_up_to,
            graph: self.shared.graph.load(Ordering::Relaxed),
        })
    }

    async fn search_one(&self, asker: Arc<Asker>, query: Query) -> Result<Vec<Hit>, IndexError> {
        let query = Arc::new(query);
        let search = move |mut client: Client| {
            let (asker, query) = (asker.clone(), query.clone());
            async move { asker.search(&mut client, &query).await }
        };
        self.perform(Again::Yes, search).await
    }
}

impl Threads {
    fn start() -> Result<Self, IndexError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).thread_name("postgres").enable_all().build();
        let cannot = |e| IndexError::Open(format!("cannot start the index's threads: {e}"));
        runtime.map(|runtime| Self(Some(runtime))).map_err(cannot)
    }

    /// Begins work.
    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<JoinHandle<T>, IndexError> {
        self.0.as_ref().map(|runtime| runtime.spawn(work)).ok_or_else(ended)
    }

    /// Blocks until work is done, on a thread that may be blocked: the caller's may belong to a runtime.
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
            let (items, graph) = try_join(schema::count(&client), keeper::graph(&client)).await?;
            Ok(Status { items, approximate: (graph == Some(true)).then_some(items) })
        };
        self.perform(Again::Yes, look).await
    }

    async fn adopt(&self, encoder: &Encoder) -> Result<(), IndexError> {
        let given = encoder.clone();
        let adopt = move |mut client: Client| {
            let given = given.clone();
            async move { schema::adopt(&mut client, &given).await }
        };
        self.perform(Again::No, adopt).await?;
        *self.shared.encoder.write().unwrap_or_else(PoisonError::into_inner) = encoder.clone();
        Ok(())
    }

    async fn put(&self, encoder: &Encoder, items: Vec<Item>) -> Result<Vec<Result<bool, IndexError>>, IndexError> {
        let given = (Arc::new(Batch::new(encoder, items)), self.shared.types.clone());
        let put = move |mut client: Client| {
            let (batch, types) = given.clone();
            async move { batch.put(&mut client, &types).await }
        };
        let outcomes = self.perform(Again::No, put).await?;
        self.shared.written.notify_one();
        Ok(outcomes)
    }

    async fn get(&self, id: &str) -> Result<Option<Item>, IndexError> {
        let Some(id) = possible(id) else { return Ok(None) };
        let get = move |client: Client| {
            let id = id.clone();
            async move { reads::get(&client, &id).await }
        };
        self.perform(Again::Yes, get).await
    }

    async fn delete(&self, id: &str) -> Result<bool, IndexError> {
        let Some(id) = possible(id) else { return Ok(false) };
        let delete = move |client: Client| {
            let id = id.clone();
            async move { writes::delete(&client, &id).await }
        };
        self.perform(Again::No, delete).await
    }

    async fn list(&self, listing: Listing) -> Result<Page, IndexError> {
        let listing = Arc::new(listing);
        let list = move |client: Client| {
            let listing = listing.clone();
            async move { reads::list(&client, &listing).await }
        };
        self.perform(Again::Yes, list).await
    }

    async fn search(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError> {
        let asker = Arc::new(self.asker(&queries)?);
        let answers = queries.into_iter().map(|query| self.search_one(asker.clone(), query));
        let answers: Vec<_> = stream::iter(answers).buffered(LANES).collect().await;
        answers.into_iter().collect()
    }

    async fn within(&self, query: Query, threshold: f32) -> Result<Vec<Near>, IndexError> {
        let (asker, query) = (Arc::new(self.asker(std::slice::from_ref(&query))?), Arc::new(query));
        let within = move |client: Client| {
            let (asker, query) = (asker.clone(), query.clone());
            async move { asker.within(&client, &query, threshold).await }
        };
        self.perform(Again::Yes, within).await
    }

    async fn describe(&self, near: Vec<Near>) -> Result<Vec<Hit>, IndexError> {
        let near: Arc<[Near]> = near.into();
        let describe = move |client: Client| {
            let near = near.clone();
            async move { reads::describe(&client, &near).await }
        };
        self.perform(Again::Yes, describe).await
    }

    async fn hashes(&self, ids: &[String]) -> Result<Vec<Option<ContentHash>>, IndexError> {
        let ids: Arc<[String]> = ids.into();
        let hashes = move |client: Client| {
            let ids = ids.clone();
            async move { reads::hashes(&client, &ids).await }
        };
        self.perform(Again::Yes, hashes).await
    }

    async fn sample(&self, count: usize) -> Result<Vec<Item>, IndexError> {
        let sample = move |client: Client| async move { reads::sample(&client, count).await };
        self.perform(Again::Yes, sample).await
    }
}

/// The id, unless no item can have it: PostgreSQL's texts know no U+0000.
fn possible(id: &str) -> Option<String> {
    (!id.contains('\0')).then(|| id.to_string())
}
