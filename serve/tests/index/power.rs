//! A power cut at any moment: every acknowledged change is stored, and no change is stored in part.
//!
//! A layer below SQLite records every write, truncation, sync and deletion of files in order, and each acknowledgement of
//! a change.  Then a power cut is simulated after any of these: synced writes are on the disk; each later write is
//! complete, missing, or there with only some of its sectors.  The index is opened on the remaining files.  Misplaced
//! writes and loss of synced data are not simulated.
//!
//! bench/index_power.sh runs it with `MACRL_POWER_CUTS=5000`.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use macrl_serve::index::{EmbeddedIndex, Index, Item, ListQuery};
use rusqlite::ffi;
use serde_json::json;

use crate::backends::*;

const DIM: usize = 64;
/// Environment variable with the recorded folder.
const CHILD: &str = "MACRL_POWER_CHILD";
/// Size of a sector in bytes: a disk writes it whole or not at all.
const SECTOR: usize = 512;

/// A recorded operation on a file, or the acknowledgement of a change.
enum Op {
    Write {
        file: String,
        at: usize,
        data: Vec<u8>,
    },
    Truncate {
        file: String,
        len: usize,
    },
    /// `folder`: its folder was also synced, so that earlier deletions in it are durable.
    Sync {
        file: String,
        folder: bool,
    },
    /// `true`: the folder was also synced.
    Delete {
        file: String,
        synced: bool,
    },
    Acknowledged,
}

/// The recorded operations, and the open files.
#[derive(Default)]
struct Recorder {
    ops: Vec<Op>,
    /// Open files by the address of SQLite's object.
    open: HashMap<usize, Open>,
    /// Our function table for each of SQLite's.
    ours: HashMap<usize, usize>,
}

#[derive(Clone)]
struct Open {
    /// SQLite's function table of this file.
    methods: usize,
    /// Its name; `None` if it is outside the recorded folder.
    name: Option<String>,
    /// SQLite syncs the folder together with the first sync of a journal that it opened for writing.
    syncs_folder: bool,
}

static RECORDER: OnceLock<Mutex<Recorder>> = OnceLock::new();
static FOLDER: OnceLock<String> = OnceLock::new();
/// SQLite's default layer.
static REAL: OnceLock<usize> = OnceLock::new();

fn recorder() -> std::sync::MutexGuard<'static, Recorder> {
    RECORDER.get_or_init(Mutex::default).lock().unwrap()
}

fn record(file: *mut ffi::sqlite3_file, op: impl FnOnce(String) -> Op) {
    let mut recorder = recorder();
    if let Some(name) = recorder.open.get(&(file as usize)).and_then(|open| open.name.clone()) {
        recorder.ops.push(op(name));
    }
}

fn real() -> *mut ffi::sqlite3_vfs {
    *REAL.get().unwrap() as *mut ffi::sqlite3_vfs
}

/// SQLite's own function table of a file.
fn methods(file: *mut ffi::sqlite3_file) -> ffi::sqlite3_io_methods {
    let methods = recorder().open.get(&(file as usize)).unwrap().methods as *const ffi::sqlite3_io_methods;
    // SAFETY: SQLite's function tables are static.
    unsafe { *methods }
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite's own function, with SQLite's arguments.
    let code = unsafe { (*real()).xOpen.unwrap()(real(), name, file, flags, out) };
    if code != ffi::SQLITE_OK {
        return code;
    }
    // SAFETY: the file has just been opened.
    let (methods, name) = unsafe { ((*file).pMethods, recorded(name)) };
    let mut recorder = recorder();
    let journal = ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL | ffi::SQLITE_OPEN_WAL;
    let syncs_folder = flags & ffi::SQLITE_OPEN_CREATE != 0 && flags & journal != 0;
    recorder.open.insert(file as usize, Open { methods: methods as usize, name, syncs_folder });
    let ours = *recorder.ours.entry(methods as usize).or_insert_with(|| {
        // SAFETY: SQLite's function tables are static.
        let mut ours = unsafe { *methods };
        ours.xWrite = Some(write);
        ours.xTruncate = Some(truncate);
        ours.xSync = Some(sync);
        ours.xClose = Some(close);
        // Version 3 adds memory-mapped reading, which would bypass the layer.
        ours.iVersion = ours.iVersion.min(2);
        Box::leak(Box::new(ours)) as *const ffi::sqlite3_io_methods as usize
    });
    // SAFETY: SQLite's own function, with SQLite's arguments.
    unsafe { (*file).pMethods = ours as *const ffi::sqlite3_io_methods };
    code
}

