//! Gives the disk space of deleted items back to the file system, in steps, while nobody writes.

use std::time::Duration;

use rusqlite::Connection;

use super::super::error::IndexError;
use super::folder::BUSY_TIMEOUT;
use super::store::Store;

/// When the next step is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum VacuumState {
    /// At once: there is more to give back.
    Unfinished,
    /// After a pause: a reader was in the way, or the database was just changed.
    AfterPause,
    /// After the next change.
    AfterChange,
}

/// Pages (of 4 KiB) that one step gives back.
const STEP: u64 = 1024;
/// With fewer unused pages, nothing is given back: the next writes will need them.
const MIN_UNUSED: u64 = 256;

impl Store {
    /// Makes one step.
    ///
    /// # Errors
    /// The storage's; nothing is lost.
    pub(super) fn vacuum(&mut self) -> Result<VacuumState, IndexError> {
        self.with(|connection| {
            let unused = number(connection, "freelist_count")?;
            if unused < MIN_UNUSED {
                return checkpoint(connection);
            }
            // 2 is INCREMENTAL.
            if number(connection, "auto_vacuum")? == 2 {
                run(connection, &format!("PRAGMA incremental_vacuum({STEP})"))?;
            } else if unused > number(connection, "page_count")? / 2 {
                // An early version made the database without auto_vacuum.  Rewriting it once is cheap: less than half of it
                // is in use.
                connection.pragma_update(None, "auto_vacuum", 2)?;
                run(connection, "VACUUM")?;
            } else {
                return checkpoint(connection);
            }
            Ok(VacuumState::Unfinished)
        })
    }
}

/// Moves the write-ahead log into the database file, which can only be shortened after that.
fn checkpoint(connection: &Connection) -> rusqlite::Result<VacuumState> {
    // Waiting here would make writers wait, too.
    connection.busy_timeout(Duration::ZERO)?;
    let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(if busy? == 0 { VacuumState::AfterChange } else { VacuumState::AfterPause })
}

fn number(connection: &Connection, pragma: &str) -> rusqlite::Result<u64> {
    connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map(|n| n.unsigned_abs())
}

/// Runs a statement to its end: a pragma may do a part of its work with every row.
fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}
