//! The items on disk: an SQLite database with a table of items and a table of their thumbnails.
//!
//! SQLite was chosen over a younger engine in Rust (redb).  Its recovery after `kill -9` and power loss, in WAL mode with
//! `synchronous=FULL`, has been tested for decades, any tool can read the file, and later versions of this program will, too.
//! The C compiler that it needs is needed anyway.
//!
//! Every change is a transaction that is synced before it is acknowledged.  Thumbnails have a table of their own, so that
//! opening an index reads vectors only.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use macrl_bundle::atomic::Temporary;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, params};
use sha2::{Digest, Sha256};

use super::super::error::IndexError;
use super::super::item::{ContentHash, EncoderIdentity, Metadata};
use super::change::Change;
use super::folder::{self, Access, FILE, Lock, connect};
use super::item_table::{ItemTable, Record};

/// Version of the tables below; see docs/formats.md.
pub(super) const FORMAT: u32 = 1;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS items (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        vector BLOB NOT NULL,
        metadata TEXT NOT NULL,
        hash BLOB,
        pictured INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS pictures (seq INTEGER PRIMARY KEY, png BLOB NOT NULL) STRICT;
";

/// The writer's connection to the database; [`ThumbnailReader`] has another one.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    path: PathBuf,
    /// `None` for a reader.
    _lock: Option<Lock>,
}

/// An open store and what was read from it.
pub(super) struct OpenedStore {
    pub(super) store: Store,
    pub(super) thumbnails: ThumbnailReader,
    pub(super) table: ItemTable,
    pub(super) encoder: EncoderIdentity,
    /// The greatest sequence number that a write has ever had.
    pub(super) last_seq: u64,
    /// Different for every store: the graph's file carries it.
    pub(super) identity: String,
}

/// Reads thumbnails while the writer writes.
#[derive(Debug)]
pub(super) struct ThumbnailReader {
    connection: Mutex<Connection>,
    path: PathBuf,
    /// Keeps the temporary copy alive, if one is read.
    _access: Access,
}

impl ThumbnailReader {
    /// The thumbnail of the item whose write had this sequence number.
    pub(super) fn get(&self, seq: u64) -> Result<Option<Arc<[u8]>>, IndexError> {
        let connection = self.connection.lock().unwrap_or_else(|e| e.into_inner());
        let read = || {
            let mut statement = connection.prepare_cached("SELECT png FROM pictures WHERE seq = ?1")?;
            statement.query_row([seq as i64], |row| Ok(Arc::from(row.get_ref(0)?.as_blob()?))).optional()
        };
        read().map_err(|e| storage_error(&self.path, &e))
    }
}

/// An error while the database is in use; one line that names the file.
fn storage_error(path: &Path, error: &rusqlite::Error) -> IndexError {
    let message = format!("{}: {error}", path.display());
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DiskFull
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::OutOfMemory
            | ErrorCode::ReadOnly,
        ) => IndexError::Unavailable(message),
        _ => IndexError::Storage(message),
    }
}

/// An error while the database is being opened; one line that names the file.
fn open_error(path: &Path, error: &rusqlite::Error) -> IndexError {
    IndexError::Open(match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            format!(
                "{} is damaged: {error}; restore it from a copy, or ingest anew into another folder",
                path.display()
            )
        }
        _ => format!("cannot open {}: {error}", path.display()),
    })
}

impl Store {
    /// Opens the database in a folder, or creates it, and reads all items.
    pub(super) fn open(dir: &Path, encoder: &EncoderIdentity, max_bytes: usize) -> Result<OpenedStore, IndexError> {
        let path = dir.join(FILE);
        let lock = folder::claim(dir)?;
        folder::create_database(&path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = connect(&path, flags).map_err(|e| open_error(&path, &e))?;
        // Before anything is written to it.
        check_format(&connection, &path)?;
        create(&mut connection, encoder).map_err(|e| open_error(&path, &e))?;
        // A new folder is durable once its parent is synced.
        if let Ok(parent) = fs::canonicalize(dir).and_then(|d| File::open(d.join(".."))) {
            let _ = parent.sync_all();
        }
        let access = Access::shared(&path);
        Self { connection, path, _lock: Some(lock) }.read_all(&access, max_bytes)
    }

    /// Opens an existing database read-only, beside the process that writes it, and reads all items.
    pub(super) fn open_read_only(dir: &Path) -> Result<OpenedStore, IndexError> {
        let (connection, access) = read_connection(dir)?;
        Self { connection, path: dir.join(FILE), _lock: None }.read_all(&access, usize::MAX)
    }

    /// Runs work on the database.
    pub(super) fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        work(&mut self.connection).map_err(|e| storage_error(&self.path, &e))
    }

