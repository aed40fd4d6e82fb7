//! Space of what was deleted goes back to the file system, in steps, while nobody writes.

use std::time::Duration;

use rusqlite::Connection;

use super::super::IndexError;
use super::folder::BUSY;
use super::store::Store;

/// When unused space is to be looked for again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Tidying {
    /// There is more to do.
    Now,
    /// A reader was in the way, or there may be something after a pause.
    Later,
    /// When something was changed.
    Changed,
}

/// Pages (of 4 KiB) that are given back at a time.
const STEP: u64 = 1024;
/// With fewer pages unused, the next writes will want them.
const WORTH: u64 = 256;

impl Store {
    /// One step.
    ///
    /// # Errors
    /// The storage's; nothing is lost.
    pub(super) fn tidy(&mut self) -> Result<Tidying, IndexError> {
        self.with(|connection| {
            let free = number(connection, "freelist_count")?;
            if free < WORTH {
                return settle(connection);
            }
            // 2 is INCREMENTAL.
            if number(connection, "auto_vacuum")? == 2 {
                run(connection, &format!("PRAGMA incremental_vacuum({STEP})"))?;
            } else if free > number(connection, "page_count")? / 2 {
                // From a version that never gave anything back: rewritten once, what is in use is the smaller part.
                connection.pragma_update(None, "auto_vacuum", 2)?;
                run(connection, "VACUUM")?;
            } else {
                return settle(connection);
            }
            Ok(Tidying::Now)
        })
    }
}

/// Moves the journal into the data base, whose file may only now become shorter.
fn settle(connection: &Connection) -> rusqlite::Result<Tidying> {
    // Writers would wait, too.
    connection.busy_timeout(Duration::ZERO)?;
    let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    connection.busy_timeout(BUSY)?;
    Ok(if busy? == 0 { Tidying::Changed } else { Tidying::Later })
}

fn number(connection: &Connection, pragma: &str) -> rusqlite::Result<u64> {
    connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map(|n| n.unsigned_abs())
}

/// To its end: a pragma may do a part of its work with every row.
fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}