/// The name within the recorded folder.
///
/// # Safety
/// `name` is null or a C string.
unsafe fn recorded(name: *const c_char) -> Option<String> {
    if name.is_null() {
        return None;
    }
    // SAFETY: the caller guarantees a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_str().ok()?;
    Some(name.strip_prefix(FOLDER.get()?)?.trim_start_matches('/').to_string())
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, amount: c_int, at: i64) -> c_int {
    // SAFETY: SQLite's own function, with SQLite's arguments.
    let code = unsafe { methods(file).xWrite.unwrap()(file, data, amount, at) };
    if code == ffi::SQLITE_OK {
        // SAFETY: SQLite passes `amount` readable bytes.
        let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), amount as usize) }.to_vec();
        record(file, |file| Op::Write { file, at: at as usize, data });
    }
    code
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, len: i64) -> c_int {
    // SAFETY: SQLite's own function, with SQLite's arguments.
    let code = unsafe { methods(file).xTruncate.unwrap()(file, len) };
    if code == ffi::SQLITE_OK {
        record(file, |file| Op::Truncate { file, len: len as usize });
    }
    code
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: SQLite's own function, with SQLite's arguments.
    let code = unsafe { methods(file).xSync.unwrap()(file, flags) };
    if code == ffi::SQLITE_OK {
        let open = |open: &mut Open| std::mem::take(&mut open.syncs_folder);
        let folder = recorder().open.get_mut(&(file as usize)).is_some_and(open);
        record(file, |file| Op::Sync { file, folder });
    }
    code
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let methods = methods(file);
    recorder().open.remove(&(file as usize));
    // SAFETY: SQLite's own function, with SQLite's arguments.
    unsafe { methods.xClose.unwrap()(file) }
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: SQLite's own function, with SQLite's arguments.
    let (code, recorded) = unsafe { ((*real()).xDelete.unwrap()(real(), name, sync), recorded(name)) };
    if let Some(file) = recorded.filter(|_| code == ffi::SQLITE_OK) {
        recorder().ops.push(Op::Delete { file, synced: sync != 0 });
    }
    code
}

/// Registers the layer: every database that this process opens later goes through it.
fn install(folder: &Path) {
    FOLDER.set(folder.to_str().unwrap().to_string()).unwrap();
    // SAFETY: the call initialises SQLite; the registered structures live as long as the process.
    unsafe {
        assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK);
        let default = ffi::sqlite3_vfs_find(std::ptr::null());
        REAL.set(default as usize).unwrap();
        let ours = Box::leak(Box::new(std::ptr::read(default)));
        ours.zName = c"recorder".as_ptr();
        ours.pNext = std::ptr::null_mut();
        ours.xOpen = Some(open);
        ours.xDelete = Some(delete);
        assert_eq!(ffi::sqlite3_vfs_register(ours, 1), ffi::SQLITE_OK);
    }
}

/// A file on the simulated disk.
#[derive(Clone, Default)]
struct OnDisk {
    content: Option<Vec<u8>>,
}

