//! The state of a connection: its phase, and how long its client may take.
//!
//! Between two requests, a connection may be idle for longer than any proxy keeps its side open.  If both sides closed it at
//! the same moment, a request would be lost.  A header that has begun must be complete much sooner.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// What a connection is doing, and since when.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Waits for the next request, since the last byte in either direction.
    Idle(Instant),
    /// Receives a header.
    Header(Instant),
    /// Receives a body; the handler that reads it has a time limit of its own.
    Body(Instant),
    /// The response was made, and what is left of the body is read and discarded until the second time.
    Discard(Instant, Instant),
    /// Makes the response.
    Response,
    /// Sends a large response: since when, and how many bytes since then.
    Send(Instant, usize),
}

/// Bytes of a large response that a client must read within each [`Timeouts::send`].
pub const SEND_BYTES: usize = 64 << 10;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Between two requests.
    pub idle: Duration,
    /// From a header's first byte to its last.
    pub header: Duration,
    /// For the client to read [`SEND_BYTES`] of a large response.
    pub send: Duration,
}

/// The state of a connection.  Requests carry it as an extension.
#[derive(Debug)]
pub struct Connection {
    phase: Mutex<Phase>,
    /// Notified to close the connection in favour of another one.
    close: Notify,
}

impl Connection {
    /// A connection that was opened just now.
    #[allow(clippy::new_without_default, reason = "the value depends on the time")]
    pub fn new() -> Self {
        Self { phase: Mutex::new(Phase::Idle(Instant::now())), close: Notify::new() }
    }

    /// A request's header or body is complete: the server makes the response.
    pub fn start_response(&self) {
        *self.lock() = Phase::Response;
    }

    /// A handler begins to read the body.
    pub fn start_body(&self) {
        *self.lock() = Phase::Body(Instant::now());
    }

    /// The response was made.
    pub fn finish_response(&self) {
        *self.lock() = Phase::Idle(Instant::now());
    }

    /// The response was made, and its large body is being sent.
    pub(crate) fn start_send(&self) {
        *self.lock() = Phase::Send(Instant::now(), 0);
    }

    /// The body was sent or dropped.  Does nothing in another phase.
    pub(crate) fn finish_send(&self) {
        let mut phase = self.lock();
        if let Phase::Send(..) = *phase {
            *phase = Phase::Idle(Instant::now());
        }
    }

    /// The response was made, and the rest of the body is read and discarded for at most `timeout`.
    pub(crate) fn start_discard(&self, timeout: Duration) -> DiscardPhase {
        let now = Instant::now();
        let phase = Phase::Discard(now, now + timeout);
        *self.lock() = phase;
        DiscardPhase(phase)
    }

    /// The rest of the body was read.  Does nothing if the next request has begun meanwhile.
    pub(crate) fn finish_discard(&self, DiscardPhase(phase): DiscardPhase) {
        let mut current = self.lock();
        if *current == phase {
            *current = Phase::Idle(Instant::now());
        }
    }

    /// Closes the connection as soon as it makes no response.
    pub fn close(&self) {
        self.close.notify_one();
    }

    /// Since when the server waits for the client; `None` while it makes a response.
    pub fn waiting_since(&self) -> Option<Instant> {
        match *self.lock() {
            Phase::Idle(since)
            | Phase::Header(since)
            | Phase::Body(since)
            | Phase::Discard(since, _)
            | Phase::Send(since, _) => Some(since),
            Phase::Response => None,
        }
    }

    fn due(&self, timeouts: &Timeouts) -> Option<Instant> {
        match *self.lock() {
            Phase::Idle(since) => Some(since + timeouts.idle),
            Phase::Header(since) => Some(since + timeouts.header),
            Phase::Discard(_, until) => Some(until),
            Phase::Send(since, _) => Some(since + timeouts.send),
            Phase::Body(_) | Phase::Response => None,
        }
    }

    fn received(&self) {
        let mut phase = self.lock();
        if let Phase::Idle(_) = *phase {
            *phase = Phase::Header(Instant::now());
        }
    }

