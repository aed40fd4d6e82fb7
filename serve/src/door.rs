//! The socket: accepts connections, never more than allowed at once, and closes the idlest when it gets crowded.
//!
//! A connection that sends nothing costs its client nothing.  So that a thousand of them cannot hold up the others, the
//! one that has kept the server waiting longest (for a header or a body) gives its place to the next that knocks.

use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;

use crate::connection::{Connection, End, Observed, Timeouts, drive};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::rest;

/// The listening socket and everybody who came in through it.
pub struct Door {
    listener: TcpListener,
    router: Router,
    http: http1::Builder,
    timeouts: Timeouts,
    body_timeout: Duration,
    metrics: Arc<Metrics>,
    slots: Arc<Semaphore>,
    connections: Vec<Weak<Connection>>,
    /// Accepted, and without a slot yet.
    knocking: Option<TcpStream>,
}

impl Door {
    /// Of a bound socket.
    pub fn new(listener: TcpListener, router: Router, limits: &Limits, metrics: Arc<Metrics>) -> Self {
        let mut http = http1::Builder::new();
        // hyper's own timeout does not tell an idle connection from a header that has begun.
        http.header_read_timeout(None);
        let timeouts = Timeouts { idle: limits.keep_alive, header: limits.header_timeout };
        let slots = Arc::new(Semaphore::new(limits.connections.max(1)));
        let (body_timeout, connections) = (limits.body_timeout, Vec::new());
        Self { listener, router, http, timeouts, body_timeout, metrics, slots, connections, knocking: None }
    }

    /// Accepts one connection; cancel-safe: nothing is lost when a signal comes first.
    pub async fn next(&mut self, graceful: &GracefulShutdown) {
        if self.knocking.is_none() {
            match self.listener.accept().await {
                Ok((stream, _)) => self.knocking = Some(stream),
                Err(error) => {
                    // Out of file descriptors, most likely.
                    tracing::warn!("cannot accept a connection: {error}");
                    self.close_idlest();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    return;
                }
            }
        }
        if self.slots.available_permits() == 0 {
            self.close_idlest();
        }
        // Whoever is being served now may idle a moment later: look again then.
        let slot = tokio::time::timeout(Duration::from_millis(50), self.slots.clone().acquire_owned());
        let Ok(Ok(slot)) = slot.await else { return };
        if let Some(stream) = self.knocking.take() {
            self.welcome(stream, slot, graceful.watcher());
        }
    }

    /// Nobody leaves while all are being served: the next one waits then.
    fn close_idlest(&mut self) {
        self.connections.retain(|connection| connection.strong_count() > 0);
        let waiting = self.connections.iter().filter_map(Weak::upgrade);
        let waiting = waiting.filter_map(|connection| Some((connection.waiting_since()?, connection)));
        if let Some((_, connection)) = waiting.min_by_key(|(since, _)| *since) {
            connection.close();
        }
    }

    fn welcome(&mut self, stream: TcpStream, slot: OwnedSemaphorePermit, watcher: Watcher) {
        let _ = stream.set_nodelay(true);
        let connection = Arc::new(Connection::new());
        if self.connections.len() == self.connections.capacity() {
            // Before the list grows, those who have left go.
            self.connections.retain(|connection| connection.strong_count() > 0);
        }
        self.connections.push(Arc::downgrade(&connection));
        let (router, known, body_timeout) = (self.router.clone(), connection.clone(), self.body_timeout);
        let service = service_fn(move |request: Request<Incoming>| {
            let (router, connection) = (router.clone(), known.clone());
            async move {
                connection.serves();
                let (mut request, rest) = rest::lend(request);
                request.extensions_mut().insert(connection.clone());
                let mut answer = router.oneshot(request).await;
                connection.idles();
                if let Ok(answer) = &mut answer {
                    rest.settle(answer, &connection, body_timeout);
                }
                answer
            }
        });
        let io = TokioIo::new(Observed::new(stream, connection.clone()));
        let work = watcher.watch(self.http.serve_connection(io, service));
        let (timeouts, open) = (self.timeouts, self.metrics.connection());
        tokio::spawn(async move {
            // A client that breaks off is its own business.
            let end = drive(work, &connection, &timeouts).await;
            open.ended(end == End::Evicted);
            drop(slot);
        });
    }
}
