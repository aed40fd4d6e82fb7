//! A thread at low priority that builds the graph, keeps it near the items, and writes its file.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Shared;
use super::graph::{Fault, Graph};
use super::writer::read;

/// How often it looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Nodes that are added before it looks whether it shall stop.
const ROUND: usize = 2048;
/// Nodes whose vectors a thread copies at a time: writers wait meanwhile.
const COPY: usize = 64;
/// So many nodes are added by one thread: threads that begin a graph together do not see each other's nodes, and leave
/// some that no search reaches (2 to 3 of 10 neighbours missed now and then among 1,200 items).
const ALONE: usize = 2_000;
/// While fewer nodes than this are missing, comparing their items costs less than adding them would gain.
const LOOSE: usize = 512;
/// Where nothing has changed for so long, they are added all the same.
const IDLE: Duration = Duration::from_secs(2);

/// Where the graph is written, and for whom.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    pub(super) path: PathBuf,
    pub(super) identity: String,
}

/// Ends its thread when dropped.
pub(super) struct Gardener {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Gardener {
    /// Starts the thread; without one, every search is exact.
    pub(super) fn start(shared: Arc<Shared>, cache: Option<Cache>) -> Self {
        let stop: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let worker = Worker { shared, cache, stop: stop.clone(), saved: 0, seen: (0, Instant::now()) };
        let thread = std::thread::Builder::new().name("index-gardener".into()).spawn(move || worker.run()).ok();
        Self { stop, thread }
    }
}

impl Drop for Gardener {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the worker looks at.
struct Size {
    dim: usize,
    items: usize,
    /// Distinct vectors.
    nodes: usize,
    /// Those that the graph lacks.
    missing: usize,
    changes: u64,
}

struct Worker {
    shared: Arc<Shared>,
    cache: Option<Cache>,
    stop: Arc<(Mutex<bool>, Condvar)>,
    /// Nodes of the graph in the file.
    saved: usize,
    /// Changes of the items, and when there were first so many.
    seen: (u64, Instant),
}

impl Worker {
    fn run(mut self) {
        // Nice 10 of this thread and those it starts: searching and embedding come first.
        let _ = rustix::process::setpriority_process(None, 10);
        self.load();
        loop {
            if let Err(fault) = self.tend() {
                // Searches stay exact.
                tracing::warn!("the approximate index is not kept up: {fault}");
            }
            self.save(false);
            if self.pause() {
                return self.save(true);
            }
        }
    }

