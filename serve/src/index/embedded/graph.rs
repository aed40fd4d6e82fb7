//! Approximate search: usearch's HNSW graph over the distinct vectors, and the file that saves building it again.
//!
//! A node is named by its vector's digest ([`nodes`](super::nodes)): nodes whose name no item has any more are passed
//! over, items whose node is not there are compared exactly.  So the graph may be old, it may be another index's, it may
//! be gone, and answers are still right: it only says where to look, scores are computed from the items' own vectors.
//!
//! The file is a cache.  usearch loads a file with a flipped bit without a word, so ours ends with a checksum of all of
//! it and the store it belongs to; whatever does not fit is built anew.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use usearch::ffi::{IndexOptions, MetricKind, ScalarKind};
use usearch::{Index as Hnsw, new_index};

pub(super) const FILE: &str = "graph.usearch";
const MAGIC: &[u8; 8] = b"macrlgr2";
/// Magic, identity, SHA-256.
const TRAILER: usize = 8 + IDENTITY + 32;
/// Bytes of a store's identity.
const IDENTITY: usize = 32;

/// Edges per node; usearch's default.
const CONNECTIVITY: usize = 16;
/// Candidates while a node is added; usearch's default.
const EXPANSION_ADD: usize = 128;
/// Candidates while searching a graph of so many nodes: recall@10 was 0.952 with 128 and 0.990 with 256 on 100,000 x 192
/// synthetic vectors; on 1,000,000, 256 gave 0.975.
const fn expansion_search(nodes: usize) -> usize {
    if nodes <= 250_000 { 256 } else { 384 }
}
/// Threads that may be in the graph at the same time: searches and those that build.
pub(super) const THREADS: usize = 64;

/// See the module's documentation.
pub(super) struct Graph {
    hnsw: Hnsw,
}

/// What usearch says, as a sentence.
pub(super) type Fault = String;

fn fault(error: impl std::fmt::Display) -> Fault {
    format!("usearch: {error}")
}

/// Half the bytes of f32, and what is lost is made up for by exact scores.
fn options(dim: usize, nodes: usize) -> IndexOptions {
    IndexOptions {
        dimensions: dim,
        metric: MetricKind::IP,
        quantization: ScalarKind::BF16,
        connectivity: CONNECTIVITY,
        expansion_add: EXPANSION_ADD,
        expansion_search: expansion_search(nodes),
        multi: false,
    }
}

impl Graph {
    /// Without nodes, with room for `capacity` of them.
    pub(super) fn new(dim: usize, capacity: usize) -> Result<Self, Fault> {
        let hnsw = new_index(&options(dim, capacity)).map_err(fault)?;
        hnsw.reserve_capacity_and_threads(capacity, THREADS).map_err(fault)?;
        Ok(Self { hnsw })
    }

    /// D.
    pub(super) fn dim(&self) -> usize {
        self.hnsw.dimensions()
    }

    /// Nodes, those that stand for no item any more included.
    pub(super) fn len(&self) -> usize {
        self.hnsw.size()
    }

    /// Whether so many more nodes fit: what is searched cannot grow.
    pub(super) fn has_room(&self, more: usize) -> bool {
        self.hnsw.size() + more <= self.hnsw.capacity()
    }

    pub(super) fn contains(&self, node: u64) -> bool {
        self.hnsw.contains(node)
    }

    /// Adds a node that is not there yet; from several threads at once, and while others search.
    pub(super) fn add(&self, node: u64, vector: &[f32]) -> Result<(), Fault> {
        self.hnsw.add(node, vector).map_err(fault)
    }

    /// About the `count` nearest nodes among those that pass.
    pub(super) fn search(
        &self,
        vector: &[f32],
        count: usize,
        passes: Option<impl Fn(u64) -> bool>,
    ) -> Result<Vec<u64>, Fault> {
        let found = match passes {
            Some(passes) => self.hnsw.filtered_search(vector, count, passes),
            None => self.hnsw.search(vector, count),
        };
        found.map(|matches| matches.keys).map_err(fault)
    }

    /// Writes the file beside its place and renames it.
    pub(super) fn save(&self, path: &Path, identity: &str) -> Result<(), Fault> {
        let temporary = path.with_extension("tmp");
        let name = temporary.to_str().ok_or("the folder's name is not UTF-8")?;
        self.hnsw.save(name).map_err(fault)?;
        let seal = || -> io::Result<()> {
            let mut file = File::options().read(true).write(true).open(&temporary)?;
            let trailer = seal(&mut file, identity, u64::MAX)?;
            file.seek(SeekFrom::End(0))?;
            file.write_all(&trailer)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        seal().map_err(|e| format!("cannot write {}: {e}", path.display()))
    }

    /// Reads the file of this store, where it is whole.
    pub(super) fn load(path: &Path, dim: usize, identity: &str, room: usize) -> Result<Self, Fault> {
        check(path, identity).map_err(|e| format!("{}: {e}", path.display()))?;
        // The file knows how many nodes there are; the settings follow it.
        let hnsw = new_index(&options(dim, 0)).map_err(fault)?;
        hnsw.load(path.to_str().ok_or("the folder's name is not UTF-8")?).map_err(fault)?;
        if hnsw.dimensions() != dim {
            return Err(format!("{}: its vectors have {} numbers, not {dim}", path.display(), hnsw.dimensions()));
        }
        let capacity = hnsw.size() + room;
        hnsw.reserve_capacity_and_threads(capacity, THREADS).map_err(fault)?;
        hnsw.change_expansion_add(EXPANSION_ADD);
        hnsw.change_expansion_search(expansion_search(capacity));
        Ok(Self { hnsw })
    }
}

/// What follows the first `length` bytes (at most all) of the file.
fn seal(file: &mut File, identity: &str, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    let mut reader = BufReader::with_capacity(1 << 20, file).take(length);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    let mut trailer = MAGIC.to_vec();
    let mut name = identity.as_bytes().to_vec();
    name.resize(IDENTITY, 0);
    trailer.extend(name);
    hasher.update(&trailer);
    trailer.extend(hasher.finalize());
    Ok(trailer)
}

/// Whether the file is whole and of this store.
fn check(path: &Path, identity: &str) -> io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let torn = || io::Error::other("not whole");
    let body = length.checked_sub(TRAILER as u64).ok_or_else(torn)?;
    file.seek(SeekFrom::Start(body))?;
    let mut found = vec![0; TRAILER];
    file.read_exact(&mut found)?;
    if seal(&mut file, identity, body)? == found { Ok(()) } else { Err(torn()) }
}
