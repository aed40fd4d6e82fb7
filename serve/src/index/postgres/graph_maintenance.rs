//! A task that builds the graph (HNSW) for approximate searches.
//!
//! The graph is built once there are more than `exact_up_to` items; with fewer, comparing all of them is fast and exact.  It
//! is built after a bulk load and not during it: PostgreSQL inserts a row into an existing graph many times slower than it
//! builds the graph of all rows at once, on several cores.  Building blocks neither readers nor writers.  Afterwards
//! PostgreSQL updates the graph in the transactions that change items.
//!
//! Every replica checks whether a graph is needed.  An advisory lock lets one of them build it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::super::error::IndexError;
use super::connector::Retry;
use super::error::{QueryError, is_lost, is_out_of_connections, message};
use super::schema;
use super::shared::Shared;

/// Time between two checks while this process changes nothing: another one may have built or dropped the graph.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// Time from a change to the next check, and between two measurements of a load.
const LOAD_INTERVAL: Duration = Duration::from_millis(500);
/// A load that never ends postpones building for no longer than this.
const LONGEST_LOAD: Duration = Duration::from_secs(600);
/// pgvector's limit for a graph over `vector`; searches of longer vectors are exact.
const MAX_DIMENSIONS: usize = 2000;
/// Bytes that building may take, even if the server's setting is lower.
const MAX_MEMORY: usize = 1 << 30;

const LOCK: &str = "SELECT pg_try_advisory_lock(hashtextextended('macrl graph of ' || current_schema(), 0))";
const BUILD: &str = "CREATE INDEX CONCURRENTLY macrl_items_graph ON macrl_items USING hnsw (vector vector_cosine_ops) \
                     WITH (m = 16, ef_construction = 100)";

/// Whether there is a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GraphState {
    /// There is none.
    Missing,
    /// Its building was interrupted.
    Unfinished,
    /// Searches can use it.
    Ready,
}

/// Looks the graph up in the catalogue.
pub(super) async fn graph_state(client: &Client) -> Result<GraphState, Error> {
    let asked = format!("SELECT indisvalid FROM pg_index WHERE indexrelid = {}", schema::oid("macrl_items_graph"));
    let valid: Option<bool> = client.query_typed_opt(&asked, &[]).await?.map(|row| row.try_get(0)).transpose()?;
    Ok(match valid {
        None => GraphState::Missing,
        Some(false) => GraphState::Unfinished,
        Some(true) => GraphState::Ready,
    })
}

/// Checks whether a graph is needed and builds it, until the index is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        if let Err(error) = check(&shared).await {
            tracing::warn!("the graph in {}: {error}", shared.connector.address());
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        let _ = tokio::time::timeout(CHECK_INTERVAL, shared.written.notified()).await;
        tokio::time::sleep(LOAD_INTERVAL).await;
    }
}

async fn check(shared: &Shared) -> Result<(), IndexError> {
    let exact_up_to = shared.exact_up_to;
    let look = move |client: deadpool_postgres::Client| async move {
        let graph = graph_state(&client).await?;
        let needed = graph != GraphState::Ready && has_more_than(&client, exact_up_to).await?;
        Ok((graph, needed))
    };
    let (graph, needed) = shared.connector.perform(Retry::Yes, look).await?;
    shared.has_graph.store(graph == GraphState::Ready, Ordering::Relaxed);
    let dim = shared.encoder().dim;
    if !needed || dim > MAX_DIMENSIONS || shared.read_only {
        return Ok(());
    }
    wait_for_end_of_load(shared).await?;
    match build(shared, dim).await {
        Ok(built) => {
            shared.has_graph.fetch_or(built, Ordering::Relaxed);
            Ok(())
        }
        // The next check tries again.
        Err(QueryError::Database(error)) if is_lost(&error) || is_out_of_connections(&error) => Ok(()),
        Err(QueryError::Database(error)) => Err(IndexError::Storage(message(&error))),
        Err(QueryError::Index(error)) => Err(error),
    }
}

async fn has_more_than(client: &Client, items: usize) -> Result<bool, Error> {
    let asked = format!("SELECT count(*) FROM (SELECT FROM macrl_items LIMIT {}) AS first", items + 1);
    let row = client.query_typed_one(&asked, &[]).await?;
    Ok(row.try_get::<_, i64>(0)? as usize > items)
}

/// Waits while any process loads many items.
async fn wait_for_end_of_load(shared: &Shared) -> Result<(), IndexError> {
    let since = Instant::now();
    let mut before = None;
    while since.elapsed() < LONGEST_LOAD {
        let now = shared.connector.perform(Retry::Yes, rows_written).await?;
        // A fiftieth of all rows that were ever written, within half a second, is a load.
        if before.is_some_and(|before| now - before <= now / 50) {
            return Ok(());
        }
        before = Some(now);
        tokio::time::sleep(LOAD_INTERVAL).await;
    }
    Ok(())
}

/// Number of rows that any process has ever written, by the server's statistics.
async fn rows_written(client: deadpool_postgres::Client) -> Result<i64, QueryError> {
    let table = schema::oid("macrl_items");
    let asked = format!("SELECT n_tup_ins + n_tup_upd FROM pg_stat_all_tables WHERE relid = {table}");
    let row = client.query_typed_opt(&asked, &[]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.unwrap_or(0))
}

/// Builds the graph; returns whether there is one.  There is none yet if another process is building it.
async fn build(shared: &Shared, dim: usize) -> Result<bool, QueryError> {
    let client = shared.connector.dedicated().await?;
    if !client.query_typed_one(LOCK, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(false);
    }
    if graph_state(&client).await? == GraphState::Ready {
        return Ok(true);
    }
    let since = Instant::now();
    client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await?;
    client.batch_execute("DROP INDEX CONCURRENTLY IF EXISTS macrl_items_graph").await?;
    client.batch_execute("ANALYZE macrl_items").await?;
    let items = schema::count(&client).await?;
    raise_memory(&client, items, dim).await?;
    if let Err(error) = client.batch_execute(BUILD).await {
        // Parallel workers use shared memory, of which containers have little: try again with one process.
        let kinds = [SqlState::DISK_FULL, SqlState::OUT_OF_MEMORY];
        if !error.code().is_some_and(|code| kinds.contains(code)) {
            return Err(error.into());
        }
        client.batch_execute("DROP INDEX CONCURRENTLY IF EXISTS macrl_items_graph").await?;
        client.batch_execute("SET max_parallel_maintenance_workers = 0").await?;
        client.batch_execute(BUILD).await?;
    }
    tracing::info!("graph of {items} items built in {:.1} s", since.elapsed().as_secs_f64());
    Ok(true)
}

/// Allows as much memory as building takes, about; with less, it is many times slower.
async fn raise_memory(client: &Client, items: usize, dim: usize) -> Result<(), Error> {
    let asked = "SELECT pg_size_bytes(current_setting('maintenance_work_mem'))";
    let allowed = client.query_typed_one(asked, &[]).await?.try_get::<_, i64>(0)? as usize;
    let needed = (items.saturating_mul(4 * dim + 700)).min(MAX_MEMORY);
    if needed <= allowed {
        return Ok(());
    }
    client.batch_execute(&format!("SET maintenance_work_mem = '{}kB'", needed / 1024)).await
}