    fn read_all(self, access: &Access, max_bytes: usize) -> Result<OpenedStore, IndexError> {
        let dim = self.meta("dim")?.parse().map_err(|_| self.damaged("its dimension is no number"))?;
        let encoder = EncoderIdentity { sha256: self.meta("encoder")?, dim };
        let table = self.item_table(dim, max_bytes)?;
        let last = "SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'items'), 0)";
        let last_seq: i64 = self.connection.query_row(last, [], |row| row.get(0)).map_err(|e| self.open_error(&e))?;
        let connection = Mutex::new(access.connect().map_err(|e| self.open_error(&e))?);
        let thumbnails = ThumbnailReader { connection, path: self.path.clone(), _access: access.clone() };
        let identity = self.meta("identity")?;
        Ok(OpenedStore { store: self, thumbnails, table, encoder, last_seq: last_seq as u64, identity })
    }

    fn meta(&self, key: &str) -> Result<String, IndexError> {
        let found = self.connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0));
        found.map_err(|e| self.open_error(&e))
    }

    fn open_error(&self, error: &rusqlite::Error) -> IndexError {
        open_error(&self.path, error)
    }

    fn damaged(&self, what: &str) -> IndexError {
        IndexError::Open(format!("{} is damaged: {what}", self.path.display()))
    }

    fn item_table(&self, dim: usize, max_bytes: usize) -> Result<ItemTable, IndexError> {
        let fault = |e: rusqlite::Error| self.open_error(&e);
        let count: i64 =
            self.connection.query_row("SELECT COUNT(*) FROM items", [], |row| row.get(0)).map_err(fault)?;
        let too_large = || {
            let path = self.path.display();
            IndexError::Open(format!(
                "the items of {path} take more memory than the {max_bytes} bytes that they may: raise --max-index"
            ))
        };
        let vectors = (count as usize).saturating_mul(4 * dim);
        if vectors > max_bytes {
            return Err(too_large());
        }
        let mut table = ItemTable::new(dim, count as usize);
        let all = "SELECT seq, id, vector, metadata, hash, pictured FROM items ORDER BY seq";
        let mut statement = self.connection.prepare(all).map_err(fault)?;
        let mut rows = statement.query([]).map_err(fault)?;
        while let Some(row) = rows.next().map_err(fault)? {
            let (seq, record) = read_record(row).map_err(fault)?;
            if record.vector.len() != dim {
                let (id, found) = (&record.id, record.vector.len());
                return Err(self.damaged(&format!("item `{id}` has {found} numbers, expected {dim}")));
            }
            table.put(seq, record);
            if table.bytes() > max_bytes {
                return Err(too_large());
            }
        }
        Ok(table)
    }

    /// Makes all of these changes or none.  They are on disk when this returns.
    pub(super) fn commit(&mut self, changes: &[Change]) -> Result<(), IndexError> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            changes.iter().try_for_each(|change| write_change(&transaction, change))?;
            transaction.commit()
        })
    }

    /// Records another encoder.  It is on disk when this returns.
    pub(super) fn adopt(&mut self, encoder: &EncoderIdentity) -> Result<(), IndexError> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            transaction.execute("UPDATE meta SET value = ?1 WHERE key = 'encoder'", [&encoder.sha256])?;
            transaction.execute("UPDATE meta SET value = ?1 WHERE key = 'dim'", [encoder.dim.to_string()])?;
            transaction.commit()
        })
    }
}

