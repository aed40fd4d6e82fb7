//! Approximate search: usearch's HNSW graph over the distinct vectors, and the file that saves building it again.
//!
//! A node's key is a digest of its vector ([`nodes`](super::nodes)).  Nodes whose key belongs to no item are passed over, and
//! items whose node is missing are compared exactly.  So answers stay right if the graph is old, belongs to another index or
//! is missing: it only proposes candidates, and scores are computed from the items' own vectors.
//!
//! The file is a cache.  usearch does not notice a flipped bit when it loads a file, so ours ends with a checksum and the
//! identity of its store; if either does not match, the graph is built anew.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::slice::from_raw_parts;

use macrl_bundle::atomic::Temporary;
use macrl_kernels::bf16::Dot;
use sha2::{Digest, Sha256};
use usearch::ffi::{IndexOptions, MetricKind, ScalarKind};
use usearch::{Index as Hnsw, f16, new_index};

pub(super) const FILE: &str = "graph.usearch";
const MAGIC: &[u8; 8] = b"macrlgr2";
/// Bytes at the end of the file: magic number, identity of the store, SHA-256.
const TRAILER: usize = 8 + IDENTITY + 32;
/// Bytes of a store's identity.
const IDENTITY: usize = 32;

/// Edges of a node; usearch's default.
const CONNECTIVITY: usize = 16;
/// Candidates that are looked at when a node is added; usearch's default.
const EXPANSION_ADD: usize = 128;
/// Candidates that a search looks at, by the number of nodes.  Recall@10 was 0.952 with 128 and 0.990 with 256 on 100,000 x 192
/// synthetic vectors; on 1,000,000, 256 gave 0.975.
const fn expansion_search(nodes: usize) -> usize {
    if nodes <= 250_000 { 256 } else { 384 }
}
/// Threads that may use the graph at the same time, searching or adding nodes.
pub(super) const THREADS: usize = 64;

/// An HNSW graph over distinct vectors.
pub(super) struct Graph {
    hnsw: Hnsw,
}

/// One sentence that says why the graph cannot be used.
pub(super) type GraphError = String;

fn graph_error(error: impl std::fmt::Display) -> GraphError {
    format!("usearch: {error}")
}

/// Vectors are kept in half precision; exact scores are computed from the items' own vectors.
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

/// Compares vectors with our inner product.  usearch's own needs a library whose kernels take two minutes to compile.
fn with_metric(mut hnsw: Hnsw, dim: usize) -> Hnsw {
    let dot = Dot::new();
    hnsw.change_metric(Box::new(move |a: *const f16, b: *const f16| {
        // SAFETY: usearch passes two of its vectors, each of `dim` bfloat16 numbers; its type for them has 16 bits as well.
        let (a, b) = unsafe { (from_raw_parts(a.cast(), dim), from_raw_parts(b.cast(), dim)) };
        1.0 - dot.of(a, b)
    }));
    hnsw
}

impl Graph {
    /// An empty graph with capacity for so many nodes.
    pub(super) fn new(dim: usize, capacity: usize) -> Result<Self, GraphError> {
        let hnsw = with_metric(new_index(&options(dim, capacity)).map_err(graph_error)?, dim);
        hnsw.reserve_capacity_and_threads(capacity, THREADS).map_err(graph_error)?;
        Ok(Self { hnsw })
    }

    /// Length of its vectors, D.
    pub(super) fn dim(&self) -> usize {
        self.hnsw.dimensions()
    }

    /// Number of nodes, including those that no longer have an item.
    pub(super) fn len(&self) -> usize {
        self.hnsw.size()
    }

    /// Whether so many more nodes fit.  The capacity is fixed: a graph that is being searched cannot be resized.
    pub(super) fn has_capacity(&self, more: usize) -> bool {
        self.hnsw.size() + more <= self.hnsw.capacity()
    }

    pub(super) fn contains(&self, node: u64) -> bool {
        self.hnsw.contains(node)
    }

    /// Adds a new node.  Several threads may add nodes at once, while others search.
    pub(super) fn add(&self, node: u64, vector: &[f32]) -> Result<(), GraphError> {
        self.hnsw.add(node, vector).map_err(graph_error)
    }

    /// About `count` of the nearest nodes among those that pass.
    pub(super) fn search(
        &self,
        vector: &[f32],
        count: usize,
        passes: Option<impl Fn(u64) -> bool>,
    ) -> Result<Vec<u64>, GraphError> {
        let found = match passes {
            Some(passes) => self.hnsw.filtered_search(vector, count, passes),
            None => self.hnsw.search(vector, count),
        };
        found.map(|matches| matches.keys).map_err(graph_error)
    }

    /// Writes the file under a temporary name and renames it.
    pub(super) fn save(&self, path: &Path, identity: &str) -> Result<(), GraphError> {
        let temporary = Temporary::beside(path);
        let name = temporary.path().to_str().ok_or("the folder's name is not UTF-8")?;
        temporary.create_private().map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        self.hnsw.save(name).map_err(graph_error)?;
        let finish = || -> io::Result<()> {
            let mut file = File::options().read(true).write(true).open(temporary.path())?;
            let trailer = trailer(&mut file, identity, u64::MAX)?;
            file.seek(SeekFrom::End(0))?;
            file.write_all(&trailer)?;
            file.sync_all()?;
            temporary.persist()
        };
        finish().map_err(|e| format!("cannot write {}: {e}", path.display()))
    }

    /// Reads the file, if it is complete and belongs to this store.
    pub(super) fn load(path: &Path, dim: usize, identity: &str, spare: usize) -> Result<Self, GraphError> {
        check(path, identity).map_err(|e| format!("{}: {e}", path.display()))?;
        // How many nodes there are is known after loading; the options that depend on it are set below.
        let hnsw = new_index(&options(dim, 0)).map_err(graph_error)?;
        hnsw.load(path.to_str().ok_or("the folder's name is not UTF-8")?).map_err(graph_error)?;
        if hnsw.dimensions() != dim {
            return Err(format!("{}: its vectors have {} numbers, not {dim}", path.display(), hnsw.dimensions()));
        }
        // Loading has put usearch's own function in place.
        let hnsw = with_metric(hnsw, dim);
        let capacity = hnsw.size() + spare;
        hnsw.reserve_capacity_and_threads(capacity, THREADS).map_err(graph_error)?;
        hnsw.change_expansion_add(EXPANSION_ADD);
        hnsw.change_expansion_search(expansion_search(capacity));
        Ok(Self { hnsw })
    }
}

/// The trailer for the first `length` bytes (or all, if there are fewer) of the file.
fn trailer(file: &mut File, identity: &str, length: u64) -> io::Result<Vec<u8>> {
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

/// Checks that the file is complete and belongs to this store.
fn check(path: &Path, identity: &str) -> io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let damaged = || io::Error::other("not whole");
    let body = length.checked_sub(TRAILER as u64).ok_or_else(damaged)?;
    file.seek(SeekFrom::Start(body))?;
    let mut found = vec![0; TRAILER];
    file.read_exact(&mut found)?;
    if trailer(&mut file, identity, body)? == found { Ok(()) } else { Err(damaged()) }
}
