//! Labels on disk: an SQLite database beside the index.
//!
//! It is a file of its own, so that earlier versions of this program can still open the index.  A removed label stays as an
//! empty one: the version never falls.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use rusqlite::{Connection, OptionalExtension, params};

use crate::index::{IndexError, Location};

/// The file in the index's folder.
const FILE: &str = "labels.sqlite";
/// Version of the tables below, in SQLite's `user_version`.
const FORMAT: i64 = 1;
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS labels (id TEXT PRIMARY KEY, label TEXT, version INTEGER NOT NULL) STRICT;
    CREATE INDEX IF NOT EXISTS labels_by_version ON labels (version);
    CREATE TABLE IF NOT EXISTS probes (
        version INTEGER NOT NULL, encoder TEXT NOT NULL, labelled INTEGER NOT NULL, judged INTEGER NOT NULL,
        accuracy REAL NOT NULL, PRIMARY KEY (encoder, version)
    ) STRICT;
";

/// A label for an item, or its removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelChange {
    /// The item.
    pub id: String,
    /// `None` removes the label.
    pub label: Option<String>,
}

/// All labels at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labelled {
    /// Grows with every change.
    pub version: u64,
    /// Items and their labels, in the order of the ids.
    pub labels: Vec<(String, String)>,
}

/// How good a classifier was.
#[derive(Debug, Clone, PartialEq)]
pub struct PastProbe {
    /// Version of its labels.
    pub version: u64,
    /// Items that were labelled.
    pub labelled: usize,
    /// Items that it was judged on while they were left out.
    pub judged: usize,
    /// Share of them that it classified right.
    pub accuracy: f64,
}

/// The labels of an index.
#[derive(Debug)]
pub struct LabelStore {
    connection: Mutex<Connection>,
    /// For messages.
    path: PathBuf,
}

impl LabelStore {
    /// Opens the labels of an index that this process has open, or creates them; `None` if such an index keeps none.
    ///
    /// # Errors
    /// [`IndexError::Open`].
    pub fn open(location: &Location) -> Result<Option<Self>, IndexError> {
        let (opened, path) = match location {
            Location::Postgres(_) => return Ok(None),
            Location::Memory => (Connection::open_in_memory(), PathBuf::from("labels in memory")),
            Location::Folder(dir) => (Connection::open(dir.join(FILE)), dir.join(FILE)),
        };
        let fault = |e: rusqlite::Error| IndexError::Open(format!("cannot open {}: {e}", path.display()));
        let connection = opened.map_err(fault)?;
        let format: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fault)?;
        if ![0, FORMAT].contains(&format) {
            let found = format!("{} has format {format}, this program reads format {FORMAT}", path.display());
            return Err(IndexError::Open(format!("{found}: use a newer version of it")));
        }
        create(&connection).map_err(fault)?;
        Ok(Some(Self { connection: Mutex::new(connection), path }))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn run<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, IndexError> {
        work(&mut self.connection()).map_err(|e| IndexError::Unavailable(format!("{}: {e}", self.path.display())))
    }

    /// All labels.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`].
    pub fn all(&self) -> Result<Labelled, IndexError> {
        self.run(|connection| {
            // One transaction: the version belongs to the labels.
            let transaction = connection.transaction()?;
            let version = version(&transaction)?;
            let asked = "SELECT id, label FROM labels WHERE label IS NOT NULL ORDER BY id";
            let mut statement = transaction.prepare_cached(asked)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let labels = rows.collect::<rusqlite::Result<_>>()?;
            Ok(Labelled { version, labels })
        })
    }

    /// The present version.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`].
    pub fn version(&self) -> Result<u64, IndexError> {
        self.run(|connection| version(connection))
    }

    /// Makes all of these changes or none, on disk when this returns.  Returns the new version and what the items were
    /// labelled before, which undoes the changes.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`].
    pub fn change(&self, changes: &[LabelChange]) -> Result<(u64, Vec<LabelChange>), IndexError> {
        self.run(|connection| {
            let transaction = connection.transaction()?;
            let next = version(&transaction)? + 1;
            let mut before = Vec::with_capacity(changes.len());
            for change in changes {
                let asked = "SELECT label FROM labels WHERE id = ?1";
                let found: Option<Option<String>> =
                    transaction.prepare_cached(asked)?.query_row([&change.id], |row| row.get(0)).optional()?;
                before.push(LabelChange { id: change.id.clone(), label: found.flatten() });
                let set = "INSERT INTO labels VALUES (?1, ?2, ?3)
                    ON CONFLICT (id) DO UPDATE SET label = excluded.label, version = excluded.version";
                transaction.prepare_cached(set)?.execute(params![change.id, change.label, next as i64])?;
            }
            transaction.commit()?;
            Ok((next, before))
        })
    }

