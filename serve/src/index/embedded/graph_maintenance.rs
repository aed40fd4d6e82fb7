//! A low-priority thread that builds the graph, keeps it up to date, and writes its file.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::graph::{Graph, GraphError};
use super::shared::Shared;

/// Time between two looks at the items.
const INTERVAL: Duration = Duration::from_millis(200);
/// Nodes that are added before the thread checks whether it must stop.
const ROUND: usize = 2048;
/// Nodes whose vectors a thread copies at a time: writers wait meanwhile.
const COPY: usize = 64;
/// The first nodes are added by one thread.  Threads that start a graph together do not see each other's nodes and leave some
/// that no search reaches (2 to 3 of 10 neighbours missed now and then among 1,200 items).
const SINGLE_THREADED: usize = 2_000;
/// While fewer nodes than this are missing, comparing their items costs less than adding them would gain.
const MIN_MISSING: usize = 512;
/// Time without a change after which missing nodes are added however few they are.
const IDLE: Duration = Duration::from_secs(2);

/// The graph's file, and the store that it belongs to.
#[derive(Debug, Clone)]
pub(super) struct GraphFile {
    pub(super) path: PathBuf,
    pub(super) identity: String,
}

/// The thread, which ends when this is dropped.
pub(super) struct GraphMaintenance {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl GraphMaintenance {
    /// Starts the thread.  If the system cannot start one, every search is exact.
    pub(super) fn start(shared: Arc<Shared>, file: Option<GraphFile>) -> Self {
        let stop: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let worker = Worker { shared, file, stop: stop.clone(), saved: 0, last_change: (0, Instant::now()) };
        let thread = std::thread::Builder::new().name("index-graph".into()).spawn(move || worker.run()).ok();
        Self { stop, thread }
    }
}

impl Drop for GraphMaintenance {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sizes of the item table at one moment.
struct TableSize {
    dim: usize,
    items: usize,
    /// Number of distinct vectors.
    nodes: usize,
    /// Number of nodes that the graph lacks.
    missing: usize,
    changes: u64,
}

/// State of the thread.
struct Worker {
    shared: Arc<Shared>,
    file: Option<GraphFile>,
    stop: Arc<(Mutex<bool>, Condvar)>,
    /// Nodes of the graph in the file.
    saved: usize,
    /// The item table's change count, and when it was first seen.
    last_change: (u64, Instant),
}

impl Worker {
    fn run(mut self) {
        // Nice 10 for this thread and those it starts: searching and embedding come first.
        let _ = rustix::process::setpriority_process(None, 10);
        self.load();
        loop {
            if let Err(error) = self.update() {
                // Searches stay exact.
                tracing::warn!("the approximate index is not kept up to date: {error}");
            }
            self.save(false);
            if self.wait() {
                return self.save(true);
            }
        }
    }

