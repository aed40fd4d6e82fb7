//! Handles bodies that were not read completely when their response is ready.
//!
//! A client that keeps its connection open sends its next request after the body.  hyper closes a connection with an unread
//! body without announcing it in the response, and the next request is lost.  So the rest of the body is read and discarded
//! while the response is sent.  If the rest is too long, or its length is unknown, the response says `Connection: close`.  Even
//! then some of it is read: a client that sends its whole body before it reads would otherwise lose the response to a reset.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CONNECTION, EXPECT};
use axum::http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};

use crate::connection::Connection;

/// Most bytes that are read to keep a connection open.
const KEEP_OPEN_BYTES: u64 = 64 << 20;
/// Most bytes, and longest time, that are read of a connection that is about to be closed.
const CLOSING_BYTES: u64 = 256 << 20;
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// A body and how far it was read.
struct BodyState {
    body: Incoming,
    begun: bool,
    ended: bool,
}

impl BodyState {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.begun = true;
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        // The end of a chunked body is known only after it was polled for.
        self.ended |= matches!(frame, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream();
        frame
    }
}

/// The body that the handler reads.
struct TrackedBody(Arc<Mutex<BodyState>>);

impl hyper::body::Body for TrackedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        lock(&self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0).body.size_hint()
    }
}

fn lock(state: &Mutex<BodyState>) -> MutexGuard<'_, BodyState> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}

/// The part of a request's body that its handler does not read.
pub(crate) struct UnreadBody {
    /// `None` for a request without a body.
    state: Option<Arc<Mutex<BodyState>>>,
    /// Whether the client waits for `100 Continue` before it sends the body.
    expects_continue: bool,
}

/// Makes a request whose body is tracked, so that what its handler leaves can be discarded.
pub(crate) fn track(request: Request<Incoming>) -> (Request<Body>, UnreadBody) {
    let expects_continue = request.headers().contains_key(EXPECT);
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        return (Request::from_parts(parts, Body::empty()), UnreadBody { state: None, expects_continue });
    }
    let state = Arc::new(Mutex::new(BodyState { body, begun: false, ended: false }));
    let tracked = Body::new(TrackedBody(state.clone()));
    (Request::from_parts(parts, tracked), UnreadBody { state: Some(state), expects_continue })
}

impl UnreadBody {
    /// Reads and discards the rest of the body in the background, or makes the response announce that the connection closes.
    pub(crate) fn discard(self, response: &mut Response<Body>, connection: &Arc<Connection>, body_timeout: Duration) {
        let Some(state) = self.state else { return };
        let (begun, ended, left) = {
            let state = lock(&state);
            (state.begun, state.ended, state.body.size_hint().exact())
        };
        if ended {
            return;
        }
        if self.expects_continue && !begun {
            // The client was not told to send its body, and may send it or not.
            announce_close(response);
            return;
        }
        let too_slow = response.status() == StatusCode::REQUEST_TIMEOUT;
        let keep_open = left.filter(|left| *left <= KEEP_OPEN_BYTES && !too_slow);
        let (bytes, timeout) = match keep_open {
            Some(left) => (left, body_timeout),
            None => {
                announce_close(response);
                (CLOSING_BYTES, CLOSING_TIME)
            }
        };
        let phase = connection.start_discard(timeout);
        let connection = connection.clone();
        tokio::spawn(async move {
            let read = tokio::time::timeout(timeout, read_rest(&state, bytes)).await;
            // If the body has not ended, dropping it makes hyper close the connection.
            drop(state);
            if read.is_ok() {
                connection.finish_discard(phase);
            }
        });
    }
}

fn announce_close(response: &mut Response<Body>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

async fn read_rest(state: &Mutex<BodyState>, mut left: u64) {
    while let Some(Ok(frame)) = poll_fn(|cx| lock(state).poll_frame(cx)).await {
        match left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
