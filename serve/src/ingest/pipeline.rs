//! Makes items of images: threads read, hash and decode the images that the index does not have yet, the engine embeds them,
//! and the items are committed in order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use anyhow::{Context, Result, bail};
use macrl_bundle::bundle::Bundle;
use macrl_bundle::decode::{DecodeLimits, decode_to};
use macrl_bundle::progress::Progress;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::item_store::{ItemStore, SOURCE};
use super::report::Report;
use super::source::Source;
use crate::engine::{EmbedError, Engine, Pixels};
use crate::image_folder::ImageFile;
use crate::index::{ContentHash, EncoderIdentity, Index, Item, JsonMap, Metadata, check_id, normalized};
use crate::pool::catch_panic;
use crate::thumbnail;

/// Items of one commit.
const COMMIT: usize = 512;

/// The result of preparing one image.
pub(super) enum Prepared {
    /// The index has it with the same content.
    Unchanged,
    /// It was refused.
    Failed(String),
    /// The engine embeds it.
    Embedding { item: Item, feature: oneshot::Receiver<Result<Vec<f32>, EmbedError>> },
}

/// The state that the preparing threads share.
pub(super) struct Preparation<'a> {
    pub(super) found: Vec<(ImageFile, JsonMap)>,
    /// The content hashes of the items in the index, in the order of `found`.
    pub(super) known: Vec<Option<ContentHash>>,
    pub(super) source: &'a Source,
    pub(super) store: &'a dyn ItemStore,
    pub(super) bundle: &'a Bundle,
    pub(super) engine: &'a Engine,
    pub(super) limits: DecodeLimits,
    pub(super) next: AtomicUsize,
}

impl Preparation<'_> {
    /// Prepares images until there are no more, or the collector has ended.
    pub(super) fn run(&self, ready: &SyncSender<(String, Prepared)>) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((image, metadata)) = self.found.get(number) else { return };
            let prepared = self.prepare(image, metadata, self.known[number]);
            let prepared = prepared.unwrap_or_else(|cause| Prepared::Failed(format!("{cause:#}")));
            if ready.send((image.id.clone(), prepared)).is_err() {
                return;
            }
        }
    }

    fn prepare(&self, image: &ImageFile, metadata: &JsonMap, known: Option<ContentHash>) -> Result<Prepared> {
        check_id(&image.id).map_err(anyhow::Error::msg)?;
        let bytes = macrl_bundle::regular::read_up_to(&image.path, macrl_bundle::regular::MAX_IMAGE)
            .context("cannot be read")?;
        let hash: ContentHash = Sha256::digest(&bytes).into();
        if known == Some(hash) {
            return Ok(Prepared::Unchanged);
        }
        if known.is_some() {
            check_source(self.store, self.source, &image.id)?;
        }
        // If the decoder panics on a broken file, only that file is refused.
        let (limits, bundle) = (self.limits, self.bundle);
        let decoded = catch_panic(|| {
            let image = decode_to(&bytes, &limits, bundle.preprocess.shortest())?;
            Ok::<_, anyhow::Error>((bundle.preprocess.fit(&image).into_raw(), thumbnail::encode(&image)?))
        });
        let (pixels, thumbnail) = decoded?;
        let feature = self.engine.submit(Pixels::Ready(pixels))?;
        let (id, metadata, image) = (image.id.clone(), Metadata::from(metadata.clone()), Some(thumbnail));
        let item = Item { id, vector: Vec::new(), metadata, image, has_image: true, hash: Some(hash) };
        Ok(Prepared::Embedding { item, feature })
    }
}

/// Checks that an item with this id, if there is one, belongs to the source.
pub(super) fn check_source(store: &dyn ItemStore, source: &Source, id: &str) -> Result<()> {
    match store.metadata(id)? {
        Some(metadata) if !source.owns(&metadata) => {
            let other = metadata.get(SOURCE).and_then(|s| s.as_str()).unwrap_or("elsewhere");
            bail!("the index has an item of this id from {other}; it was left as it is")
        }
        _ => Ok(()),
    }
}

/// Collects the prepared images in order and commits their items.
pub(super) struct Collector<'a> {
    pub(super) index: &'a dyn Index,
    pub(super) encoder: &'a EncoderIdentity,
    pub(super) runtime: &'a Runtime,
    pub(super) report: Report,
    /// Items that are embedded and not yet committed.
    pub(super) ready: Vec<Item>,
}

impl Collector<'_> {
    pub(super) fn run(&mut self, prepared: &Receiver<(String, Prepared)>, progress: &Progress) -> Result<()> {
        for (id, outcome) in prepared {
            match outcome {
                Prepared::Unchanged => self.report.unchanged += 1,
                Prepared::Failed(cause) => self.report.failed.push((id, cause)),
                Prepared::Embedding { item, feature } => {
                    let raw = feature.blocking_recv().unwrap_or(Err(EmbedError::Stopped))?;
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
