//! The folder of an index: it is the index's alone, one process writes it at a time, and whoever may only read it still
//! can.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::super::IndexError;
use super::graph;

/// The data base.
pub(super) const FILE: &str = "items.sqlite";
const LOCK: &str = "lock";
/// What SQLite keeps beside the data base while it is open; it holds the last changes.
const JOURNAL: &str = "items.sqlite-wal";
/// A reader beside the writer may have to wait for a moment.
pub(super) const BUSY: Duration = Duration::from_secs(5);
/// What may be in a folder that is about to become an index: what we would make again, and what ext4 makes.
/// A power cut while the data base was created leaves its first journals alone.
const NOTHING: [&str; 5] = [LOCK, graph::FILE, JOURNAL, "items.sqlite-journal", "lost+found"];

/// Held by the process that writes a folder.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that was forked and has not begun its program yet has the file open, too.
        let _ = self.0.unlock();
    }
}

/// Makes the folder, or sees that nothing of anybody else's is in it; held by this process from now on.
pub(super) fn claim(dir: &Path) -> Result<Lock, IndexError> {
    fs::create_dir_all(dir).map_err(|e| IndexError::Open(format!("cannot create {}: {e}", dir.display())))?;
    check_empty(dir)?;
    lock(dir)
}

/// A folder without an index must be without anything.
pub(super) fn check_empty(dir: &Path) -> Result<(), IndexError> {
    if dir.join(FILE).exists() {
        return Ok(());
    }
    let cannot = |e: std::io::Error| IndexError::Open(format!("cannot read {}: {e}", dir.display()));
    let mut others = Vec::new();
    for entry in fs::read_dir(dir).map_err(cannot)? {
        let name = entry.map_err(cannot)?.file_name();
        if !NOTHING.iter().any(|ours| name == *ours) {
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

/// One process writes a folder at a time.
fn lock(dir: &Path) -> Result<Lock, IndexError> {
    let path = dir.join(LOCK);
    let cannot = |e: std::io::Error| IndexError::Open(format!("cannot write {}: {e}", path.display()));
    let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = options.map_err(cannot)?;
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
    // For people only: the lock is the lock.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "pid {}", std::process::id()));
    Ok(Lock(file))
}

/// How the data base is opened by whoever only reads it.
#[derive(Debug, Clone)]
pub(super) struct Access {
    name: PathBuf,
    flags: OpenFlags,
    /// The copy that is read instead, where there is one.
    _copy: Option<Arc<Copied>>,
}

/// A copy of the data base, removed when nobody reads it any more.
#[derive(Debug)]
struct Copied(PathBuf);

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Access {
    /// Beside the process that writes.
    pub(super) fn beside(path: &Path) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self { name: path.to_path_buf(), flags, _copy: None }
    }

    /// To a folder that may be writable or not.
    ///
    /// SQLite writes beside a data base with a journal even to read it.  Where it cannot, the data base is either whole
    /// without its journal and read as if nobody ever wrote to it, or copied together with it.
    pub(super) fn find(dir: &Path) -> Result<Self, IndexError> {
        let path = dir.join(FILE);
        let beside = Self::beside(&path);
        let probe = beside.connect().and_then(|c| c.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())));
        match probe.map_err(|e| e.sqlite_error_code()) {
            Err(Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied)) => {}
            // What else is wrong is found by reading.
            _ => return Ok(beside),
        }
        let journal = fs::metadata(dir.join(JOURNAL)).is_ok_and(|journal| journal.len() > 0);
        if journal { Self::copied(dir) } else { Ok(Self::immutable(&path)) }
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
        Self { name: name.into(), flags: Self::beside(path).flags | OpenFlags::SQLITE_OPEN_URI, _copy: None }
    }

    fn copied(dir: &Path) -> Result<Self, IndexError> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let place = std::env::temp_dir().join(format!("macrl-index-{}-{number}", std::process::id()));
        let copy = || -> std::io::Result<Copied> {
            fs::create_dir(&place)?;
            let copied = Copied(place.clone());
            for file in [FILE, JOURNAL] {
                fs::copy(dir.join(file), place.join(file))?;
                // The rights came along.
                fs::set_permissions(place.join(file), fs::Permissions::from_mode(0o600))?;
            }
            Ok(copied)
        };
        let copied = copy().map_err(|e| {
            let (dir, place) = (dir.display(), place.display());
            IndexError::Open(format!("cannot copy {dir}, which is read-only and has a journal, to {place}: {e}"))
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
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}
