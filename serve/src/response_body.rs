//! Sends large response bodies in pieces, and counts their memory until they are sent.
//!
//! hyper takes a body in one piece into its buffer, where it stays for as long as the client does not read.  In pieces, the
//! body keeps its reservation until the client has read nearly all of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Body as _, Frame, SizeHint};

use crate::budget::{Budget, Reservation};
use crate::connection::Connection;

/// Bytes of a piece.  Smaller bodies are sent as they are and not counted.
const PIECE: usize = 64 << 10;

/// Marks a response whose body is sent in pieces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LargeBody;

/// Reserves the bytes of a large body from `budget` and makes it one that is sent in pieces.  `None` if the budget does not
/// have them.
pub(crate) fn count(response: Response, budget: &Arc<Budget>, connection: Option<Arc<Connection>>) -> Option<Response> {
    let bytes = match response.body().size_hint().exact() {
        Some(bytes) if bytes > PIECE as u64 => bytes,
        _ => return Some(response),
    };
    let reservation = budget.reserve(usize::try_from(bytes).ok()?)?;
    let (mut parts, inner) = response.into_parts();
    parts.extensions.insert(LargeBody);
    let body = CountedBody { inner, rest: Bytes::new(), connection, _reservation: reservation };
    Some(Response::from_parts(parts, Body::new(body)))
}

/// A body in pieces, with its reservation.
struct CountedBody {
    inner: Body,
    /// What is left of the inner body's current frame.
    rest: Bytes,
    connection: Option<Arc<Connection>>,
    _reservation: Reservation,
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.finish_send();
        }
    }
}

impl hyper::body::Body for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        while self.rest.is_empty() {
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return other,
            }
        }
        let length = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.inner.size_hint().exact().map(|inner| inner + self.rest.len() as u64);
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_large_body_is_sent_in_pieces_and_counted_until_it_ends() {
        let bytes: Vec<u8> = (0..3 * PIECE + 5).map(|i| (i % 251) as u8).collect();
        let budget = Budget::new(4 * PIECE);
        let counted = count(Response::new(Body::from(bytes.clone())), &budget, None).unwrap();
        assert_eq!((counted.body().size_hint().exact(), budget.used()), (Some(bytes.len() as u64), bytes.len()));
        assert!(count(Response::new(Body::from(bytes.clone())), &budget, None).is_none(), "the budget is used up");
        let (mut body, mut sent, mut pieces) = (counted.into_body(), Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert!(data.len() <= PIECE);
            sent.extend_from_slice(&data);
            pieces += 1;
        }
        assert!(sent == bytes && pieces == 4 && budget.used() == bytes.len());
        drop(body);
        assert_eq!(budget.used(), 0);
        let small = count(Response::new(Body::from(vec![0; PIECE])), &budget, None).unwrap();
        assert!(small.extensions().get::<LargeBody>().is_none() && budget.used() == 0);
    }
}