    fn stopping(&self) -> bool {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it shall end.
    fn pause(&self) -> bool {
        let stop = self.stop.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.stop.1.wait_timeout_while(stop, PAUSE, |stop| !*stop);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn load(&mut self) {
        let Some(cache) = &self.cache else { return };
        let Size { dim, items, nodes, .. } = self.size();
        if items <= self.shared.exact_up_to || !cache.path.exists() {
            return;
        }
        match Graph::load(&cache.path, dim, &cache.identity, room(nodes)) {
            Ok(graph) => {
                self.saved = graph.len();
                self.shared.set_graph(Some(Arc::new(graph)));
            }
            Err(fault) => tracing::warn!("{fault}; the approximate index is built anew"),
        }
    }

    fn size(&self) -> Size {
        let gallery = read(&self.shared.gallery);
        let nodes = gallery.nodes();
        let (dim, items, missing) = (gallery.dim(), gallery.len(), nodes.missing().len());
        Size { dim, items, nodes: nodes.len(), missing, changes: nodes.changes() }
    }

    /// Brings the graph near the items.
    fn tend(&mut self) -> Result<(), Fault> {
        let size = self.size();
        if size.changes != self.seen.0 {
            self.seen = (size.changes, Instant::now());
        }
        if size.items <= self.shared.exact_up_to {
            self.forget();
            return Ok(());
        }
        let Some(graph) = self.shared.graph() else {
            // A part is better than none.
            let graph = Arc::new(Graph::new(size.dim, size.nodes + room(size.nodes))?);
            self.saved = 0;
            self.shared.set_graph(Some(graph.clone()));
            return self.extend(&graph);
        };
        // A fifth of it gone: searches would pass over much.
        let gone = (graph.len() + size.missing).saturating_sub(size.nodes);
        if gone > size.nodes / 4 || !graph.has_room(size.missing) {
            return self.replace(&size);
        }
        if size.missing >= LOOSE || size.missing > 0 && self.seen.1.elapsed() >= IDLE {
            return self.extend(&graph);
        }
        Ok(())
    }

    /// Without a use for the graph there is none, in memory or as a file.
    fn forget(&mut self) {
        if self.shared.graph().is_some() {
            self.shared.set_graph(None);
        }
        self.saved = 0;
        let Some(cache) = self.cache.as_ref().filter(|cache| cache.path.exists()) else { return };
        if let Err(error) = std::fs::remove_file(&cache.path) {
            tracing::warn!("cannot remove {}: {error}", cache.path.display());
        }
    }

    /// Adds what is missing, as far as there is room and time.
    fn extend(&self, graph: &Graph) -> Result<(), Fault> {
        while !self.stopping() {
            let most = if graph.len() < ALONE { ALONE.min(ROUND) } else { ROUND };
            let round: Vec<u64> = read(&self.shared.gallery).nodes().missing().iter().take(most).copied().collect();
            if round.is_empty() || !graph.has_room(round.len()) {
                return Ok(());
            }
            self.add(graph, &round)?;
            self.shared.cover(&round);
        }
        Ok(())
    }

    /// Builds a graph beside the old one, which searches use until the new one is whole.
    fn replace(&mut self, size: &Size) -> Result<(), Fault> {
        let graph = Graph::new(size.dim, size.nodes + room(size.nodes))?;
        let mut last = None;
        while !self.stopping() {
            let most = if graph.len() < ALONE { ALONE.min(ROUND) } else { ROUND };
            let round: Vec<u64> = read(&self.shared.gallery).nodes().after(last).take(most).collect();
            if round.is_empty() || !graph.has_room(round.len()) {
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
    fn add(&self, graph: &Graph, round: &[u64]) -> Result<(), Fault> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), Fault> {
            loop {
                let start = next.fetch_add(COPY, Ordering::Relaxed);
                if start >= round.len() {
                    return Ok(());
                }
                for (node, vector) in self.copy(&round[start..(start + COPY).min(round.len())]) {
                    // It may be from a round that failed.
                    if !graph.contains(node) {
                        graph.add(node, &vector)?;
                    }
                }
            }
        };
        let cores = match graph.len() {
            0..ALONE => 1,
            _ => std::thread::available_parallelism().map_or(1, usize::from),
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..cores).map(|_| scope.spawn(work)).collect();
            let own = work();
            let failed = || Err("a thread of the approximate index failed".to_string());
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| failed())).fold(own, Result::and)
        })
    }

    /// The vectors of those that still stand for an item.
    fn copy(&self, nodes: &[u64]) -> Vec<(u64, Vec<f32>)> {
        let gallery = read(&self.shared.gallery);
        let vector = |node: &u64| Some((*node, gallery.vector(gallery.nodes().slots(*node).next()?).to_vec()));
        nodes.iter().filter_map(vector).collect()
    }

    /// Writes the file where much of the graph is not in it, or at the end whatever is not.
    fn save(&mut self, ending: bool) {
        let (Some(cache), Some(graph)) = (&self.cache, self.shared.graph()) else { return };
        let more = graph.len().saturating_sub(self.saved);
        if more == 0 || (!ending && more < self.saved / 4) {
            return;
        }
        match graph.save(&cache.path, &cache.identity) {
            Ok(()) => self.saved = graph.len(),
            Err(fault) => {
                tracing::warn!("{fault}; the approximate index is built anew at the next start");
                // Not again at every pause.
                self.saved = graph.len();
            }
        }
    }
}

/// Nodes that a graph of so many may grow by before it is built anew.
fn room(nodes: usize) -> usize {
    nodes / 2 + ROUND
}
