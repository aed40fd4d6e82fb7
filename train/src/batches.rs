//! The batch of any step, a pure function of (configuration, data, step).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
use image::RgbImage;
use macrl_bundle::config::Config;
use macrl_bundle::progress::Progress;
use rayon::prelude::*;

use crate::data::Dataset;
use crate::views::random::{Philox, Stream};
use crate::views::{Batch, Scratch, Slot, ViewPipeline};

/// Makes the batch of any step.
pub struct Batches {
    data: Arc<dyn Dataset>,
    /// `None` where only weak views are made.
    strong: Option<ViewPipeline>,
    weak: ViewPipeline,
    seed: u64,
    size: usize,
    /// The epoch that was used last, and its order of images.
    order: Mutex<Option<(u64, Arc<Vec<u32>>)>>,
    unreadable: Mutex<BTreeMap<u32, String>>,
    /// Whether a batch has been started.  The first one may take long and shows its progress.
    begun: AtomicBool,
}

impl Batches {
    /// Makes batches of a training split.
    ///
    /// # Errors
    /// When the split has fewer images than a batch.
    pub fn new(data: Arc<dyn Dataset>, config: &Config) -> Result<Self> {
        let size = config.train.batch_size;
        if data.len() < size {
            bail!("{} training images are too few for a batch of {size}", data.len());
        }
        Ok(Batches {
            data,
            strong: Some(ViewPipeline::strong(config)),
            weak: ViewPipeline::weak(config),
            seed: config.train.seed,
            size,
            order: Mutex::new(None),
            unreadable: Mutex::new(BTreeMap::new()),
            begun: AtomicBool::new(false),
        })
    }

    /// Batches whose strong view stays empty.
    ///
    /// # Errors
    /// As [`Batches::new`].
    pub fn weak_only(data: Arc<dyn Dataset>, config: &Config) -> Result<Self> {
        Ok(Batches { strong: None, ..Batches::new(data, config)? })
    }

    /// Whole batches in an epoch.  Images that do not fill a batch are left out of this epoch; every epoch leaves out others.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.data.len() / self.size) as u64
    }

    /// The images of a step, in order.
    pub fn indices(&self, step: u64) -> Vec<u32> {
        let (epoch, position) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let first = position as usize * self.size;
        self.order(epoch)[first..first + self.size].to_vec()
    }

    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut cached = self.order.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*cached {
            Some((of, order)) if *of == epoch => order.clone(),
            _ => {
                let fresh = Philox::new(self.seed, epoch, 0, Stream::Order).permutation(self.data.len() as u32);
                let order = Arc::new(fresh);
                *cached = Some((epoch, order.clone()));
                order
            }
        }
    }

    /// Makes the batch of a step, on the rayon pool that it is called in.
    ///
    /// # Errors
    /// When no image of the split can be read any more.
    pub fn make(&self, step: u64) -> Result<Batch> {
        let epoch = step / self.steps_per_epoch();
        let strong = self.strong.as_ref().map(|pipeline| pipeline.empty_view(self.size)).unwrap_or_default();
        let mut batch = Batch { indices: self.indices(step), strong, weak: self.weak.empty_view(self.size) };
        let strong: Vec<Option<Slot>> = match &self.strong {
            Some(pipeline) => pipeline.slots(&mut batch.strong).into_iter().map(Some).collect(),
            None => (0..self.size).map(|_| None).collect(),
        };
        let slots: Vec<_> = strong.into_iter().zip(self.weak.slots(&mut batch.weak)).collect();
        let first = !self.begun.swap(true, Ordering::Relaxed);
        let progress = first.then(|| Progress::new("making the first batch", self.size));
        let work = batch.indices.par_iter_mut().zip(slots);
        work.try_for_each_init(Scratch::default, |scratch, (index, (mut strong, mut weak))| {
            self.fill(index, epoch, scratch, strong.as_mut(), &mut weak)?;
            progress.iter().for_each(|progress| progress.add(1));
            anyhow::Ok(())
        })?;
        Ok(batch)
    }

    fn fill(
        &self,
        index: &mut u32,
        epoch: u64,
        scratch: &mut Scratch,
        strong: Option<&mut Slot>,
        weak: &mut Slot,
    ) -> Result<()> {
        let (readable, image) = self.read(*index)?;
        *index = readable;
        if let (Some(pipeline), Some(slot)) = (&self.strong, strong) {
            pipeline.make(&image, epoch, readable, scratch, slot);
        }
        self.weak.make(&image, epoch, readable, scratch, weak);
        Ok(())
    }

    /// Image `index`, or the next readable one.  The choice depends on the data alone, so the batch stays reproducible.
    fn read(&self, index: u32) -> Result<(u32, Cow<'_, RgbImage>)> {
        let count = self.data.len();
        for candidate in (0..count).map(|skip| (index as usize + skip) % count) {
            match self.data.image(candidate) {
                Ok(image) => return Ok((candidate as u32, image)),
                Err(why) => {
                    let mut list = self.unreadable.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    list.insert(candidate as u32, format!("{why:#}"));
                }
            }
        }
        bail!("not one of the {count} training images can be read any more")
    }

    /// Images that could not be read so far, and why.  The next readable image has replaced each.
    pub fn skipped(&self) -> Vec<(String, String)> {
        let list = self.unreadable.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        list.iter().map(|(index, why)| (self.data.name(*index as usize), why.clone())).collect()
    }
}
