//! A pool of connections that recovers from an outage by itself.
//!
//! Connections are opened when they are needed, and kept.  While none can be opened, callers are refused at once; after a
//! pause, which doubles up to two seconds, one caller tries again.  So a server that comes up is not flooded.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::{
    Client, Hook, HookError, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime, TimeoutType, Timeouts,
};
use tokio_postgres::Error;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::error::IndexError;
use super::address::Address;
use super::error::{QueryError, is_conflict, is_lost, is_out_of_connections, message, to_index_error};
use super::tls;

/// Settings of every connection of the pool.  A statement that nobody waits for ends.  Compiling a statement would take
/// longer than running it.  A search with a filter goes on until it has enough items.  A write is on disk when it is
/// answered, whatever the server's or the role's setting.
const SESSION: &str = "
    SET statement_timeout = '60s';
    SET jit = off;
    SET hnsw.ef_search = 200;
    SET hnsw.iterative_scan = relaxed_order;
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
";
const READ_ONLY: &str = "SET default_transaction_read_only = on;";

/// Time to wait for a free connection of the pool.
const POOL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one piece of work; longer than `statement_timeout`.
const WORK_TIMEOUT: Duration = Duration::from_secs(70);
/// Shortest and longest pause between attempts to connect.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Attempts after the server rolled work back because it conflicted with another transaction.
const MAX_CONFLICTS: u32 = 8;
/// Attempts after the connection was lost.
const MAX_LOST: u32 = 3;

/// Whether work is repeated after its connection was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// Yes: it only reads.
    Yes,
    /// No: it writes, and whether it was committed is not known.  The result of a repetition would not say which of the two
    /// made the change.
    No,
}

/// The pause between attempts to connect during an outage.
#[derive(Default)]
struct Backoff {
    /// Failed attempts since the last success.
    failures: u32,
    /// No attempt is made before this moment.
    until: Option<Instant>,
    cause: String,
}

/// The pool of connections to one database.
pub(super) struct Connector {
    address: Address,
    tls: MakeRustlsConnect,
    pool: Pool,
    backoff: Mutex<Backoff>,
}