    /// Bytes were sent.  A connection whose client still reads a response is not idle.
    fn sent(&self, bytes: usize) {
        let mut phase = self.lock();
        match *phase {
            Phase::Idle(_) => *phase = Phase::Idle(Instant::now()),
            Phase::Send(_, before) if before + bytes >= SEND_BYTES => *phase = Phase::Send(Instant::now(), 0),
            Phase::Send(since, before) => *phase = Phase::Send(since, before + bytes),
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Identifies one discard phase, so that its end is not taken for the end of a later one.
pub(crate) struct DiscardPhase(Phase);

/// Why a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The client or the protocol closed it.
    Closed,
    /// The client took too long.
    TimedOut,
    /// It was closed in favour of another one.
    Evicted,
}

/// Polls `work` until it ends, the client takes too long, or the connection is closed in favour of another one.
pub async fn drive(work: impl Future, connection: &Connection, timeouts: &Timeouts) -> End {
    let evicted = async {
        loop {
            connection.close.notified().await;
            // A request that has arrived meanwhile is answered.
            if connection.waiting_since().is_some() {
                return;
            }
        }
    };
    tokio::select! {
        end = until_timeout(work, connection, timeouts) => end,
        () = evicted => End::Evicted,
    }
}

async fn until_timeout(work: impl Future, connection: &Connection, timeouts: &Timeouts) -> End {
    let mut work = pin!(work);
    let mut timer = pin!(sleep_until(Instant::now() + timeouts.idle));
    poll_fn(|cx| {
        if work.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Closed);
        }
        loop {
            let Some(due) = connection.due(timeouts) else { return Poll::Pending };
            if due <= Instant::now() {
                return Poll::Ready(End::TimedOut);
            }
            // A timer that is too early is reset when it expires, so most requests do not touch it.
            if due < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// A socket that reports its traffic to its [`Connection`].
pub(crate) struct ObservedStream {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl ObservedStream {
    pub(crate) fn new(stream: TcpStream, connection: Arc<Connection>) -> Self {
        Self { stream, connection }
    }

    fn wrote(&self, outcome: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes @ 1..)) = outcome {
            self.connection.sent(*bytes);
        }
    }
}

impl AsyncRead for ObservedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.connection.received();
        }
        outcome
    }
}

impl AsyncWrite for ObservedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts =
        Timeouts { idle: Duration::from_secs(75), header: Duration::from_secs(10), send: Duration::from_secs(30) };

    /// Seconds until the connection is closed, rounded: the test takes less than half a second.
    fn seconds_left(connection: &Connection) -> Option<u64> {
        let due = connection.due(&TIMEOUTS)?;
        Some((due - Instant::now()).as_secs_f64().round() as u64)
    }

    #[test]
    fn each_phase_has_its_own_timeout() {
        let connection = Connection::new();
        assert_eq!(seconds_left(&connection), Some(75));
        connection.received();
        assert_eq!(seconds_left(&connection), Some(10));
        // Handlers have time limits of their own.
        connection.start_response();
        assert_eq!((seconds_left(&connection), connection.waiting_since()), (None, None));
        connection.start_body();
        assert!(seconds_left(&connection).is_none() && connection.waiting_since().is_some());
        connection.finish_response();
        assert_eq!(seconds_left(&connection), Some(75));
    }

    #[test]
    fn traffic_extends_a_response_but_not_a_header() {
        let connection = Connection::new();
        let early = connection.due(&TIMEOUTS);
        std::thread::sleep(Duration::from_millis(2));
        connection.sent(1);
        assert!(connection.due(&TIMEOUTS) > early);
        connection.received();
        let begun = connection.due(&TIMEOUTS);
        std::thread::sleep(Duration::from_millis(2));
        connection.received();
        assert_eq!(connection.due(&TIMEOUTS), begun);
    }

    #[test]
    fn a_large_response_must_be_read_at_a_minimum_rate() {
        let connection = Connection::new();
        connection.start_send();
        let first = connection.due(&TIMEOUTS);
        std::thread::sleep(Duration::from_millis(2));
        connection.sent(SEND_BYTES - 1);
        assert_eq!(connection.due(&TIMEOUTS), first, "too little was read");
        connection.sent(1);
        assert!(connection.due(&TIMEOUTS) > first);
        connection.finish_send();
        assert_eq!(seconds_left(&connection), Some(75));
        connection.start_response();
        connection.finish_send();
        assert_eq!(connection.waiting_since(), None);
    }

    #[test]
    fn the_end_of_a_discard_phase_does_not_affect_the_next_request() {
        let connection = Connection::new();
        let first = connection.start_discard(Duration::from_secs(30));
        assert_eq!(seconds_left(&connection), Some(30));
        connection.start_response();
        connection.finish_discard(first);
        assert_eq!(connection.waiting_since(), None);
        let second = connection.start_discard(Duration::from_secs(30));
        connection.finish_discard(second);
        assert_eq!(seconds_left(&connection), Some(75));
    }

    #[tokio::test]
    async fn a_slow_client_is_disconnected_and_a_response_is_finished() {
        let (idle, header, send) = (Duration::from_millis(20), Duration::from_millis(10), Duration::from_secs(1));
        let timeouts = Timeouts { idle, header, send };
        let connection = Connection::new();
        assert_eq!(drive(std::future::pending::<()>(), &connection, &timeouts).await, End::TimedOut);
        connection.start_response();
        connection.close();
        let busy = async { tokio::time::sleep(Duration::from_millis(60)).await };
        assert_eq!(drive(busy, &connection, &timeouts).await, End::Closed);
        connection.finish_response();
        connection.close();
        let hour = Duration::from_secs(3600);
        let long = Timeouts { idle: hour, header: hour, send: hour };
        assert_eq!(drive(std::future::pending::<()>(), &connection, &long).await, End::Evicted);
    }
}
