//! One thread makes all changes, in the order in which they were asked for.
//!
//! A caller sends a request and awaits its result.  Requests that arrive while a commit is being synced share the next one.
//! The item table is changed after the disk, so no search finds what a crash could take back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::super::error::IndexError;
use super::super::item::{EncoderIdentity, Item};
use super::change::Change;
use super::item_table::{ItemTable, Record};
use super::postings::PlannedValues;
use super::shared::Shared;
use super::store::Store;
use super::vacuum::VacuumState;

/// Items of one commit, about; further requests wait for the next one.
const ITEMS_PER_COMMIT: usize = 4096;
/// Time without a request after which unused disk space is given back.
const IDLE: Duration = Duration::from_secs(1);
/// Time that giving back disk space may take when the index is closed.
const CLOSING: Duration = Duration::from_secs(5);

/// A change that a caller asks for.
pub(super) enum Work {
    Put(EncoderIdentity, Vec<Item>),
    Delete(String),
    Adopt(EncoderIdentity),
}

/// For each item whether it is new (or, if it was to be deleted, whether it existed), or why it was not changed.
pub(super) type WriteResult = Result<Vec<Result<bool, IndexError>>, IndexError>;

/// A change and where its result is sent.
pub(super) struct Request {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<WriteResult>,
}

/// State of the writer thread.
pub(super) struct Writer {
    /// `None` for an index in memory.
    pub(super) store: Option<Store>,
    pub(super) shared: Arc<Shared>,
    /// Sequence number of the last write.
    pub(super) last_seq: u64,
    /// Bytes that all items may take.
    pub(super) max_bytes: usize,
}

/// The changes of one commit, and the memory that the items will take after it.
#[derive(Default)]
struct Plan {
    changes: Vec<Change>,
    /// Bytes of each changed item after the commit.
    item_bytes: HashMap<Arc<str>, usize>,
    /// Metadata of the items that are to be stored.
    values: PlannedValues,
    /// Bytes of all items after the commit.
    total_bytes: usize,
}

