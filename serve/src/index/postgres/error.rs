//! Errors of PostgreSQL and of its connections, and how they become errors of the index.

use std::error::Error as _;
use std::io;

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use super::super::error::IndexError;

/// Why work over a connection failed.
#[derive(Debug)]
pub(super) enum QueryError {
    /// The driver or the server reported an error.
    Database(Error),
    /// The index cannot do what was asked.
    Index(IndexError),
}

impl From<Error> for QueryError {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

impl From<IndexError> for QueryError {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}

/// The error's message in one line.
pub(super) fn message(error: &Error) -> String {
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

/// Whether the connection was lost, or could not be opened because the server does not answer yet.
pub(super) fn is_lost(error: &Error) -> bool {
    let shut = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW];
    match (error.code(), error.source().and_then(|cause| cause.downcast_ref::<io::Error>())) {
        (Some(code), _) => shut.contains(code) || code.code().starts_with("08"),
        // A certificate that is refused now will be refused later.
        (None, Some(cause)) => cause.kind() != io::ErrorKind::InvalidData,
        (None, None) => error.is_closed() || error.to_string().contains("timeout"),
    }
}

/// Whether the server rolled the transaction back because it conflicted with another one.  A repetition may succeed.
pub(super) fn is_conflict(error: &Error) -> bool {
    let known = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
    error.code().is_some_and(|code| known.contains(code))
}

/// Whether the server has no free connection at present.
pub(super) fn is_out_of_connections(error: &Error) -> bool {
    error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS)
}

/// Whether the same work may succeed later: full disk or memory, a timeout, a standby, a lock.
fn may_pass(error: &Error) -> bool {
    let class = |code: &SqlState| ["40", "53", "55", "57", "58"].contains(&&code.code()[..2]);
    is_lost(error) || error.code().is_some_and(|code| class(code) || *code == SqlState::READ_ONLY_SQL_TRANSACTION)
}

/// The error as the index's; `place` names the database.
pub(super) fn to_index_error(place: &impl std::fmt::Display, error: &Error) -> IndexError {
    let text = format!("{place}: {}", message(error));
    if may_pass(error) { IndexError::Unavailable(text) } else { IndexError::Storage(text) }
}
