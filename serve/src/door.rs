//! The socket: accepts connections, never more than allowed at once, and shows the idlest out when it gets crowded.
//!
//! A connection that sends nothing costs its client nothing.  So that a thousand of them cannot hold up the others, the
//! one that has kept the server waiting longest (for a header or a body) gives its place to the next that knocks.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;

use crate::limits::Limits;

/// One connection, as far as patience with it is concerned.  Requests carry it as an extension.
pub struct Guest {
    /// Since when its client owes bytes; `None` while the server owes the answer.
    waiting: Mutex<Option<Instant>>,
    leave: Notify,
}

impl Guest {
    fn new() -> Self {
        Self { waiting: Mutex::new(Some(Instant::now())), leave: Notify::new() }
    }

    /// The client's turn: a header or a body is to come.
    pub fn owes(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// The server's turn: the request is whole.
    pub fn is_owed(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.waiting.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The listening socket and everybody who came in through it.
pub struct Door {
    listener: TcpListener,
    router: Router,
    http: http1::Builder,
    slots: Arc<Semaphore>,
    guests: Vec<Weak<Guest>>,
    /// Accepted, and without a slot yet.
    knocking: Option<TcpStream>,
}

impl Door {
    /// Of a bound socket.
    pub fn new(listener: TcpListener, router: Router, limits: &Limits) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
        let slots = Arc::new(Semaphore::new(limits.connections.max(1)));
        Self { listener, router, http, slots, guests: Vec::new(), knocking: None }
    }

    /// Accepts one connection; cancel-safe: nothing is lost when a signal comes first.
    pub async fn next(&mut self, graceful: &GracefulShutdown) {
        if self.knocking.is_none() {
            match self.listener.accept().await {
                Ok((stream, _)) => self.knocking = Some(stream),
                Err(error) => {
                    // Out of file descriptors, most likely: others will close theirs.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    return;
                }
            }
        }
        if self.slots.available_permits() == 0 {
            self.show_idlest_out();
        }
        // Whoever is being served now may idle a moment later: look again then.
        let slot = tokio::time::timeout(Duration::from_millis(50), self.slots.clone().acquire_owned());
        let Ok(Ok(slot)) = slot.await else { return };
        if let Some(stream) = self.knocking.take() {
            self.welcome(stream, slot, graceful.watcher());
        }
    }

    /// Nobody leaves while all are being served: the next one waits then.
    fn show_idlest_out(&mut self) {
        self.guests.retain(|guest| guest.strong_count() > 0);
        let since = |guest: Arc<Guest>| {
            let waiting = *guest.lock();
            waiting.map(|since| (since, guest))
        };
        let waiting = self.guests.iter().filter_map(Weak::upgrade).filter_map(since);
        if let Some((_, guest)) = waiting.min_by_key(|(since, _)| *since) {
            guest.leave.notify_one();
        }
    }

    fn welcome(&mut self, stream: TcpStream, slot: OwnedSemaphorePermit, watcher: Watcher) {
        let _ = stream.set_nodelay(true);
        let guest = Arc::new(Guest::new());
        if self.guests.len() == self.guests.capacity() {
            // Before the list grows, those who have left go.
            self.guests.retain(|guest| guest.strong_count() > 0);
        }
        self.guests.push(Arc::downgrade(&guest));
        let (router, known) = (self.router.clone(), guest.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let (router, guest) = (router.clone(), known.clone());
            async move {
                guest.is_owed();
                request.extensions_mut().insert(guest.clone());
                let answer = router.oneshot(request.map(Body::new)).await;
                guest.owes();
                answer
            }
        });
        let connection = watcher.watch(self.http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // A client that breaks off is its own business.
            tokio::select! {
                _ = connection => {}
                () = guest.leave.notified() => tracing::debug!("an idle connection gave its place to another"),
            }
            drop(slot);
        });
    }
}