impl OnDisk {
    fn write(&mut self, at: usize, data: &[u8]) {
        let content = self.content.get_or_insert_default();
        content.resize(content.len().max(at + data.len()), 0);
        content[at..at + data.len()].copy_from_slice(data);
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Write { at, data, .. } => self.write(*at, data),
            Op::Truncate { len, .. } => self.content.get_or_insert_default().resize(*len, 0),
            Op::Delete { .. } => self.content = None,
            Op::Sync { .. } | Op::Acknowledged => {}
        }
    }

    /// Its folder was synced: deletions are durable.
    fn deleted_for_good(&mut self, pending: &mut Vec<&Op>) {
        if let Some(at) = pending.iter().rposition(|op| matches!(op, Op::Delete { .. })) {
            self.content = None;
            pending.drain(..=at);
        }
    }

    /// Applies the power cut: each unsynced write is kept, dropped, or kept in some of its sectors.
    fn cut(&mut self, pending: &[&Op], noise: &mut Noise) {
        let deleted = pending.iter().rposition(|op| matches!(op, Op::Delete { .. }));
        let pending = match deleted {
            // If the deletion is lost, the writes before it count; if it is kept, those after it.
            Some(at) if noise.integer(2) == 0 => {
                self.content = None;
                &pending[at + 1..]
            }
            Some(at) => &pending[..at],
            None => pending,
        };
        for op in pending {
            match (noise.integer(8), op) {
                (0..4, _) | (_, Op::Delete { .. }) => {}
                (7, Op::Write { at, data, .. }) => {
                    for (i, sector) in data.chunks(SECTOR).enumerate() {
                        if noise.integer(2) == 0 {
                            self.write(at + i * SECTOR, sector);
                        }
                    }
                }
                (_, op) => self.apply(op),
            }
        }
    }
}

/// The files after a power cut.  `honest`: whether the disk obeys syncs.
fn left(ops: &[Op], honest: bool, noise: &mut Noise) -> BTreeMap<String, OnDisk> {
    let mut files: BTreeMap<String, (OnDisk, Vec<&Op>)> = BTreeMap::new();
    for op in ops {
        let (Op::Write { file, .. } | Op::Truncate { file, .. } | Op::Sync { file, .. } | Op::Delete { file, .. }) = op
        else {
            continue;
        };
        if honest && matches!(op, Op::Sync { folder: true, .. }) {
            files.values_mut().for_each(|(disk, pending)| disk.deleted_for_good(pending));
        }
        let (disk, pending) = files.entry(file.clone()).or_default();
        let durable = matches!(op, Op::Sync { .. } | Op::Delete { synced: true, .. });
        if !matches!(op, Op::Sync { .. }) {
            pending.push(op);
        }
        if durable && honest {
            pending.drain(..).for_each(|op| disk.apply(op));
        }
    }
    let mut cut = |(name, (mut disk, pending)): (String, (OnDisk, Vec<&Op>))| {
        disk.cut(&pending, noise);
        (name, disk)
    };
    files.into_iter().map(&mut cut).collect()
}

enum Change {
    Put(Vec<Item>),
    Delete(String),
}

/// Change number `n`.
fn change(n: usize) -> Change {
    let mut noise = Noise(n as u64 + 77);
    noise.integer(2);
    if noise.integer(4) == 0 {
        return Change::Delete(noise.integer(60).to_string());
    }
    let count = 1 + noise.integer(30);
    Change::Put((0..count).map(|_| version(noise.integer(60), n, &mut noise)).collect())
}

/// An item whose vector, metadata and image all depend on its version.
fn version(id: usize, n: usize, noise: &mut Noise) -> Item {
    let picture = format!("{id} {n} {}", "x".repeat(noise.integer(3000)));
    let plain = item(&id.to_string(), &noise.vector(DIM), json!({ "n": n }));
    Item { image: Some(picture.into_bytes().into()), has_image: true, hash: Some([n as u8; 32]), ..plain }
}

