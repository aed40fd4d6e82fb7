//! One thread makes all changes, in the order in which they came.
//!
//! Whoever changes something leaves it in the queue and awaits the outcome.  What has gathered while one commit was
//! being synced shares the next one; memory follows the disk, so that no search finds what a crash could take back.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::super::{Encoder, IndexError, Item};
use super::Shared;
use super::gallery::{Gallery, Record};
use super::space::Tidying;
use super::store::Store;

/// Items of one commit; more wait for the next.
const MOST: usize = 4096;

/// Nobody has written for so long: there is time to give space back.
const IDLE: Duration = Duration::from_secs(1);
/// For the same at the end.
const LAST: Duration = Duration::from_secs(5);

/// What is asked for.
pub(super) enum Work {
    Put(Encoder, Vec<Item>),
    Delete(String),
    Adopt(Encoder),
}

/// For each item whether it is new (or, deleted, whether there was one), or why not.
pub(super) type Outcome = Result<Vec<Result<bool, IndexError>>, IndexError>;

/// What is asked for, and by whom.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// What the disk is told and memory follows.
#[derive(Debug)]
pub(super) enum Change {
    Put { seq: u64, record: Record, image: Option<Arc<[u8]>> },
    Delete { id: Arc<str> },
}

impl Change {
    pub(super) fn id(&self) -> &Arc<str> {
        match self {
            Self::Put { record, .. } => &record.id,
            Self::Delete { id } => id,
        }
    }
}

/// The thread's own.
pub(super) struct Writer {
    pub(super) store: Option<Store>,
    pub(super) shared: Arc<Shared>,
    pub(super) last_seq: u64,
    pub(super) max_bytes: usize,
}

/// What a commit will change in memory, known before it is made.
#[derive(Default)]
struct Plan {
    changes: Vec<Change>,
    /// Bytes that each item will take, where that changes.
    costs: HashMap<Arc<str>, usize>,
    /// Bytes of all items.
    bytes: usize,
}

