//! One connection: whose turn it is, and how long its client may take.
//!
//! Between two requests a connection may be idle for a time of its own, which is longer than any proxy keeps its side: of
//! two ends that close at the same moment, one loses a request.  A header that has begun must be whole much sooner.

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

/// What a connection is waiting for, and since when.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Turn {
    /// No byte of a next request has come; since the last byte of either side.
    Idle(Instant),
    /// A header has begun.
    Header(Instant),
    /// A handler reads the body, within a time limit of its own.
    Body(Instant),
    /// The answer has been given, and what was left of the body is read until `.1`.
    Rest(Instant, Instant),
    /// The server owes the answer.
    Server,
}

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Between two requests.
    pub idle: Duration,
    /// From a header's first byte to its last.
    pub header: Duration,
}

/// One connection's state.  Requests carry it as an extension.
#[derive(Debug)]
pub struct Connection {
    turn: Mutex<Turn>,
    /// Closes it, to make room for another.
    leave: Notify,
}

impl Connection {
    /// Opened just now.
    #[allow(clippy::new_without_default, reason = "the time matters")]
    pub fn new() -> Self {
        Self { turn: Mutex::new(Turn::Idle(Instant::now())), leave: Notify::new() }
    }

    /// A request's header is whole, or its body is: the server has to answer.
    pub fn serves(&self) {
        *self.lock() = Turn::Server;
    }

    /// A handler begins to read the body.
    pub fn awaits_body(&self) {
        *self.lock() = Turn::Body(Instant::now());
    }

    /// The answer has been given.
    pub fn idles(&self) {
        *self.lock() = Turn::Idle(Instant::now());
    }

    /// The answer has been given, and the rest of the body is read for at most `patience`.
    pub(crate) fn reads_rest(&self, patience: Duration) -> RestTurn {
        let now = Instant::now();
        let turn = Turn::Rest(now, now + patience);
        *self.lock() = turn;
        RestTurn(turn)
    }

    /// The rest has been read, unless the next request has come meanwhile.
    pub(crate) fn rest_was_read(&self, RestTurn(turn): RestTurn) {
        let mut current = self.lock();
        if *current == turn {
            *current = Turn::Idle(Instant::now());
        }
    }

    /// Closes the connection at its next turn.
    pub fn close(&self) {
        self.leave.notify_one();
    }

    /// Since when the client owes bytes; `None` while the server owes the answer.
    pub fn waiting_since(&self) -> Option<Instant> {
        match *self.lock() {
            Turn::Idle(since) | Turn::Header(since) | Turn::Body(since) | Turn::Rest(since, _) => Some(since),
            Turn::Server => None,
        }
    }

    fn due(&self, timeouts: &Timeouts) -> Option<Instant> {
        match *self.lock() {
            Turn::Idle(since) => Some(since + timeouts.idle),
            Turn::Header(since) => Some(since + timeouts.header),
            Turn::Rest(_, until) => Some(until),
            Turn::Body(_) | Turn::Server => None,
        }
    }

    fn received(&self) {
        let mut turn = self.lock();
        if let Turn::Idle(_) = *turn {
            *turn = Turn::Header(Instant::now());
        }
    }