/// The states of the index after 0, 1, 2, ... changes.
fn states(changes: usize) -> Vec<BTreeMap<String, Item>> {
    let mut states = vec![BTreeMap::new()];
    for n in 0..changes {
        let mut next = states[n].clone();
        match change(n) {
            Change::Put(items) => next.extend(items.into_iter().map(|item| (item.id.clone(), item))),
            Change::Delete(id) => drop(next.remove(&id)),
        }
        states.push(next);
    }
    states
}

/// The items of the index; the error says why it cannot be opened or read.
async fn read(dir: &Path) -> Result<BTreeMap<String, Item>, String> {
    let index = EmbeddedIndex::open(dir, &encoder(DIM), &options()).map_err(|e| e.to_string())?;
    let page = index.list(ListQuery { limit: 1000, ..ListQuery::default() }).await.map_err(|e| e.to_string())?;
    let mut items = BTreeMap::new();
    for listed in page.items {
        let item = index.get(&listed.id).await.map_err(|e| e.to_string())?;
        items.insert(listed.id, item.ok_or("listed and not there")?);
    }
    Ok(items)
}

async fn work(dir: &Path, changes: usize) {
    let mut n = 0;
    // Closed and opened again, so that the journal is also moved and deleted.
    for part in 1..=4 {
        let index = EmbeddedIndex::open(dir, &encoder(DIM), &options()).unwrap();
        while n < changes * part / 4 {
            match change(n) {
                Change::Put(items) => fill(&index, items).await,
                Change::Delete(id) => drop(index.delete(&id).await.unwrap()),
            }
            recorder().ops.push(Op::Acknowledged);
            n += 1;
        }
        if part == 2 {
            // The freed space is returned.
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
    }
}

/// Not a test by itself: `a_power_cut_loses_nothing` starts it, since the layer applies to a whole process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(parent) = std::env::var(CHILD) else { return };
    let parent = Path::new(&parent);
    let cuts = std::env::var("MACRL_POWER_CUTS").ok().and_then(|v| v.parse().ok()).unwrap_or(60);
    let changes = 160;
    let dir = parent.join("index");
    install(&dir);
    work(&dir, changes).await;
    let ops = std::mem::take(&mut recorder().ops);
    let (states, mut noise) = (states(changes), Noise(5));
    let syncs = ops.iter().filter(|op| matches!(op, Op::Sync { .. })).count();
    assert!(ops.iter().filter(|op| matches!(op, Op::Acknowledged)).count() == changes && syncs > changes);
    let mut lost = 0;
    for number in 0..cuts + cuts / 4 {
        // The last cuts assume a disk whose syncs do nothing: the test must notice the loss.
        let honest = number < cuts;
        let at = noise.integer(ops.len() + 1);
        let done = ops[..at].iter().filter(|op| matches!(op, Op::Acknowledged)).count();
        let after = parent.join("after");
        fs::create_dir(&after).unwrap();
        for (name, disk) in left(&ops[..at], honest, &mut noise) {
            if let Some(content) = disk.content {
                fs::write(after.join(name), content).unwrap();
            }
        }
        let found = read(&after).await;
        let right = found.as_ref().is_ok_and(|found| *found == states[done] || states.get(done + 1) == Some(found));
        let found =
            found.map(|items| items.into_values().map(|i| format!("{} {:?}", i.id, i.metadata)).collect::<Vec<_>>());
        assert!(right || !honest, "cut {number}, at {at} of {}, after {done} changes: {found:?}", ops.len());
        lost += usize::from(!right);
        fs::remove_dir_all(&after).unwrap();
    }
    assert!(lost > cuts / 8, "{lost} of {} cuts of a disk without syncs were noticed", cuts / 4);
    println!(
        "{cuts} power cuts in {} writes and {syncs} syncs of {changes} changes: all acknowledged ones there",
        ops.len()
    );
}

#[test]
fn a_power_cut_loses_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["power::child", "--exact", "--nocapture"]).env(CHILD, parent.path());
    let output = child.output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
    print!("{out}");
}
