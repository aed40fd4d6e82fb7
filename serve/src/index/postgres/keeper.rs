//! The graph (HNSW) that makes searches of many items quick: a task that builds it when it is worth it.
//!
//! It is built above `exact_up_to` items and not from the beginning: below, comparing all of them is quick and exact.
//! And it is built when a load is over and not during it: PostgreSQL puts a row into a graph that is there many times
//! slower than it builds the graph of all rows at once, on several cores.  Building shuts out nobody; afterwards
//! PostgreSQL keeps the graph itself, in the transactions that change items.
//!
//! Every replica looks; an advisory lock, held by the connection that builds, lets one of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::super::IndexError;
use super::connector::Again;
use super::fault::{Fault, is_crowded, is_lost, said};
use super::{Shared, schema};

/// Where nothing changes here, others may have built or dropped it.
const LOOK: Duration = Duration::from_secs(30);
/// After a change, and between two looks at how fast a load goes.
const CALM: Duration = Duration::from_millis(500);
/// A load that never ends does not put it off for longer.
const LONGEST_LOAD: Duration = Duration::from_secs(600);
/// pgvector's limit for a graph over `vector`; searches of longer ones are exact.
const MOST_DIMENSIONS: usize = 2000;
/// Bytes that building may take where the server's own setting is lower.
const MOST_MEMORY: usize = 1 << 30;

const LOCK: &str = "SELECT pg_try_advisory_lock(hashtextextended('macrl graph of ' || current_schema(), 0))";
const BUILD: &str = "CREATE INDEX CONCURRENTLY macrl_items_graph ON macrl_items USING hnsw (vector vector_cosine_ops) \
                     WITH (m = 16, ef_construction = 100)";

/// Whether there is a graph: `Some(false)` is one whose building was interrupted.
pub(super) async fn graph(client: &Client) -> Result<Option<bool>, Error> {
    let asked = format!("SELECT indisvalid FROM pg_index WHERE indexrelid = {}", schema::oid("macrl_items_graph"));
    client.query_typed_opt(&asked, &[]).await?.map(|row| row.try_get(0)).transpose()
}

/// Looks after the graph until the index is dropped.
pub(super) async fn keep(shared: Arc<Shared>) {
    loop {
        if let Err(fault) = look(&shared).await {
            tracing::warn!("the graph in {}: {fault}", shared.connector.address());
            tokio::time::sleep(LOOK).await;
        }
        let _ = tokio::time::timeout(LOOK, shared.written.notified()).await;
        tokio::time::sleep(CALM).await;
    }
}

async fn look(shared: &Shared) -> Result<(), IndexError> {
    let enough = shared.exact_up_to;
    let look = move |client: deadpool_postgres::Client| async move {
        let graph = graph(&client).await?;
        let many = graph != Some(true) && is_more_than(&client, enough).await?;
        Ok((graph, many))
    };
    let (graph, many) = shared.connector.perform(Again::Yes, look).await?;
    shared.graph.store(graph == Some(true), Ordering::Relaxed);
    let dim = shared.encoder().dim;
    if !many || dim > MOST_DIMENSIONS || shared.read_only {
        return Ok(());
    }
    calm(shared).await?;
    match build(shared, dim).await {
        Ok(built) => {
            shared.graph.fetch_or(built, Ordering::Relaxed);
            Ok(())
        }
        // The next look finds out.
        Err(Fault::Database(error)) if is_lost(&error) || is_crowded(&error) => Ok(()),
        Err(Fault::Database(error)) => Err(IndexError::Storage(said(&error))),
        Err(Fault::Index(error)) => Err(error),
    }
}

async fn is_more_than(client: &Client, items: usize) -> Result<bool, Error> {
    let asked = format!("SELECT count(*) FROM (SELECT FROM macrl_items LIMIT {}) AS first", items + 1);
    let row = client.query_typed_one(&asked, &[]).await?;
    Ok(row.try_get::<_, i64>(0)? as usize > items)
}

/// Waits while anybody loads many items.
async fn calm(shared: &Shared) -> Result<(), IndexError> {
    let since = Instant::now();
    let mut before = None;
    while since.elapsed() < LONGEST_LOAD {
        let now = shared.connector.perform(Again::Yes, written).await?;
        // A fiftieth of all that was ever written, in half a second, is a load.
        if before.is_some_and(|before| now - before <= now / 50) {
            return Ok(());
        }
        before = Some(now);
        tokio::time::sleep(CALM).await;
    }
    Ok(())
}

/// Rows that were ever written, by anybody, as far as the server has counted.
async fn written(client: deadpool_postgres::Client) -> Result<i64, Fault> {
    let table = schema::oid("macrl_items");
    let asked = format!("SELECT n_tup_ins + n_tup_upd FROM pg_stat_all_tables WHERE relid = {table}");
    let row = client.query_typed_opt(&asked, &[]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.unwrap_or(0))
}

/// Whether the graph is there; not where somebody else is building it.
async fn build(shared: &Shared, dim: usize) -> Result<bool, Fault> {
    let client = shared.connector.alone().await?;
    if !client.query_typed_one(LOCK, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(false);
    }
    if graph(&client).await? == Some(true) {
        return Ok(true);
    }
    let since = Instant::now();
    client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await?;
    client.batch_execute("DROP INDEX CONCURRENTLY IF EXISTS macrl_items_graph").await?;
    client.batch_execute("ANALYZE macrl_items").await?;
    let items = schema::count(&client).await?;
    give_memory(&client, items, dim).await?;
    if let Err(error) = client.batch_execute(BUILD).await {
        // Several workers share memory of a kind that containers have little of.
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

/// As much as the graph takes while it is built, about: past it building gets many times slower.
async fn give_memory(client: &Client, items: usize, dim: usize) -> Result<(), Error> {
    let asked = "SELECT pg_size_bytes(current_setting('maintenance_work_mem'))";
    let has = client.query_typed_one(asked, &[]).await?.try_get::<_, i64>(0)? as usize;
    let takes = (items.saturating_mul(4 * dim + 700)).min(MOST_MEMORY);
    if takes <= has {
        return Ok(());
    }
    client.batch_execute(&format!("SET maintenance_work_mem = '{}kB'", takes / 1024)).await
}