impl Connector {
    /// A pool without connections.
    ///
    /// # Errors
    /// [`IndexError::Open`] if the certificates that the address names cannot be read.
    pub(super) fn new(address: &Address, read_only: bool) -> Result<Self, IndexError> {
        let open = |cause: String| IndexError::Open(format!("cannot open {address}: {cause}"));
        let tls = tls::connector(&address.trust).map_err(open)?;
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(address.config.clone(), tls.clone(), config);
        let set_up = if read_only { format!("{SESSION}{READ_ONLY}") } else { SESSION.into() };
        let hook = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
            let set_up = set_up.clone();
            Box::pin(async move { client.batch_execute(&set_up).await.map_err(HookError::Backend) })
        });
        let pool = Pool::builder(manager)
            .max_size(address.connections)
            .runtime(Runtime::Tokio1)
            // The connect timeout also limits the handshake, as in libpq.
            .timeouts(Timeouts {
                wait: Some(POOL_TIMEOUT),
                create: address.config.get_connect_timeout().copied(),
                recycle: None,
            })
            .post_create(hook)
            .build();
        let pool = pool.map_err(|e| open(e.to_string()))?;
        Ok(Self { address: address.clone(), tls, pool, backoff: Mutex::default() })
    }

    /// Address of the database that it connects to.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// A new connection outside of the pool, without its settings.
    pub(super) async fn dedicated(&self) -> Result<tokio_postgres::Client, Error> {
        let (client, connection) = self.address.config.connect(self.tls.clone()).await?;
        // It ends with the client, which also reports its errors.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Waits until the database can be reached, for at most `patience`.
    ///
    /// # Errors
    /// [`IndexError::Open`]; at once if waiting does not help.
    pub(super) async fn wait_until_reachable(&self, patience: Duration) -> Result<(), IndexError> {
        let since = Instant::now();
        let mut pause = MIN_PAUSE;
        loop {
            let Err(error) = self.pool.get().await else { return Ok(()) };
            let (cause, may_pass) = explain(&error);
            if !may_pass || since.elapsed() + pause > patience {
                let tried = since.elapsed().as_secs();
                let tried = if tried > 0 { format!(" (tried for {tried} s)") } else { String::new() };
                return Err(IndexError::Open(format!("cannot open {}: {cause}{tried}", self.address)));
            }
            if pause == MIN_PAUSE {
                tracing::warn!("waiting for {}: {cause}", self.address);
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(MAX_PAUSE);
        }
    }

    /// Does work over one connection, repeating it after a conflict and, if allowed, after a lost connection.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`] if the server cannot be reached or the connection is lost; the work's own errors.
    pub(super) async fn perform<T, F>(&self, retry: Retry, work: impl Fn(Client) -> F) -> Result<T, IndexError>
    where
        F: Future<Output = Result<T, QueryError>>,
    {
        let (mut conflicts, mut lost) = (0, 0);
        loop {
            let client = self.client().await?;
            let error = match tokio::time::timeout(WORK_TIMEOUT, work(client)).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(QueryError::Index(error))) => return Err(error),
                Ok(Err(QueryError::Database(error))) => error,
                Err(_) => {
                    self.pool.retain(|_, _| false);
                    let silent = format!("{}: no answer within {} s", self.address, WORK_TIMEOUT.as_secs());
                    return Err(IndexError::Unavailable(silent));
                }
            };
            if is_lost(&error) {
                // The pool's other connections are probably lost, too.
                self.pool.retain(|_, _| false);
            }
            if is_conflict(&error) && conflicts < MAX_CONFLICTS {
                conflicts += 1;
                tokio::time::sleep(jitter(conflicts)).await;
            } else if is_lost(&error) && retry == Retry::Yes && lost < MAX_LOST {
                lost += 1;
            } else {
                return Err(to_index_error(&self.address, &error));
            }
        }
    }

    async fn client(&self) -> Result<Client, IndexError> {
        // An open connection may be used during an outage.
        if self.pool.status().available == 0 {
            self.may_connect()?;
        }
        match self.pool.get().await {
            Ok(client) => {
                self.connected();
                Ok(client)
            }
            Err(PoolError::Timeout(TimeoutType::Wait)) => {
                let busy = format!("{}: all {} connections are busy", self.address, self.address.connections);
                Err(IndexError::Unavailable(busy))
            }
            Err(error) => Err(self.failed(&explain(&error).0)),
        }
    }

    fn backoff(&self) -> MutexGuard<'_, Backoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this caller may try to connect now.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`] during the pause after a failed attempt.
    fn may_connect(&self) -> Result<(), IndexError> {
        let mut backoff = self.backoff();
        match backoff.until {
            Some(until) if Instant::now() < until => {
                Err(IndexError::Unavailable(format!("{}: {}", self.address, backoff.cause)))
            }
            Some(_) => {
                // Other callers wait until this attempt has succeeded or failed.
                backoff.until = Some(Instant::now() + MAX_PAUSE);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn connected(&self) {
        let mut backoff = self.backoff();
        if backoff.failures > 0 {
            tracing::warn!("{} answers again", self.address);
            *backoff = Backoff::default();
        }
    }

    fn failed(&self, cause: &str) -> IndexError {
        let mut backoff = self.backoff();
        if backoff.failures == 0 {
            tracing::error!("{} does not answer: {cause}", self.address);
        }
        backoff.failures += 1;
        let pause = MIN_PAUSE.saturating_mul(1 << backoff.failures.min(10)).min(MAX_PAUSE);
        backoff.until = Some(Instant::now() + pause);
        backoff.cause = cause.into();
        IndexError::Unavailable(format!("{}: {cause}", self.address))
    }
}

/// Why there is no connection, and whether there may be one later.
fn explain(error: &PoolError) -> (String, bool) {
    match error {
        PoolError::Backend(e) | PoolError::PostCreateHook(HookError::Backend(e)) => {
            (message(e), is_lost(e) || is_out_of_connections(e))
        }
        PoolError::Timeout(_) => ("it takes connections and does not answer".into(), true),
        other => (other.to_string(), false),
    }
}

/// A pause of some milliseconds, different for every caller: transactions that collided should not meet again.
fn jitter(attempt: u32) -> Duration {
    let noise = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    Duration::from_micros(u64::from(noise % 4000) * u64::from(attempt))
}