    fn stopping(&self) -> bool {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next look; returns whether the thread must end.
    fn wait(&self) -> bool {
        let stop = self.stop.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.stop.1.wait_timeout_while(stop, INTERVAL, |stop| !*stop);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn load(&mut self) {
        let Some(file) = &self.file else { return };
        let TableSize { dim, items, nodes, .. } = self.table_size();
        if items <= self.shared.exact_up_to || !file.path.exists() {
            return;
        }
        match Graph::load(&file.path, dim, &file.identity, spare_capacity(nodes)) {
            Ok(graph) => {
                self.saved = graph.len();
                self.shared.set_graph(Some(Arc::new(graph)));
            }
            Err(error) => tracing::warn!("{error}; the approximate index is built anew"),
        }
    }

    fn table_size(&self) -> TableSize {
        let table = self.shared.table();
        let nodes = table.nodes();
        let (dim, items, missing) = (table.dim(), table.len(), nodes.missing().len());
        TableSize { dim, items, nodes: nodes.len(), missing, changes: nodes.changes() }
    }

    /// Builds, extends, rebuilds or drops the graph, as the items require.
    fn update(&mut self) -> Result<(), GraphError> {
        let size = self.table_size();
        if size.changes != self.last_change.0 {
            self.last_change = (size.changes, Instant::now());
        }
        if size.items <= self.shared.exact_up_to {
            self.drop_graph();
            return Ok(());
        }
        let Some(graph) = self.shared.graph() else {
            // Searches may use it while it is being built: nodes that are missing are compared exactly.
            let graph = Arc::new(Graph::new(size.dim, size.nodes + spare_capacity(size.nodes))?);
            self.saved = 0;
            self.shared.set_graph(Some(graph.clone()));
            return self.extend(&graph);
        };
        // More than a fifth of its nodes have no item: searches would pass over many of them.
        let unused = (graph.len() + size.missing).saturating_sub(size.nodes);
        if unused > size.nodes / 4 || !graph.has_capacity(size.missing) {
            return self.rebuild(&size);
        }
        if size.missing >= MIN_MISSING || size.missing > 0 && self.last_change.1.elapsed() >= IDLE {
            return self.extend(&graph);
        }
        Ok(())
    }

    /// Removes a graph that is no longer needed, from memory and from disk.
    fn drop_graph(&mut self) {
        if self.shared.graph().is_some() {
            self.shared.set_graph(None);
        }
        self.saved = 0;
        let Some(file) = self.file.as_ref().filter(|file| file.path.exists()) else { return };
        if let Err(error) = std::fs::remove_file(&file.path) {
            tracing::warn!("cannot remove {}: {error}", file.path.display());
        }
    }

    /// Adds the missing nodes, until the graph is full or the thread must stop.
    fn extend(&self, graph: &Graph) -> Result<(), GraphError> {
        while !self.stopping() {
            let count = round_size(graph);
            let round: Vec<u64> = self.shared.table().nodes().missing().iter().take(count).copied().collect();
            if round.is_empty() || !graph.has_capacity(round.len()) {
                return Ok(());
            }
            self.add(graph, &round)?;
            self.shared.mark_added(&round);
        }
        Ok(())
    }

    /// Builds a new graph; searches use the old one until it is complete.
    fn rebuild(&mut self, size: &TableSize) -> Result<(), GraphError> {
        let graph = Graph::new(size.dim, size.nodes + spare_capacity(size.nodes))?;
        let mut last = None;
        while !self.stopping() {
            let count = round_size(&graph);
            let round: Vec<u64> = self.shared.table().nodes().after(last).take(count).collect();
            if round.is_empty() || !graph.has_capacity(round.len()) {
                self.saved = 0;
                self.shared.set_graph(Some(Arc::new(graph)));
                return Ok(());
            }
            self.add(&graph, &round)?;
            last = round.last().copied();
        }
        Ok(())
    }

    /// Adds these nodes on every core.
    fn add(&self, graph: &Graph, round: &[u64]) -> Result<(), GraphError> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), GraphError> {
            loop {
                let start = next.fetch_add(COPY, Ordering::Relaxed);
                if start >= round.len() {
                    return Ok(());
                }
                for (node, vector) in self.copy_vectors(&round[start..(start + COPY).min(round.len())]) {
                    // An earlier round may have added it before it failed.
                    if !graph.contains(node) {
                        graph.add(node, &vector)?;
                    }
                }
            }
        };
        let cores = match graph.len() {
            0..SINGLE_THREADED => 1,
            _ => std::thread::available_parallelism().map_or(1, usize::from),
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..cores).map(|_| scope.spawn(work)).collect();
            let own = work();
            let failed = || Err("a thread of the approximate index failed".to_string());
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| failed())).fold(own, Result::and)
        })
    }

    /// The vectors of those nodes that still have an item.
    fn copy_vectors(&self, nodes: &[u64]) -> Vec<(u64, Vec<f32>)> {
        let table = self.shared.table();
        let vector = |node: &u64| Some((*node, table.vector(table.nodes().slots(*node).next()?).to_vec()));
        nodes.iter().filter_map(vector).collect()
    }

    /// Writes the file if the graph has grown much since the last time; when `closing`, if it has grown at all.
    fn save(&mut self, closing: bool) {
        let (Some(file), Some(graph)) = (&self.file, self.shared.graph()) else { return };
        let unsaved = graph.len().saturating_sub(self.saved);
        if unsaved == 0 || (!closing && unsaved < self.saved / 4) {
            return;
        }
        if let Err(error) = graph.save(&file.path, &file.identity) {
            tracing::warn!("{error}; the approximate index is built anew at the next start");
        }
        // After a failure, too: the next attempt comes when the graph has grown again, not after every interval.
        self.saved = graph.len();
    }
}

/// Nodes of one round.
fn round_size(graph: &Graph) -> usize {
    if graph.len() < SINGLE_THREADED { SINGLE_THREADED.min(ROUND) } else { ROUND }
}

/// Nodes that a graph of so many may grow by before it is rebuilt.
fn spare_capacity(nodes: usize) -> usize {
    nodes / 2 + ROUND
}
