//! Images -> items: threads read, hash and decode what the index does not have yet, the engine embeds it, and what is
//! embedded is committed in order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use anyhow::{Context, Result, bail};
use macrl_bundle::bundle::Bundle;
use macrl_bundle::decode::{DecodeLimits, decode};
use macrl_bundle::progress::Progress;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::Report;
use super::source::{SOURCE, Source, Stored};
use crate::engine::{Engine, Pixels};
use crate::error::ApiError;
use crate::features::encode_thumbnail;
use crate::index::{ContentHash, Encoder, Index, Item, Metadata, check_id, normalized};
use crate::pictures::Picture;

/// Items of one commit.
const COMMIT: usize = 512;

/// What became of one image before inference.
pub(super) enum Prepared {
    There,
    Failed(String),
    Waiting { item: Item, feature: oneshot::Receiver<Result<Vec<f32>, ApiError>> },
}

/// What the reading threads share.
pub(super) struct Work<'a> {
    pub(super) found: Vec<(Picture, Metadata)>,
    /// Of the items that the index has, in the order of `found`.
    pub(super) known: Vec<Option<ContentHash>>,
    pub(super) source: &'a Source,
    pub(super) stored: &'a dyn Stored,
    pub(super) bundle: &'a Bundle,
    pub(super) engine: &'a Engine,
    pub(super) limits: DecodeLimits,
    pub(super) next: AtomicUsize,
}

impl Work<'_> {
    /// Takes images until there are none, or nobody wants them any more.
    pub(super) fn run(&self, ready: &SyncSender<(String, Prepared)>) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((picture, metadata)) = self.found.get(number) else { return };
            let prepared = self.prepare(picture, metadata, self.known[number]);
            let prepared = prepared.unwrap_or_else(|cause| Prepared::Failed(format!("{cause:#}")));
            if ready.send((picture.id.clone(), prepared)).is_err() {
                return;
            }
        }
    }

    fn prepare(&self, picture: &Picture, metadata: &Metadata, known: Option<ContentHash>) -> Result<Prepared> {
        check_id(&picture.id).map_err(anyhow::Error::msg)?;
        let bytes = std::fs::read(&picture.path).context("cannot be read")?;
        let hash: ContentHash = Sha256::digest(&bytes).into();
        if known == Some(hash) {
            return Ok(Prepared::There);
        }
        if known.is_some() {
            check_source(self.stored, self.source, &picture.id)?;
        }
        // A decoder that panics on a broken file costs that file.
        let (limits, bundle) = (self.limits, self.bundle);
        let decoded = std::panic::catch_unwind(|| {
            let image = decode(&bytes, &limits)?;
            Ok::<_, ApiError>((bundle.preprocess.fit(&image).into_raw(), encode_thumbnail(&image)?))
        });
        let (pixels, thumbnail) = decoded.unwrap_or(Err(ApiError::Undecodable("its decoder failed".into())))?;
        let feature = self.engine.submit(Pixels::Ready(pixels))?;
        let (id, metadata, image) = (picture.id.clone(), metadata.clone(), Some(thumbnail));
        let item = Item { id, vector: Vec::new(), metadata, image, pictured: true, hash: Some(hash) };
        Ok(Prepared::Waiting { item, feature })
    }
}

/// Refuses to replace the item of another source that happens to have this id.
pub(super) fn check_source(stored: &dyn Stored, source: &Source, id: &str) -> Result<()> {
    match stored.metadata(id)? {
        Some(metadata) if !source.owns(&metadata) => {
            let other = metadata.get(SOURCE).and_then(|s| s.as_str()).unwrap_or("elsewhere");
            bail!("the index has an item of this id from {other}; it was left as it is")
        }
        _ => Ok(()),
    }
}

/// Takes what was prepared, in order, and commits what was embedded.
pub(super) struct Collector<'a> {
    pub(super) index: &'a dyn Index,
    pub(super) encoder: &'a Encoder,
    pub(super) runtime: &'a Runtime,
    pub(super) report: Report,
    pub(super) ready: Vec<Item>,
}

impl Collector<'_> {
    pub(super) fn run(&mut self, prepared: &Receiver<(String, Prepared)>, progress: &Progress) -> Result<()> {
        for (id, outcome) in prepared {
            match outcome {
                Prepared::There => self.report.there += 1,
                Prepared::Failed(cause) => self.report.failed.push((id, cause)),
                Prepared::Waiting { item, feature } => {
                    let raw = feature.blocking_recv().unwrap_or(Err(ApiError::Stopping))?;
                    match normalized(raw) {
                        Ok(vector) => self.ready.push(Item { vector, ..item }),
                        Err(cause) => self.report.failed.push((id, cause)),
                    }
                }
            }
            if self.ready.len() >= COMMIT {
                self.commit()?;
            }
            progress.add(1);
        }
        self.commit()
    }

    fn commit(&mut self) -> Result<()> {
        let items = std::mem::take(&mut self.ready);
        let ids: Vec<String> = items.iter().map(|item| item.id.clone()).collect();
        let outcomes = self.runtime.block_on(self.index.put(self.encoder, items))?;
        for (id, outcome) in ids.into_iter().zip(outcomes) {
            match outcome {
                Ok(created) => {
                    self.report.stored += 1;
                    self.report.replaced += usize::from(!created);
                }
                Err(cause) => self.report.failed.push((id, cause.to_string())),
            }
        }
        Ok(())
    }
}