/// A read-only connection.
fn read_connection(dir: &Path) -> Result<(Connection, Access), IndexError> {
    let path = dir.join(FILE);
    if !path.is_file() {
        let dir = dir.display();
        return Err(IndexError::Open(format!("there is no index at {dir}: expected a folder with {FILE}")));
    }
    let access = Access::find(dir)?;
    let connection = access.connect().map_err(|e| open_error(&path, &e))?;
    check_format(&connection, &path)?;
    Ok((connection, access))
}

/// See [`EmbeddedIndex::back_up`](super::EmbeddedIndex::back_up).
pub(super) fn back_up(dir: &Path, to: &Path) -> Result<usize, IndexError> {
    let (connection, _access) = read_connection(dir)?;
    let place = to.join(FILE);
    let cannot = |e: &dyn std::fmt::Display| IndexError::Open(format!("cannot write {}: {e}", place.display()));
    if place.exists() {
        return Err(cannot(&"there is an index already, expected an empty folder or a new one"));
    }
    let _lock = folder::claim(to)?;
    let temporary = Temporary::beside(&place);
    temporary.create_private().map_err(|e| cannot(&e))?;
    let items = copy(&connection, temporary.path()).map_err(|e| cannot(&e))?;
    let synced = File::open(temporary.path()).and_then(|file| file.sync_all());
    synced.and_then(|()| temporary.persist()).map_err(|e| cannot(&e))?;
    Ok(items)
}

