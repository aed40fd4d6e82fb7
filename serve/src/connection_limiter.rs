//! [`ConnectionLimiter`]: accepts connections up to a limit, and closes idle ones when the limit is reached.
//!
//! An idle connection costs its client nothing.  So that idle clients cannot keep others out, the connection that the server
//! has waited for longest (for a header or a body) is closed in favour of a new one.

use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tower::ServiceExt;

use crate::admission::{Admission, Places, Verdict};
use crate::connection::{Connection, End, ObservedStream, Timeouts, drive};
use crate::error::{ApiError, Failure};
use crate::limits::Limits;
use crate::memory::RECEIVE_BUFFER;
use crate::metrics::Metrics;
use crate::response_body::LargeBody;
use crate::unread_body;

/// The time after which a failed accept, or a wait for a free slot, is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// The time for which a new connection waits for the place of one that was closed for it.  Later ones wait behind it, probes too.
const EVICTION: Duration = Duration::from_millis(10);

/// The listening socket and its connections.
pub struct ConnectionLimiter {
    listener: TcpListener,
    router: Router,
    http: http1::Builder,
    timeouts: Timeouts,
    body_timeout: Duration,
    metrics: Arc<Metrics>,
    places: Arc<Places>,
    /// How long a request may wait for a place.
    patience: Duration,
    connections: Vec<(Weak<Connection>, Weak<Admission>)>,
    /// A connection that was accepted and waits for a free slot.
    waiting: Option<TcpStream>,
}

impl ConnectionLimiter {
    /// Serves `router` on a bound socket.
    pub fn new(listener: TcpListener, router: Router, limits: &Limits, metrics: Arc<Metrics>) -> Self {
        let mut http = http1::Builder::new();
        // hyper's own timeout does not distinguish an idle connection from a header that has begun.
        http.header_read_timeout(None);
        http.max_buf_size(RECEIVE_BUFFER);
        let timeouts = Timeouts { idle: limits.keep_alive, header: limits.header_timeout, send: limits.send_timeout };
        let (places, patience) = (Places::new(limits.connections), limits.request_timeout);
        let (body_timeout, connections) = (limits.body_timeout, Vec::new());
        Self { listener, router, http, timeouts, body_timeout, metrics, places, patience, connections, waiting: None }
    }

    /// Accepts and starts one connection, or returns to be called again.  Cancel-safe: an accepted connection is kept.
    pub async fn accept(&mut self, graceful: &GracefulShutdown) {
        if self.waiting.is_none() {
            match self.listener.accept().await {
                Ok((stream, _)) => self.waiting = Some(stream),
                Err(error) => {
                    // Most likely there is no free file descriptor.
                    tracing::warn!("cannot accept a connection: {error}");
                    self.close_idlest();
                    tokio::time::sleep(RETRY).await;
                    return;
                }
            }
        }
        // A connection that was closed gives its place back at once.
        let free = self.places.is_free() || self.close_idlest();
        let place = if free { self.places.take(EVICTION).await } else { None };
        if let Some(stream) = self.waiting.take() {
            self.start(stream, place, graceful.watcher());
        }
    }

    /// Closes the connection that the server has waited for longest, if it waits for any.
    fn close_idlest(&mut self) -> bool {
        self.connections.retain(|(connection, _)| connection.strong_count() > 0);
        // Closing one without a place would free none.
        let placed =
            self.connections.iter().filter(|(_, admission)| admission.upgrade().is_some_and(|a| a.has_place()));
        let open = placed.filter_map(|(connection, _)| connection.upgrade());
        let idle = open.filter_map(|connection| Some((connection.waiting_since()?, connection)));
        let idlest = idle.min_by_key(|(since, _)| *since);
        idlest.inspect(|(_, connection)| connection.close()).is_some()
    }

    fn start(&mut self, stream: TcpStream, place: Option<OwnedSemaphorePermit>, watcher: Watcher) {
        let _ = stream.set_nodelay(true);
        let connection = Arc::new(Connection::new());
        if self.connections.len() == self.connections.capacity() {
            // Closed connections are removed before the list grows.
            self.connections.retain(|(connection, _)| connection.strong_count() > 0);
        }
        let (router, known, body_timeout) = (self.router.clone(), connection.clone(), self.body_timeout);
        let (admission, patience) = (self.places.admit(place, &connection), self.patience);
        self.connections.push((Arc::downgrade(&connection), Arc::downgrade(&admission)));
        let service = service_fn(move |request: Request<Incoming>| {
            let (router, connection, admission) = (router.clone(), known.clone(), admission.clone());
            async move {
                connection.start_response();
                let verdict = admission.decide(request.uri().path(), patience).await;
                let (mut request, unread) = unread_body::track(request);
                request.extensions_mut().insert(connection.clone());
                let mut response = match verdict {
                    Verdict::Refuse => Ok(Failure::from(ApiError::QueueFull { retry_after: 1 }).into_response()),
                    _ => router.oneshot(request).await,
                };
                connection.finish_response();
                if let Ok(response) = &mut response {
                    if verdict != Verdict::Serve {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    if response.extensions().get::<LargeBody>().is_some() {
                        connection.start_send();
                    }
                    unread.discard(response, &connection, body_timeout);
                }
                response
            }
        });
        let io = TokioIo::new(ObservedStream::new(stream, connection.clone()));
        let work = watcher.watch(self.http.serve_connection(io, service));
        let (timeouts, open) = (self.timeouts, self.metrics.connection());
        tokio::spawn(async move {
            // An error means that the client broke off, which is no fault of the server's.
            let end = drive(work, &connection, &timeouts).await;
            open.ended(end == End::Evicted);
        });
    }
}