    /// Records how good a classifier is.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`].
    pub fn record(&self, encoder: &str, past: &PastProbe) -> Result<(), IndexError> {
        let numbers = (past.version as i64, past.labelled as i64, past.judged as i64);
        self.run(|connection| {
            let set = "INSERT OR REPLACE INTO probes VALUES (?1, ?2, ?3, ?4, ?5)";
            connection.execute(set, params![numbers.0, encoder, numbers.1, numbers.2, past.accuracy]).map(drop)
        })
    }

    /// The last 500 recorded classifiers of an encoder, oldest first.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`].
    pub fn history(&self, encoder: &str) -> Result<Vec<PastProbe>, IndexError> {
        self.run(|connection| {
            let asked = "SELECT version, labelled, judged, accuracy FROM probes WHERE encoder = ?1
                ORDER BY version DESC LIMIT 500";
            let mut statement = connection.prepare_cached(asked)?;
            let rows = statement.query_map([encoder], |row| {
                let count = |i| row.get::<_, i64>(i);
                let (version, labelled, judged) = (count(0)? as u64, count(1)? as usize, count(2)? as usize);
                Ok(PastProbe { version, labelled, judged, accuracy: row.get(3)? })
            })?;
            let mut found = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            found.reverse();
            Ok(found)
        })
    }
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.execute_batch(TABLES)?;
    connection.pragma_update(None, "user_version", FORMAT)
}

fn version(connection: &Connection) -> rusqlite::Result<u64> {
    let asked = "SELECT COALESCE(MAX(version), 0) FROM labels";
    connection.query_row(asked, [], |row| row.get::<_, i64>(0)).map(|version| version as u64)
}

/// Copies the labels of the index in a folder, if it has any, to the folder of its copy.
///
/// # Errors
/// [`IndexError::Open`].
pub fn back_up(dir: &Path, to: &Path) -> Result<(), IndexError> {
    let (from, to) = (dir.join(FILE), to.join(FILE));
    if !from.is_file() {
        return Ok(());
    }
    let cannot = |e: &dyn std::fmt::Display| IndexError::Open(format!("cannot copy {}: {e}", from.display()));
    if to.exists() {
        return Err(cannot(&format!("{} exists", to.display())));
    }
    let name = to.to_str().ok_or_else(|| cannot(&"the folder's name is not UTF-8"))?;
    let connection = Connection::open(&from).map_err(|e| cannot(&e))?;
    connection.execute("VACUUM INTO ?1", [name]).map_err(|e| cannot(&e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(id: &str, label: Option<&str>) -> LabelChange {
        LabelChange { id: id.into(), label: label.map(String::from) }
    }

    #[test]
    fn labels_survive_reopening_and_what_was_before_undoes_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::Folder(dir.path().into());
        let open = || LabelStore::open(&location).unwrap().unwrap();
        let store = open();
        assert_eq!(store.change(&[change("b", Some("dog")), change("a", Some("cat"))]).unwrap().0, 1);
        let (version, before) = store.change(&[change("a", Some("cow")), change("c", Some("cow"))]).unwrap();
        assert_eq!((version, before.clone()), (2, vec![change("a", Some("cat")), change("c", None)]));
        store.record("e", &PastProbe { version: 2, labelled: 3, judged: 2, accuracy: 0.5 }).unwrap();
        drop(store);
        let store = open();
        assert_eq!(store.change(&before).unwrap().0, 3);
        let labels = [("a", "cat"), ("b", "dog")].map(|(id, label)| (id.to_string(), label.to_string()));
        assert_eq!(store.all().unwrap(), Labelled { version: 3, labels: labels.to_vec() });
        assert_eq!((store.history("e").unwrap().len(), store.history("other").unwrap().len()), (1, 0));
        let copy = tempfile::tempdir().unwrap();
        back_up(dir.path(), copy.path()).unwrap();
        assert_eq!(LabelStore::open(&Location::Folder(copy.path().into())).unwrap().unwrap().all().unwrap().version, 3);
        assert!(back_up(dir.path(), copy.path()).unwrap_err().to_string().contains("exists"));
        // A file of a later version is not touched.
        let raw = Connection::open(dir.path().join(FILE)).unwrap();
        raw.pragma_update(None, "user_version", 9).unwrap();
        assert!(LabelStore::open(&location).unwrap_err().to_string().contains("format 9"));
    }
}