    /// A long answer that is still being read by its client is no idle connection.
    fn sent(&self) {
        let mut turn = self.lock();
        if let Turn::Idle(_) = *turn {
            *turn = Turn::Idle(Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Names one rest of a body, so that its end is not taken for another's.
pub(crate) struct RestTurn(Turn);

/// Why a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The client or the protocol ended it.
    Done,
    /// The client took too long.
    Overdue,
    /// Another needed its place.
    Evicted,
}

/// Polls `work` until it ends, the client takes too long, or another needs the place.
pub async fn drive(work: impl Future, connection: &Connection, timeouts: &Timeouts) -> End {
    let evicted = async {
        loop {
            connection.leave.notified().await;
            // A request that has come meanwhile is answered.
            if connection.waiting_since().is_some() {
                return;
            }
        }
    };
    tokio::select! {
        end = until_overdue(work, connection, timeouts) => end,
        () = evicted => End::Evicted,
    }
}

async fn until_overdue(work: impl Future, connection: &Connection, timeouts: &Timeouts) -> End {
    let mut work = pin!(work);
    let mut timer = pin!(sleep_until(Instant::now() + timeouts.idle));
    poll_fn(|cx| {
        if work.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Done);
        }
        loop {
            let Some(due) = connection.due(timeouts) else { return Poll::Pending };
            if due <= Instant::now() {
                return Poll::Ready(End::Overdue);
            }
            // A later deadline waits until the earlier one has passed: most requests never move the timer.
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

/// A socket that tells its [`Connection`] about every byte.
pub(crate) struct Observed {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl Observed {
    pub(crate) fn new(stream: TcpStream, connection: Arc<Connection>) -> Self {
        Self { stream, connection }
    }

    fn wrote(&self, outcome: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(1..)) = outcome {
            self.connection.sent();
        }
    }
}

impl AsyncRead for Observed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.connection.received();
        }
        outcome
    }
}

impl AsyncWrite for Observed {
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

    const TIMEOUTS: Timeouts = Timeouts { idle: Duration::from_secs(75), header: Duration::from_secs(10) };

    /// Seconds until the connection is closed, rounded: a test takes no half second.
    fn seconds_left(connection: &Connection) -> Option<u64> {
        let due = connection.due(&TIMEOUTS)?;
        Some((due - Instant::now()).as_secs_f64().round() as u64)
    }

    #[test]
    fn an_idle_connection_and_a_begun_header_have_times_of_their_own() {
        let connection = Connection::new();
        assert_eq!(seconds_left(&connection), Some(75));
        connection.received();
        assert_eq!(seconds_left(&connection), Some(10));
        // What the server or a handler has to do is limited elsewhere.
        connection.serves();
        assert_eq!((seconds_left(&connection), connection.waiting_since()), (None, None));
        connection.awaits_body();
        assert!(seconds_left(&connection).is_none() && connection.waiting_since().is_some());
        connection.idles();
        assert_eq!(seconds_left(&connection), Some(75));
    }

    #[test]
    fn further_bytes_prolong_an_answer_and_no_header() {
        let connection = Connection::new();
        let early = connection.due(&TIMEOUTS);
        std::thread::sleep(Duration::from_millis(2));
        connection.sent();
        assert!(connection.due(&TIMEOUTS) > early);
        connection.received();
        let begun = connection.due(&TIMEOUTS);
        std::thread::sleep(Duration::from_millis(2));
        connection.received();
        assert_eq!(connection.due(&TIMEOUTS), begun);
    }

    #[test]
    fn a_rest_that_was_read_leaves_an_idle_connection_and_never_ends_the_next_request() {
        let connection = Connection::new();
        let first = connection.reads_rest(Duration::from_secs(30));
        assert_eq!(seconds_left(&connection), Some(30));
        connection.serves();
        connection.rest_was_read(first);
        assert_eq!(connection.waiting_since(), None);
        let second = connection.reads_rest(Duration::from_secs(30));
        connection.rest_was_read(second);
        assert_eq!(seconds_left(&connection), Some(75));
    }

    #[tokio::test]
    async fn an_overdue_connection_ends_and_a_busy_one_does_not() {
        let timeouts = Timeouts { idle: Duration::from_millis(20), header: Duration::from_millis(10) };
        let connection = Connection::new();
        assert_eq!(drive(std::future::pending::<()>(), &connection, &timeouts).await, End::Overdue);
        connection.serves();
        connection.close();
        let busy = async { tokio::time::sleep(Duration::from_millis(60)).await };
        assert_eq!(drive(busy, &connection, &timeouts).await, End::Done);
        connection.idles();
        connection.close();
        let long = Timeouts { idle: Duration::from_secs(3600), header: Duration::from_secs(3600) };
        assert_eq!(drive(std::future::pending::<()>(), &connection, &long).await, End::Evicted);
    }
}
