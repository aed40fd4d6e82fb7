//! A pool of connections that comes back by itself.
//!
//! Connections are made when they are needed and kept.  While none can be made, callers are refused at once and one
//! of them tries again after a pause that doubles up to two seconds: a server that comes up is not met by a crowd.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::{
    Client, Hook, HookError, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime, TimeoutType, Timeouts,
};
use tokio_postgres::Error;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::IndexError;
use super::address::Address;
use super::fault::{Fault, explain, is_conflict, is_crowded, is_lost, said};
use super::tls;

/// What every connection of the pool is told.  The server ends what nobody waits for any more; compiling a statement
/// takes longer than running it; a search that meets a filter goes on until it has enough; and an answered write is
/// on disk, whatever the server's or the role's setting.
const SESSION: &str = "
    SET statement_timeout = '60s';
    SET jit = off;
    SET hnsw.ef_search = 200;
    SET hnsw.iterative_scan = relaxed_order;
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
";
const READ_ONLY: &str = "SET default_transaction_read_only = on;";

/// For a connection of the pool to be free.
const WAIT: Duration = Duration::from_secs(10);
/// For a piece of work; longer than the server lets a statement run.
const LONGEST: Duration = Duration::from_secs(70);
/// Before the first new attempt, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Times that the server may undo a piece of work in favour of somebody else's.
const CONFLICTS: u32 = 8;
/// Connections that may be lost under a piece of work.
const LOST: u32 = 3;

/// What may be done where a connection is lost during it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// The same once more: it reads.
    Yes,
    /// Nothing: whether it was done is not known, and its answer would not say whether it was this that did it.
    No,
}

/// Whether attempts to connect are worth making.
#[derive(Default)]
struct Gate {
    /// Attempts that failed since one succeeded.
    failures: u32,
    /// Nobody tries before.
    until: Option<Instant>,
    cause: String,
}

/// See the module's documentation.
pub(super) struct Connector {
    address: Address,
    tls: MakeRustlsConnect,
    pool: Pool,
    gate: Mutex<Gate>,
}

impl Connector {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`IndexError::Open`] where the address asks for something that is not there.
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
            // As libpq has it: what takes connections may yet never answer.
            .timeouts(Timeouts {
                wait: Some(WAIT),
                create: address.config.get_connect_timeout().copied(),
                recycle: None,
            })
            .post_create(hook)
            .build();
        let pool = pool.map_err(|e| open(e.to_string()))?;
        Ok(Self { address: address.clone(), tls, pool, gate: Mutex::default() })
    }

    /// Names the data base.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// A connection that is not the pool's, and has none of its settings.
    pub(super) async fn alone(&self) -> Result<tokio_postgres::Client, Error> {
        let (client, connection) = self.address.config.connect(self.tls.clone()).await?;
        // Ends with the client; what goes wrong is the client's to tell.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Waits until the data base can be reached, for at most `patience`.
    ///
    /// # Errors
    /// [`IndexError::Open`]: at once where waiting does not help.
    pub(super) async fn arrive(&self, patience: Duration) -> Result<(), IndexError> {
        let since = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            let Err(error) = self.pool.get().await else { return Ok(()) };
            let (cause, waiting) = why(&error);
            if !waiting || since.elapsed() + pause > patience {
                let tried = since.elapsed().as_secs();
                let tried = if tried > 0 { format!(" (tried for {tried} s)") } else { String::new() };
                return Err(IndexError::Open(format!("cannot open {}: {cause}{tried}", self.address)));
            }
            if pause == PAUSES.0 {
                tracing::warn!("waiting for {}: {cause}", self.address);
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSES.1);
        }
    }

    /// Does a piece of work over one connection.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`] where the server cannot be reached or is lost meanwhile; the work's own.
    pub(super) async fn perform<T, F>(&self, again: Again, work: impl Fn(Client) -> F) -> Result<T, IndexError>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let (mut conflicts, mut lost) = (0, 0);
        loop {
            let client = self.client().await?;
            let error = match tokio::time::timeout(LONGEST, work(client)).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(Fault::Index(error))) => return Err(error),
                Ok(Err(Fault::Database(error))) => error,
                Err(_) => {
                    self.pool.retain(|_, _| false);
                    let silent = format!("{}: no answer within {} s", self.address, LONGEST.as_secs());
                    return Err(IndexError::Unavailable(silent));
                }
            };
            if is_lost(&error) {
                // The pool's other connections may be as dead, without having noticed yet.
                self.pool.retain(|_, _| false);
            }
            if is_conflict(&error) && conflicts < CONFLICTS {
                conflicts += 1;
                tokio::time::sleep(jitter(conflicts)).await;
            } else if is_lost(&error) && again == Again::Yes && lost < LOST {
                lost += 1;
            } else {
                return Err(explain(&self.address, &error));
            }
        }
    }

    async fn client(&self) -> Result<Client, IndexError> {
        // A connection that is there may be used whatever becomes of new ones.
        if self.pool.status().available == 0 {
            self.knock()?;
        }
        match self.pool.get().await {
            Ok(client) => {
                self.arrived();
                Ok(client)
            }
            Err(PoolError::Timeout(TimeoutType::Wait)) => {
                let busy = format!("{}: all {} connections are busy", self.address, self.address.connections);
                Err(IndexError::Unavailable(busy))
            }
            Err(error) => Err(self.failed(&why(&error).0)),
        }
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this caller may try to connect.
    fn knock(&self) -> Result<(), IndexError> {
        let mut gate = self.gate();
        match gate.until {
            Some(until) if Instant::now() < until => {
                Err(IndexError::Unavailable(format!("{}: {}", self.address, gate.cause)))
            }
            Some(_) => {
                // One at a time, as long as it is not known whether it succeeds.
                gate.until = Some(Instant::now() + PAUSES.1);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn arrived(&self) {
        let mut gate = self.gate();
        if gate.failures > 0 {
            tracing::warn!("{} answers again", self.address);
            *gate = Gate::default();
        }
    }

    fn failed(&self, cause: &str) -> IndexError {
        let mut gate = self.gate();
        if gate.failures == 0 {
            tracing::error!("{} does not answer: {cause}", self.address);
        }
        gate.failures += 1;
        let pause = PAUSES.0.saturating_mul(1 << gate.failures.min(10)).min(PAUSES.1);
        gate.until = Some(Instant::now() + pause);
        gate.cause = cause.into();
        IndexError::Unavailable(format!("{}: {cause}", self.address))
    }
}

/// Why there is no connection, and whether there may be one later.
fn why(error: &PoolError) -> (String, bool) {
    match error {
        PoolError::Backend(e) | PoolError::PostCreateHook(HookError::Backend(e)) => {
            (said(e), is_lost(e) || is_crowded(e))
        }
        PoolError::Timeout(_) => ("it takes connections and does not answer".into(), true),
        other => (other.to_string(), false),
    }
}

/// Some milliseconds, different for everybody: whoever collided should not meet again.
fn jitter(attempt: u32) -> Duration {
    let noise = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    Duration::from_micros(u64::from(noise % 4000) * u64::from(attempt))
}
