//! A thread at low priority that builds the graph, keeps it near the items, and writes its file.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Shared;
use super::graph::{Fault, Graph};
use super::writer::read;

/// How often it looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Items that are added before it looks whether it shall stop.
const ROUND: usize = 2048;
/// Items whose vectors a thread copies at a time: writers wait meanwhile.
const COPY: usize = 64;
/// So many nodes are added by one thread: threads that begin a graph together do not see each other's nodes, and leave
/// some that no search reaches (2 to 3 of 10 neighbours missed now and then among 1,200 items).
const ALONE: usize = 2_000;
/// With fewer items than this beside the graph, comparing them costs less than adding them would gain.
const LOOSE: usize = 512;

/// Where the graph is written, and for whom.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    pub(super) path: PathBuf,
    pub(super) identity: String,
    /// The greatest number a write had when the store was opened: a file from later is of another past.
    pub(super) last_seq: u64,
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
        let worker = Worker { shared, cache, stop: stop.clone(), saved: 0 };
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

struct Worker {
    shared: Arc<Shared>,
    cache: Option<Cache>,
    stop: Arc<(Mutex<bool>, Condvar)>,
    /// Nodes of the graph in the file.
    saved: usize,
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
        let (dim, items) = self.size();
        if items <= self.shared.exact_up_to || !cache.path.exists() {
            return;
        }
        match Graph::load(&cache.path, dim, &cache.identity, room(items)) {
            Ok(graph) if graph.covered() <= cache.last_seq => {
                self.saved = graph.len();
                self.shared.set_graph(Some(Arc::new(graph)));
            }
            Ok(_) => tracing::warn!("{}: of another past of this index; built anew", cache.path.display()),
            Err(fault) => tracing::warn!("{fault}; the approximate index is built anew"),
        }
    }

    fn size(&self) -> (usize, usize) {
        let gallery = read(&self.shared.gallery);
        (gallery.dim(), gallery.len())
    }

    /// Brings the graph near the items.
    fn tend(&mut self) -> Result<(), Fault> {
        let (dim, items) = self.size();
        if items <= self.shared.exact_up_to {
            self.shared.set_graph(None);
            return Ok(());
        }
        let first = self.shared.graph().is_none();
        let old = self.shared.graph().filter(|graph| {
            // A fifth of it gone: searches would pass over much.
            let gone = (graph.len() + self.loose(graph)).saturating_sub(items);
            gone <= items / 4 && graph.has_room(self.loose(graph))
        });
        match old {
            Some(graph) if self.loose(&graph) < LOOSE => Ok(()),
            Some(graph) => self.extend(&graph),
            None => {
                let graph = Arc::new(Graph::new(dim, items + room(items))?);
                // Beside an old graph the new one waits until it is whole; where there is none, a part is better.
                if first {
                    self.shared.set_graph(Some(graph.clone()));
                }
                self.extend(&graph)?;
                if !self.stopping() {
                    self.saved = 0;
                    self.shared.set_graph(Some(graph));
                }
                Ok(())
            }
        }
    }

    /// Items that the graph does not cover.
    fn loose(&self, graph: &Graph) -> usize {
        read(&self.shared.gallery).written_after(graph.covered()).count()
    }

    /// Adds what is not covered, oldest first, as far as there is room and time.
    fn extend(&self, graph: &Graph) -> Result<(), Fault> {
        while !self.stopping() {
            let round: Vec<u64> = {
                let gallery = read(&self.shared.gallery);
                let most = if graph.len() < ALONE { ALONE.min(ROUND) } else { ROUND };
                gallery.written_after(graph.covered()).take(most).map(|(seq, _)| seq).collect()
            };
            let Some(last) = round.last() else { return Ok(()) };
            if !graph.has_room(round.len()) {
                return Ok(());
            }
            self.add(graph, &round)?;
            graph.cover(*last);
        }
        Ok(())
    }

    /// Adds these items on every core.
    fn add(&self, graph: &Graph, round: &[u64]) -> Result<(), Fault> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), Fault> {
            loop {
                let start = next.fetch_add(COPY, Ordering::Relaxed);
                if start >= round.len() {
                    return Ok(());
                }
                for (seq, vector) in self.copy(&round[start..(start + COPY).min(round.len())]) {
                    graph.add(seq, &vector)?;
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

    /// The vectors of those that are still there.
    fn copy(&self, seqs: &[u64]) -> Vec<(u64, Vec<f32>)> {
        let gallery = read(&self.shared.gallery);
        seqs.iter().filter_map(|seq| Some((*seq, gallery.vector(gallery.written(*seq)?).to_vec()))).collect()
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

/// Nodes that a graph over `items` may grow by before it is built anew.
fn room(items: usize) -> usize {
    items / 2 + ROUND
}
