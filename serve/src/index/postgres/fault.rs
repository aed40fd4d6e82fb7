//! What PostgreSQL and the way to it can answer instead of a result, in the index's words.

use std::error::Error as _;
use std::io;

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use super::super::IndexError;

/// Why a piece of work was not done.
#[derive(Debug)]
pub(super) enum Fault {
    /// The driver's or the server's.
    Database(Error),
    /// Ours.
    Index(IndexError),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

impl From<IndexError> for Fault {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}

/// One line.
pub(super) fn said(error: &Error) -> String {
    if let Some(answer) = error.as_db_error() {
        return answer.message().replace('\n', " ");
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.replace('\n', " ")
}

/// Whether the connection is gone, or could not be made because nobody answers yet.
pub(super) fn is_lost(error: &Error) -> bool {
    let shut = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW];
    match (error.code(), error.source().and_then(|cause| cause.downcast_ref::<io::Error>())) {
        (Some(code), _) => shut.contains(code) || code.code().starts_with("08"),
        // A certificate that is not accepted will not be accepted later.
        (None, Some(cause)) => cause.kind() != io::ErrorKind::InvalidData,
        (None, None) => error.is_closed() || error.to_string().contains("timeout"),
    }
}

/// Whether the same work may well succeed at once: the server undid it in favour of somebody else's.
pub(super) fn is_conflict(error: &Error) -> bool {
    let known = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
    error.code().is_some_and(|code| known.contains(code))
}

/// Whether the server has no connection to give at present.
pub(super) fn is_crowded(error: &Error) -> bool {
    error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS)
}

/// Whether it may do later what it did not do now: full disk or memory, no time, a standby, a lock.
fn may_pass(error: &Error) -> bool {
    let class = |code: &SqlState| ["40", "53", "55", "57", "58"].contains(&&code.code()[..2]);
    is_lost(error) || error.code().is_some_and(|code| class(code) || *code == SqlState::READ_ONLY_SQL_TRANSACTION)
}

/// In the index's words; `place` names the data base.
pub(super) fn explain(place: &impl std::fmt::Display, error: &Error) -> IndexError {
    let message = format!("{place}: {}", said(error));
    if may_pass(error) { IndexError::Unavailable(message) } else { IndexError::Storage(message) }
}
