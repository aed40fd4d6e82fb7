//! The rest of a body whose answer is ready before it was read.
//!
//! A client that keeps its connection sends the next request behind the body.  hyper closes a connection whose body was
//! not read, without a word in the answer, and the next request is lost.  So the rest is read and thrown away while the
//! answer is already under way; where it is too long, or its length is not known, the answer says `Connection: close`.
//! Even then it is read for a while: a client that writes its whole body before it reads would lose the answer to a reset.

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

/// Bytes that are read to keep a connection.
const KEPT_BYTES: u64 = 64 << 20;
/// How much, and how long, is read of a connection that is going to be closed.
const CLOSING_BYTES: u64 = 256 << 20;
const CLOSING: Duration = Duration::from_secs(2);

struct Shared {
    body: Incoming,
    begun: bool,
    ended: bool,
}

impl Shared {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.begun = true;
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        // A chunked body does not know its end before it was asked for it.
        self.ended |= matches!(frame, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream();
        frame
    }
}

/// A request's body, lent to its handler.
struct Lent(Arc<Mutex<Shared>>);

impl hyper::body::Body for Lent {
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

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(|e| e.into_inner())
}

/// What is kept of a request until it is answered.
pub(crate) struct Rest {
    shared: Option<Arc<Mutex<Shared>>>,
    expects: bool,
}

/// Splits a request into one that a handler may read, and what is left of it afterwards.
pub(crate) fn lend(request: Request<Incoming>) -> (Request<Body>, Rest) {
    let expects = request.headers().contains_key(EXPECT);
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        return (Request::from_parts(parts, Body::empty()), Rest { shared: None, expects });
    }
    let shared = Arc::new(Mutex::new(Shared { body, begun: false, ended: false }));
    let lent = Body::new(Lent(shared.clone()));
    (Request::from_parts(parts, lent), Rest { shared: Some(shared), expects })
}

impl Rest {
    /// Sees to it that the connection outlives the answer, or that the answer says that it does not.
    pub(crate) fn settle(self, answer: &mut Response<Body>, connection: &Arc<Connection>, body_timeout: Duration) {
        let Some(shared) = self.shared else { return };
        let (begun, ended, left) = {
            let shared = lock(&shared);
            (shared.begun, shared.ended, shared.body.size_hint().exact())
        };
        if ended {
            return;
        }
        if self.expects && !begun {
            // The client was never asked for its body, and may send it or not.
            say_close(answer);
            return;
        }
        let too_slow = answer.status() == StatusCode::REQUEST_TIMEOUT;
        let kept = left.filter(|left| *left <= KEPT_BYTES && !too_slow);
        let (bytes, patience) = match kept {
            Some(left) => (left, body_timeout),
            None => {
                say_close(answer);
                (CLOSING_BYTES, CLOSING)
            }
        };
        let turn = connection.reads_rest(patience);
        let connection = connection.clone();
        tokio::spawn(async move {
            let read = tokio::time::timeout(patience, discard(&shared, bytes)).await;
            // Dropped where it has not ended: hyper closes the connection then.
            drop(shared);
            if read.is_ok() {
                connection.rest_was_read(turn);
            }
        });
    }
}

fn say_close(answer: &mut Response<Body>) {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

async fn discard(shared: &Mutex<Shared>, mut left: u64) {
    while let Some(Ok(frame)) = poll_fn(|cx| lock(shared).poll_frame(cx)).await {
        match left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