impl Writer {
    /// Works until every sender is gone.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let mut next = Tidying::Later;
        loop {
            let first = match next {
                Tidying::Now => jobs.recv_timeout(Duration::ZERO),
                Tidying::Later => jobs.recv_timeout(IDLE),
                Tidying::Changed => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match first {
                Ok(first) => {
                    self.take(first, jobs);
                    next = Tidying::Later;
                }
                Err(RecvTimeoutError::Timeout) => next = self.tidy(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let since = Instant::now();
        while since.elapsed() < LAST && self.tidy() == Tidying::Now {}
    }

    /// What has gathered is done together.
    fn take(&mut self, first: Job, jobs: &Receiver<Job>) {
        let mut items = first.work.items();
        let mut batch = vec![first];
        while items < MOST {
            let Ok(next) = jobs.try_recv() else { break };
            items += next.work.items();
            batch.push(next);
        }
        self.answer(batch);
    }

    /// Gives some unused space back; when to go on.
    fn tidy(&mut self) -> Tidying {
        let Some(store) = &mut self.store else { return Tidying::Changed };
        store.tidy().unwrap_or_else(|error| {
            tracing::warn!("unused space is not given back: {error}");
            Tidying::Changed
        })
    }

    fn answer(&mut self, batch: Vec<Job>) {
        let mut together = Vec::new();
        for job in batch {
            let Work::Adopt(encoder) = &job.work else {
                together.push(job);
                continue;
            };
            // It stands between what came before and what comes after.
            self.commit(std::mem::take(&mut together));
            let outcome = self.adopt(encoder).map(|()| Vec::new());
            let _ = job.reply.send(outcome);
        }
        self.commit(together);
    }

    fn adopt(&mut self, encoder: &Encoder) -> Result<(), IndexError> {
        let holds = self.shared.encoder();
        let items = read(&self.shared.gallery).len();
        if holds == *encoder {
            return Ok(());
        }
        if items > 0 {
            return Err(IndexError::Encoder { holds, items, given: encoder.clone() });
        }
        if let Some(store) = &mut self.store {
            store.adopt(encoder)?;
        }
        self.shared.adopt(encoder.clone());
        Ok(())
    }

    /// One transaction for all of these jobs.
    fn commit(&mut self, jobs: Vec<Job>) {
        let mut plan = Plan { bytes: read(&self.shared.gallery).bytes(), ..Plan::default() };
        let mut pending = Vec::new();
        for job in jobs {
            match self.plan(job.work, &mut plan) {
                Ok(verdicts) => pending.push((job.reply, verdicts)),
                Err(error) => drop(job.reply.send(Err(error))),
            }
        }
        let written = match &mut self.store {
            Some(store) if !plan.changes.is_empty() => store.commit(&plan.changes),
            _ => Ok(()),
        };
        if let Err(error) = written {
            pending.into_iter().for_each(|(reply, _)| drop(reply.send(Err(error.clone()))));
            return;
        }
        let mut done = self.apply(plan.changes).into_iter();
        for (reply, verdicts) in pending {
            let outcome = verdicts.into_iter().map(|v| v.map(|()| done.next().unwrap_or(false))).collect();
            let _ = reply.send(Ok(outcome));
        }
    }

    /// Adds a job's changes to the plan; for each item whether it is part of it.
    fn plan(&mut self, work: Work, plan: &mut Plan) -> Result<Vec<Result<(), IndexError>>, IndexError> {
        match work {
            Work::Put(encoder, items) => {
                let holds = self.shared.encoder();
                if holds != encoder {
                    let items = read(&self.shared.gallery).len();
                    return Err(IndexError::Encoder { holds, items, given: encoder });
                }
                Ok(items.into_iter().map(|item| self.plan_item(item, encoder.dim, plan)).collect())
            }
            Work::Delete(id) => {
                let id: Arc<str> = id.into();
                plan.cost(&id, 0, &read(&self.shared.gallery));
                plan.changes.push(Change::Delete { id });
                Ok(vec![Ok(())])
            }
            Work::Adopt(_) => Ok(Vec::new()),
        }
    }

    fn plan_item(&mut self, item: Item, dim: usize, plan: &mut Plan) -> Result<(), IndexError> {
        let found = item.vector.len();
        if found != dim {
            return Err(IndexError::Dimension { expected: dim, found });
        }
        let record = Record {
            id: item.id.into(),
            vector: item.vector,
            metadata: serde_json::Value::Object(item.metadata).to_string().into(),
            hash: item.hash,
            pictured: item.image.is_some(),
            // A store keeps it out of memory.
            image: if self.store.is_some() { None } else { item.image.clone() },
        };
        if !plan.fits(&record, self.max_bytes, &read(&self.shared.gallery)) {
            return Err(IndexError::Full { limit: self.max_bytes });
        }
        self.last_seq += 1;
        plan.changes.push(Change::Put { seq: self.last_seq, record, image: item.image });
        Ok(())
    }

    fn apply(&self, changes: Vec<Change>) -> Vec<bool> {
        let mut gallery = self.shared.gallery.write().unwrap_or_else(|e| e.into_inner());
        let apply = |change| match change {
            Change::Put { seq, record, .. } => gallery.put(seq, record),
            Change::Delete { id } => gallery.delete(&id),
        };
        changes.into_iter().map(apply).collect()
    }
}

impl Plan {
    /// Notes that an item will take `bytes`.
    fn cost(&mut self, id: &Arc<str>, bytes: usize, gallery: &Gallery) {
        let before = self.costs.insert(id.clone(), bytes).unwrap_or_else(|| gallery.cost(id));
        self.bytes = self.bytes - before + bytes;
    }

    /// Notes what the record will take, where there is room: what it replaces makes room, too.
    fn fits(&mut self, record: &Record, limit: usize, gallery: &Gallery) -> bool {
        let before = self.costs.get(&record.id).copied().unwrap_or_else(|| gallery.cost(&record.id));
        let cost = record.cost();
        let fits = self.bytes - before + cost <= limit || cost <= before;
        if fits {
            self.cost(&record.id, cost, gallery);
        }
        fits
    }
}

impl Work {
    fn items(&self) -> usize {
        match self {
            Self::Put(_, items) => items.len(),
            Self::Delete(_) | Self::Adopt(_) => 1,
        }
    }
}

pub(super) fn read(gallery: &RwLock<Gallery>) -> std::sync::RwLockReadGuard<'_, Gallery> {
    gallery.read().unwrap_or_else(|e| e.into_inner())
}

/// Starts the thread.
pub(super) fn start(writer: Writer) -> Result<(Sender<Job>, std::thread::JoinHandle<()>), IndexError> {
    let (sender, jobs) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("index-writer".into()).spawn(move || writer.run(&jobs));
    let thread = thread.map_err(|e| IndexError::Open(format!("cannot start the index's thread: {e}")))?;
    Ok((sender, thread))
}
