//! [`Admission`]: how a connection gets its place among those that the server serves at once.
//!
//! If all places are taken, a further connection is accepted nevertheless, to see what it asks: a probe (`/health`, `/ready`) is answered,
//! so that busy clients cannot make the server look dead.  Any other request waits for a place.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::connection::Connection;

/// Connections without a place that have not asked for anything yet.  For a further one, the oldest is closed.
const UNKNOWN: usize = 16;
/// Connections whose request waits for a place.
const WAITING: usize = 32;

/// The places of all connections.
pub(crate) struct Places {
    taken: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    unknown: Mutex<VecDeque<Weak<Connection>>>,
}

impl Places {
    /// For so many connections at once.
    pub(crate) fn new(connections: usize) -> Arc<Self> {
        let taken = Arc::new(Semaphore::new(connections.max(1)));
        Arc::new(Self { taken, waiting: Arc::new(Semaphore::new(WAITING)), unknown: Mutex::default() })
    }

    /// Whether a connection would get a place now.
    pub(crate) fn is_free(&self) -> bool {
        self.taken.available_permits() > 0
    }

    /// A place, if one is free within `patience`.
    pub(crate) async fn take(&self, patience: Duration) -> Option<OwnedSemaphorePermit> {
        tokio::time::timeout(patience, self.taken.clone().acquire_owned()).await.ok()?.ok()
    }

    /// The admission of a connection, with or without a place.
    pub(crate) fn admit(
        self: &Arc<Self>,
        place: Option<OwnedSemaphorePermit>,
        connection: &Arc<Connection>,
    ) -> Arc<Admission> {
        if place.is_none() {
            let mut unknown = lock(&self.unknown);
            unknown.retain(|one| one.strong_count() > 0);
            if unknown.len() >= UNKNOWN
                && let Some(oldest) = unknown.pop_front().and_then(|one| one.upgrade())
            {
                oldest.close();
            }
            unknown.push_back(Arc::downgrade(connection));
        }
        let place = Mutex::new(place);
        Arc::new(Admission { places: self.clone(), place, connection: Arc::downgrade(connection) })
    }

    /// The connection has asked for something.
    fn forget(&self, connection: &Weak<Connection>) {
        lock(&self.unknown).retain(|one| !one.ptr_eq(connection));
    }
}

/// Whether a connection has a place.
pub(crate) struct Admission {
    places: Arc<Places>,
    place: Mutex<Option<OwnedSemaphorePermit>>,
    connection: Weak<Connection>,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is served, and so are the connection's further requests.
    Serve,
    /// It is served, and the connection is closed.
    ServeAndClose,
    /// It is refused, and the connection is closed.
    Refuse,
}

impl Admission {
    /// Whether the connection has a place.
    pub(crate) fn has_place(&self) -> bool {
        lock(&self.place).is_some()
    }

    /// Decides about a request; may wait for a place.
    pub(crate) async fn decide(&self, path: &str, patience: Duration) -> Verdict {
        if lock(&self.place).is_some() {
            return Verdict::Serve;
        }
        self.places.forget(&self.connection);
        if matches!(path, "/health" | "/ready") {
            return Verdict::ServeAndClose;
        }
        let Ok(_waiting) = self.places.waiting.clone().try_acquire_owned() else { return Verdict::Refuse };
        match self.places.take(patience).await {
            Some(place) => {
                *lock(&self.place) = Some(place);
                Verdict::Serve
            }
            None => Verdict::Refuse,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(5);

    #[tokio::test]
    async fn probes_are_answered_and_other_requests_wait_for_a_place() {
        let places = Places::new(1);
        let connections: Vec<_> = (0..3).map(|_| Arc::new(Connection::new())).collect();
        let first = places.admit(places.take(SOON).await, &connections[0]);
        assert!(!places.is_free() && places.take(SOON).await.is_none());
        assert_eq!(first.decide("/items", SOON).await, Verdict::Serve);
        let probe = places.admit(None, &connections[1]);
        assert_eq!(probe.decide("/health", SOON).await, Verdict::ServeAndClose);
        let other = places.admit(None, &connections[2]);
        assert_eq!(other.decide("/items", SOON).await, Verdict::Refuse);
        assert!(lock(&places.unknown).is_empty());
        drop(first);
        assert_eq!(other.decide("/items", SOON).await, Verdict::Serve);
        assert!(!places.is_free());
        drop(other);
        assert!(places.is_free());
    }

    #[tokio::test]
    async fn silent_connections_do_not_keep_probes_out() {
        let places = Places::new(1);
        let connections: Vec<_> = (0..UNKNOWN + 5).map(|_| Arc::new(Connection::new())).collect();
        let admissions: Vec<_> = connections.iter().map(|connection| places.admit(None, connection)).collect();
        assert_eq!(lock(&places.unknown).len(), UNKNOWN);
        assert_eq!(admissions[0].decide("/ready", SOON).await, Verdict::ServeAndClose);
    }
}