/// Writes a copy of the database as it is now to a new file; returns the number of its items.
fn copy(connection: &Connection, to: &Path) -> rusqlite::Result<usize> {
    let name = to.to_str().ok_or_else(|| rusqlite::Error::InvalidPath(to.to_path_buf()))?;
    connection.execute("VACUUM INTO ?1", [name])?;
    let copied = connect(to, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    copied.query_row("SELECT COUNT(*) FROM items", [], |row| row.get::<_, i64>(0)).map(|items| items as usize)
}

/// Checks that the database is empty or an index whose format is known.
fn check_format(connection: &Connection, path: &Path) -> Result<(), IndexError> {
    let fault = |e: rusqlite::Error| open_error(path, &e);
    let other = |found: &str| {
        let path = path.display();
        IndexError::Open(format!("{path} is no index of this program: it has the table `{found}`"))
    };
    let asked = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    let mut statement = connection.prepare(asked).map_err(fault)?;
    let names = statement.query_map([], |row| row.get::<_, String>(0)).map_err(fault)?;
    let names = names.collect::<rusqlite::Result<Vec<String>>>().map_err(fault)?;
    if let Some(foreign) = names.iter().find(|name| !["meta", "items", "pictures"].contains(&name.as_str())) {
        return Err(other(foreign));
    }
    let Some(first) = names.first() else { return Ok(()) };
    if !names.iter().any(|name| name == "meta") {
        return Err(other(first));
    }
    let asked = "SELECT value FROM meta WHERE key = 'format'";
    let found: Option<String> = connection.query_row(asked, [], |row| row.get(0)).optional().map_err(fault)?;
    match found {
        Some(found) if found != FORMAT.to_string() => Err(IndexError::Open(format!(
            "{} has format {found}, this program reads format {FORMAT}: use a newer version of it",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Creates the tables that do not exist yet: all of them or none.
fn create(connection: &mut Connection, encoder: &EncoderIdentity) -> rusqlite::Result<()> {
    // Has an effect in a database without tables only.
    connection.pragma_update(None, "auto_vacuum", "incremental")?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    // Bytes that the log keeps after a large change.
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(TABLES)?;
    {
        let mut set = transaction.prepare("INSERT OR IGNORE INTO meta VALUES (?1, ?2)")?;
        set.execute(["format", &FORMAT.to_string()])?;
        set.execute(["identity", &identity()])?;
        set.execute(["encoder", &encoder.sha256])?;
        set.execute(["dim", &encoder.dim.to_string()])?;
    }
    transaction.commit()
}

/// A new identity.
fn identity() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let text = format!("{} {}", now.as_nanos(), std::process::id());
    Sha256::digest(text.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn read_record(row: &rusqlite::Row) -> rusqlite::Result<(u64, Record)> {
    let numbers = row.get_ref(2)?.as_blob()?.chunks_exact(4);
    let hash = row.get_ref(4)?.as_blob_or_null()?.and_then(|bytes| ContentHash::try_from(bytes).ok());
    let record = Record {
        id: row.get_ref(1)?.as_str()?.into(),
        vector: numbers.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        metadata: Metadata::from_stored(row.get_ref(3)?.as_str()?),
        hash,
        has_image: row.get::<_, i64>(5)? != 0,
        image: None,
    };
    Ok((row.get::<_, i64>(0)? as u64, record))
}

fn write_change(transaction: &Transaction, change: &Change) -> rusqlite::Result<()> {
    let id: &str = change.id();
    transaction
        .prepare_cached("DELETE FROM pictures WHERE seq = (SELECT seq FROM items WHERE id = ?1 AND pictured)")?
        .execute([id])?;
    transaction.prepare_cached("DELETE FROM items WHERE id = ?1")?.execute([id])?;
    let Change::Put { seq, record, image } = change else { return Ok(()) };
    let vector: Vec<u8> = record.vector.iter().flat_map(|v| v.to_le_bytes()).collect();
    let hash = record.hash.as_ref().map(|h| h.as_slice());
    transaction.prepare_cached("INSERT INTO items VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        *seq as i64,
        id,
        vector,
        record.metadata.as_str(),
        hash,
        record.has_image
    ])?;
    if let Some(png) = image {
        transaction.prepare_cached("INSERT INTO pictures VALUES (?1, ?2)")?.execute(params![*seq as i64, &**png])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Durability rests on this: a commit is synced, and a reader beside the writer sees whole commits only.
    #[test]
    fn commits_are_synced_write_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let opened = Store::open(dir.path(), &EncoderIdentity { sha256: "a".into(), dim: 2 }, usize::MAX).unwrap();
        let pragma = |name: &str| -> String {
            let value = |row: &rusqlite::Row| row.get_ref(0).map(|v| format!("{v:?}"));
            opened.store.connection.pragma_query_value(None, name, value).unwrap()
        };
        // 2 is FULL.
        assert_eq!(pragma("synchronous"), "Integer(2)");
        assert!(pragma("journal_mode").contains(&format!("{:?}", b"wal")));
    }

    #[test]
    fn a_full_disk_changes_nothing_and_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let encoder = EncoderIdentity { sha256: "a".into(), dim: 1000 };
        let mut store = Store::open(dir.path(), &encoder, usize::MAX).unwrap().store;
        let put = |seq: u64| Change::Put {
            seq,
            record: Record {
                id: format!("item {seq}").into(),
                vector: vec![1.0; 1000],
                metadata: Metadata::default(),
                hash: None,
                has_image: false,
                image: None,
            },
            image: None,
        };
        store.commit(&[put(1)]).unwrap();
        let pages: i64 = store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        let limit = |store: &Store, pages: i64| {
            store.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
        };
        // SQLite reports a full disk when the file would grow past this.
        limit(&store, pages + 10);
        let many: Vec<Change> = (2..50).map(put).collect();
        let error = store.commit(&many).unwrap_err();
        assert!(matches!(error, IndexError::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains("items.sqlite: database or disk is full"), "{error}");
        limit(&store, 1 << 30);
        store.commit(&[put(50)]).unwrap();
        drop(store);
        let table = Store::open(dir.path(), &encoder, usize::MAX).unwrap().table;
        assert_eq!((table.len(), table.slot("item 50").is_some()), (2, true));
    }

    #[test]
    fn a_file_that_is_no_database_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, "something else entirely, and long enough to be looked at".repeat(100)).unwrap();
        let Err(IndexError::Open(message)) =
            Store::open(dir.path(), &EncoderIdentity { sha256: "a".into(), dim: 2 }, usize::MAX)
        else {
            panic!("opened")
        };
        assert!(message.starts_with(&format!("{} is damaged", path.display())), "{message}");
    }
}