impl Writer {
    /// Runs until every sender is dropped.
    pub(super) fn run(mut self, requests: &Receiver<Request>) {
        let mut vacuum = VacuumState::AfterPause;
        loop {
            let first = match vacuum {
                VacuumState::Unfinished => requests.recv_timeout(Duration::ZERO),
                VacuumState::AfterPause => requests.recv_timeout(IDLE),
                VacuumState::AfterChange => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match first {
                Ok(first) => {
                    self.take(first, requests);
                    vacuum = VacuumState::AfterPause;
                }
                Err(RecvTimeoutError::Timeout) => vacuum = self.vacuum(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let since = Instant::now();
        while since.elapsed() < CLOSING && self.vacuum() == VacuumState::Unfinished {}
    }

    /// Handles a request together with those that wait behind it.
    fn take(&mut self, first: Request, requests: &Receiver<Request>) {
        let mut items = first.work.items();
        let mut batch = vec![first];
        while items < ITEMS_PER_COMMIT {
            let Ok(next) = requests.try_recv() else { break };
            items += next.work.items();
            batch.push(next);
        }
        self.handle(batch);
    }

    /// Gives some unused disk space back; returns when to go on.
    fn vacuum(&mut self) -> VacuumState {
        let Some(store) = &mut self.store else { return VacuumState::AfterChange };
        store.vacuum().unwrap_or_else(|error| {
            tracing::warn!("unused disk space is not given back: {error}");
            VacuumState::AfterChange
        })
    }

    fn handle(&mut self, batch: Vec<Request>) {
        let mut together = Vec::new();
        for request in batch {
            let Work::Adopt(encoder) = &request.work else {
                together.push(request);
                continue;
            };
            // Changes before it are committed first, changes after it are for the new encoder.
            self.commit(std::mem::take(&mut together));
            let outcome = self.adopt(encoder).map(|()| Vec::new());
            let _ = request.reply.send(outcome);
        }
        self.commit(together);
    }

    fn adopt(&mut self, encoder: &EncoderIdentity) -> Result<(), IndexError> {
        let holds = self.shared.encoder();
        let items = self.shared.table().len();
        if holds == *encoder {
            return Ok(());
        }
        if items > 0 {
            return Err(IndexError::EncoderMismatch { holds, items, given: encoder.clone() });
        }
        if let Some(store) = &mut self.store {
            store.adopt(encoder)?;
        }
        self.shared.adopt(encoder.clone());
        Ok(())
    }

    /// Commits the changes of these requests in one transaction.
    fn commit(&mut self, requests: Vec<Request>) {
        let mut plan = Plan { total_bytes: self.shared.table().bytes(), ..Plan::default() };
        let mut pending = Vec::new();
        for request in requests {
            match self.plan(request.work, &mut plan) {
                Ok(verdicts) => pending.push((request.reply, verdicts)),
                Err(error) => drop(request.reply.send(Err(error))),
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
        let mut applied = self.apply(plan.changes).into_iter();
        for (reply, verdicts) in pending {
            let outcome = verdicts.into_iter().map(|v| v.map(|()| applied.next().unwrap_or(false))).collect();
            let _ = reply.send(Ok(outcome));
        }
    }

    /// Adds the changes of one request to the plan; returns for each item whether it is part of it.
    fn plan(&mut self, work: Work, plan: &mut Plan) -> Result<Vec<Result<(), IndexError>>, IndexError> {
        match work {
            Work::Put(encoder, items) => {
                let holds = self.shared.encoder();
                if holds != encoder {
                    let items = self.shared.table().len();
                    return Err(IndexError::EncoderMismatch { holds, items, given: encoder });
                }
                Ok(items.into_iter().map(|item| self.plan_item(item, encoder.dim, plan)).collect())
            }
            Work::Delete(id) => {
                let id: Arc<str> = id.into();
                plan.set_bytes(&id, 0, &self.shared.table());
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
            metadata: item.metadata,
            hash: item.hash,
            has_image: item.image.is_some(),
            // With a store, thumbnails are not kept in memory.
            image: if self.store.is_some() { None } else { item.image.clone() },
        };
        if !plan.reserve(&record, self.max_bytes, &self.shared.table()) {
            return Err(IndexError::Full { limit: self.max_bytes });
        }
        self.last_seq += 1;
        plan.changes.push(Change::Put { seq: self.last_seq, record, image: item.image });
        Ok(())
    }

    fn apply(&self, changes: Vec<Change>) -> Vec<bool> {
        let mut table = self.shared.table_mut();
        let apply = |change| match change {
            Change::Put { seq, record, .. } => table.put(seq, record),
            Change::Delete { id } => table.delete(&id),
        };
        changes.into_iter().map(apply).collect()
    }
}

impl Plan {
    /// Notes that an item will take `bytes`.
    fn set_bytes(&mut self, id: &Arc<str>, bytes: usize, table: &ItemTable) {
        let before = self.item_bytes.insert(id.clone(), bytes).unwrap_or_else(|| table.item_bytes(id));
        self.total_bytes = self.total_bytes.saturating_sub(before) + bytes;
    }

    /// Notes what the record will take, unless that exceeds the limit.  The bytes of the item that it replaces are free.
    fn reserve(&mut self, record: &Record, limit: usize, table: &ItemTable) -> bool {
        let metadata = record.metadata.to_map();
        let (bytes, released) = table.change_in_bytes(record, &metadata, &self.values);
        let before = self.item_bytes.get(&record.id).copied().unwrap_or(released);
        let total = self.total_bytes.saturating_sub(before) + bytes;
        let fits = total <= limit || bytes <= before;
        if fits {
            self.item_bytes.insert(record.id.clone(), bytes);
            self.values.add(&metadata);
            self.total_bytes = total;
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

/// Starts the writer thread.
pub(super) fn start(writer: Writer) -> Result<(Sender<Request>, std::thread::JoinHandle<()>), IndexError> {
    let (sender, requests) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("index-writer".into()).spawn(move || writer.run(&requests));
    let thread = thread.map_err(|e| IndexError::Open(format!("cannot start the index's thread: {e}")))?;
    Ok((sender, thread))
}
