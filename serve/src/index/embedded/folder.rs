//! The folder of an index.  It holds nothing but the index, one process at a time writes it, and a process without write
//! permission can still read it.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use macrl_bundle::atomic;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::super::error::IndexError;
use super::graph;

/// Name of the SQLite database in the folder.
pub(super) const FILE: &str = "items.sqlite";
const LOCK: &str = "lock";
/// SQLite's write-ahead log: the last changes, while the database is open.
const WAL: &str = "items.sqlite-wal";
/// How long SQLite waits for a lock that another connection holds.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Files that a folder without an index may hold: files of an index that are made again, SQLite's journals alone (after a
/// power cut while the database was created), the unfinished copy of an early version's `backup`, and what ext4 makes.
const IGNORED: [&str; 6] = [LOCK, graph::FILE, WAL, "items.sqlite-journal", "items.tmp", "lost+found"];

/// A lock on a folder, held by the process that writes it.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a forked child that has not yet started its program has it open, too.
        let _ = self.0.unlock();
    }
}

/// Creates the folder, or checks that it holds nothing but an index, and locks it.  Removes what killed writers left.
pub(super) fn claim(dir: &Path) -> Result<Lock, IndexError> {
    fs::create_dir_all(dir).map_err(|e| IndexError::Open(format!("cannot create {}: {e}", dir.display())))?;
    check_empty(dir)?;
    let lock = lock(dir)?;
    for file in [FILE, graph::FILE] {
        let _ = atomic::sweep_of(dir, file); // leftovers do no harm
    }
    Ok(lock)
}

/// Creates a database file that only its owner can read, if there is none.  SQLite gives its journals the same permissions; those
/// of an existing file stay as they are.
pub(super) fn create_database(path: &Path) -> Result<(), IndexError> {
    match atomic::create_private(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(IndexError::Open(format!("cannot create {}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// A folder without an index must be empty.
fn check_empty(dir: &Path) -> Result<(), IndexError> {
    if dir.join(FILE).exists() {
        return Ok(());
    }
    let cannot = |e: std::io::Error| IndexError::Open(format!("cannot read {}: {e}", dir.display()));
    let mut others = Vec::new();
    for entry in fs::read_dir(dir).map_err(cannot)? {
        let name = entry.map_err(cannot)?.file_name();
        let unfinished = name.to_string_lossy().starts_with(&format!(".{FILE}.tmp-"));
        if !unfinished && !IGNORED.iter().any(|ignored| name == *ignored) {
            others.push(name.to_string_lossy().into_owned());
        }
    }
    others.sort();
    let Some(first) = others.first() else { return Ok(()) };
    let more = if others.len() > 1 { format!(" and {} more", others.len() - 1) } else { String::new() };
    let dir = dir.display();
    Err(IndexError::Open(format!(
        "{dir} is no index and holds other things ({first}{more}): expected an index, an empty folder or a new one"
    )))
}

/// Locks the folder; the lock file names the process for people.
fn lock(dir: &Path) -> Result<Lock, IndexError> {
    let path = dir.join(LOCK);
    let cannot = |e: std::io::Error| IndexError::Open(format!("cannot write {}: {e}", path.display()));
    let opened = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = opened.map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(e)) => return Err(cannot(e)),
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            let owner = if owner.trim().is_empty() { String::new() } else { format!(" ({})", owner.trim()) };
            let dir = dir.display();
            return Err(IndexError::Open(format!(
                "the index {dir} is being written by another process{owner}: one process at a time may have it"
            )));
        }
    }
    // A failure changes nothing: the lock itself is held.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "pid {}", std::process::id()));
    Ok(Lock(file))
}

/// How a reader opens the database.
#[derive(Debug, Clone)]
pub(super) struct Access {
    /// Path or SQLite URI.
    name: PathBuf,
    flags: OpenFlags,
    /// The copy that is read instead of the database, if there is one.
    _copy: Option<Arc<TemporaryCopy>>,
}

/// A copy of the database in a folder of its own, which is removed when the last reader is dropped.
#[derive(Debug)]
struct TemporaryCopy(PathBuf);

impl Drop for TemporaryCopy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Access {
    /// Read-only, beside the process that writes.
    pub(super) fn shared(path: &Path) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self { name: path.to_path_buf(), flags, _copy: None }
    }

    /// Finds a way to read the database in a folder that may not be writable.
    ///
    /// SQLite writes files beside a database with a write-ahead log even to read it.  If it cannot, the database is opened as
    /// immutable when its log is empty, and copied together with its log when it is not.
    pub(super) fn find(dir: &Path) -> Result<Self, IndexError> {
        let path = dir.join(FILE);
        let shared = Self::shared(&path);
        let probe = shared.connect().and_then(|c| c.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())));
        match probe.map_err(|e| e.sqlite_error_code()) {
            Err(Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied)) => {}
            // Any other fault is reported when the database is read.
            _ => return Ok(shared),
        }
        let has_log = fs::metadata(dir.join(WAL)).is_ok_and(|log| log.len() > 0);
        if has_log { Self::copied(dir) } else { Ok(Self::immutable(&path)) }
    }

    fn immutable(path: &Path) -> Self {
        let mut name = "file:".to_string();
        for byte in path.as_os_str().as_bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => name.push(char::from(*byte)),
                other => name.push_str(&format!("%{other:02x}")),
            }
        }
        name.push_str("?immutable=1");
        Self { name: name.into(), flags: Self::shared(path).flags | OpenFlags::SQLITE_OPEN_URI, _copy: None }
    }

    fn copied(dir: &Path) -> Result<Self, IndexError> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let place = std::env::temp_dir().join(format!("macrl-index-{}-{number}", std::process::id()));
        let copy = || -> std::io::Result<TemporaryCopy> {
            fs::DirBuilder::new().mode(0o700).create(&place)?;
            let copied = TemporaryCopy(place.clone());
            for file in [FILE, WAL] {
                fs::copy(dir.join(file), place.join(file))?;
                // The copy has the original's permissions, which may not allow writing.
                fs::set_permissions(place.join(file), fs::Permissions::from_mode(0o600))?;
            }
            Ok(copied)
        };
        let copied = copy().map_err(|e| {
            let (dir, place) = (dir.display(), place.display());
            IndexError::Open(format!(
                "cannot copy {dir}, which is read-only and has a write-ahead log, to {place}: {e}"
            ))
        })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Ok(Self { name: place.join(FILE), flags, _copy: Some(Arc::new(copied)) })
    }

    pub(super) fn connect(&self) -> rusqlite::Result<Connection> {
        connect(&self.name, self.flags)
    }
}

pub(super) fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}
