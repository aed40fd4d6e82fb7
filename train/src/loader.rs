//! Batches in step order, made ahead of time by background threads.
//!
//! Neither the number of threads nor the step at which a run was resumed changes any bit of a batch.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use macrl_bundle::config::Config;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::batches::Batches;
use crate::data::Dataset;
use crate::views::Batch;

/// Finished batches that wait to be used.  One more is being made and one is in use: at most three are in memory.
const AHEAD: usize = 1;

/// Makes batches (or what `T` holds instead) ahead of time, in step order.
pub struct Loader<T = Batch> {
    batches: Arc<Batches>,
    ready: Option<Receiver<Result<T>>>,
    maker: Option<JoinHandle<()>>,
    waited: Duration,
}

impl Loader {
    /// Starts making the batches from `first_step` on, with a thread per core.
    ///
    /// # Errors
    /// When the split has fewer images than a batch, or no thread can be started.
    pub fn new(data: Arc<dyn Dataset>, config: &Config, first_step: u64) -> Result<Self> {
        Loader::over(Batches::new(data, config)?, first_step)
    }

    /// Starts making these batches from `first_step` on, with a thread per core.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn over(batches: Batches, first_step: u64) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Loader::start(batches, first_step, threads, Batches::make)
    }

    /// [`Loader::new`] with a number of threads; the batches do not depend on it.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn with_threads(data: Arc<dyn Dataset>, config: &Config, first_step: u64, threads: usize) -> Result<Self> {
        Loader::start(Batches::new(data, config)?, first_step, threads, Batches::make)
    }
}

impl<T: Send + 'static> Loader<T> {
    /// Starts calling `make` for each step from `first_step` on, with so many threads.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        batches: Batches,
        first_step: u64,
        threads: usize,
        make: impl Fn(&Batches, u64) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let batches = Arc::new(batches);
        // A pool of its own: views and the step's matrix products must not wait for each other.
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("views-{i}"))
            .build()
            .context("cannot start the loader's threads")?;
        let (sender, ready) = sync_channel(AHEAD);
        let source = batches.clone();
        let produce = move || produce(&pool, first_step, |step| make(&source, step), |made| sender.send(made).is_ok());
        let maker =
            std::thread::Builder::new().name("loader".into()).spawn(produce).context("cannot start the loader")?;
        Ok(Loader { batches, ready: Some(ready), maker: Some(maker), waited: Duration::ZERO })
    }

    /// Whole batches in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.batches.steps_per_epoch()
    }

    /// The next step's batch.
    ///
    /// # Errors
    /// When no image can be read, or the loader's thread has died.
    #[expect(clippy::should_implement_trait, reason = "it never ends and may fail: not an iterator")]
    pub fn next(&mut self) -> Result<T> {
        let start = Instant::now();
        let batch = self.ready.as_ref().and_then(|r| r.recv().ok()).context("the loader's thread has stopped")?;
        self.waited += start.elapsed();
        batch
    }

    /// Total time that [`Loader::next`] has kept its caller waiting.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Images that could not be read while training, and why.
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.batches.skipped()
    }
}

/// Makes batches until the receiver is gone or one fails.
fn produce<T: Send>(
    pool: &ThreadPool,
    first_step: u64,
    make: impl Fn(u64) -> Result<T> + Sync,
    mut give: impl FnMut(Result<T>) -> bool,
) {
    for step in first_step.. {
        let made = pool.install(|| make(step));
        let failed = made.is_err();
        if !give(made) || failed {
            return;
        }
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        // Without a receiver the thread's next send fails, and the thread ends.
        self.ready = None;
        if let Some(maker) = self.maker.take() {
            let _ = maker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use anyhow::bail;
    use image::{Rgb, RgbImage};

    use super::*;
    use crate::data::memory::Memory;

    /// 2 x 2 patches of 4 x 4 pixels; strong keeps 1 of 4, weak 3.
    fn config() -> Config {
        let set = [
            "encoder.image_size=8",
            "encoder.patch_size=4",
            "train.batch_size=4",
            "views.strong.blur=0.5",
            "views.strong.mask_ratio=0.75",
            "views.weak.mask_ratio=0.25",
        ];
        Config::parse("", "test", &set.map(String::from)).unwrap()
    }

    fn images(count: u32) -> Vec<RgbImage> {
        let pixel = |i: u32, x: u32, y: u32| Rgb([(i * 20 + x) as u8, (x * 9 + y * 5) as u8, (y * 13 + i) as u8]);
        (0..count).map(|i| RgbImage::from_fn(9 + i, 12, |x, y| pixel(i, x, y))).collect()
    }

    fn data(count: u32) -> Arc<dyn Dataset> {
        Arc::new(Memory::new("train", images(count), vec![None; count as usize]))
    }

    fn batches(loader: &mut Loader, count: usize) -> Vec<Batch> {
        (0..count).map(|_| loader.next().unwrap()).collect()
    }

    #[test]
    fn neither_threads_nor_the_first_step_change_a_batch() {
        let start = |step, threads| Loader::with_threads(data(11), &config(), step, threads).unwrap();
        let one = batches(&mut start(0, 1), 7);
        assert_eq!(one, batches(&mut start(0, 3), 7));
        assert_eq!(one[3..], batches(&mut start(3, 2), 4));
        assert_ne!(one[0].strong, one[2].strong);
        let other = Config::parse("[train]\nseed = 1\n", "test", &[]).unwrap().train.seed;
        let mut seeded = config();
        seeded.train.seed = other;
        assert_ne!(one[0], Loader::new(data(11), &seeded, 0).unwrap().next().unwrap());
    }

    #[test]
    fn the_weak_view_alone_is_the_same_weak_view() {
        let (both, weak) =
            (Batches::new(data(11), &config()).unwrap(), Batches::weak_only(data(11), &config()).unwrap());
        for step in 0..4 {
            let (both, weak) = (both.make(step).unwrap(), weak.make(step).unwrap());
            assert_eq!(
                (weak.indices, weak.weak, weak.strong),
                (both.indices, both.weak, crate::views::View::default())
            );
        }
    }

    #[test]
    fn an_epoch_shows_an_image_once_at_most() {
        let source = Batches::new(data(11), &config()).unwrap();
        assert_eq!(source.steps_per_epoch(), 2);
        let epoch = |e: u64| [source.indices(2 * e), source.indices(2 * e + 1)].concat();
        for e in 0..20 {
            let mut seen = epoch(e);
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 8);
        }
        assert_ne!(epoch(0), epoch(1));
        // Every epoch leaves out three other images: in 20 epochs every image is used.
        let mut all: Vec<u32> = (0..20).flat_map(epoch).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 11);
    }

    #[test]
    fn shapes_masks_and_targets_fit_together() {
        let batch = Loader::new(data(5), &config(), 0).unwrap().next().unwrap();
        let values = 3 * 4 * 4;
        assert_eq!((batch.strong.kept.len(), batch.weak.kept.len()), (4, 4 * 3));
        assert_eq!((batch.strong.patches.len(), batch.weak.patches.len()), (4 * values, 12 * values));
        assert_eq!((batch.strong.target.len(), batch.weak.target.len()), (16 * values, 16 * values));
        for kept in batch.weak.kept.chunks(3) {
            assert!(kept.windows(2).all(|w| w[0] < w[1]) && kept[2] < 4, "{kept:?}");
        }
        // The weak view has no photometric corruption: what the encoder sees is the target's kept patches.
        for (i, kept) in batch.weak.kept.iter().enumerate() {
            let target = &batch.weak.target[(i / 3 * 4 + *kept as usize) * values..][..values];
            assert_eq!(&batch.weak.patches[i * values..][..values], target);
        }
        // Normalised black and white bound every value.
        let bounds = [(0.0 - 0.485) / 0.229 - 1e-4, (1.0 - 0.406) / 0.225 + 1e-4];
        assert!(batch.strong.target.iter().all(|v| (bounds[0]..bounds[1]).contains(v)));
    }

    #[test]
    fn a_whole_view_is_what_the_encoder_sees_and_the_rest_of_it() {
        let masked = Loader::new(data(5), &config(), 0).unwrap().next().unwrap();
        assert!(masked.strong.whole.is_empty() && masked.weak.whole.is_empty());
        let mut config = config();
        config.contrast.key_mask = macrl_bundle::config::KeyMask::None;
        let batch = Loader::new(data(5), &config, 0).unwrap().next().unwrap();
        for view in [&batch.strong, &batch.weak] {
            assert_eq!(view.whole.len(), view.target.len());
            let k = view.kept.len() / 4;
            for (i, kept) in view.kept.iter().enumerate() {
                let whole = &view.whole[(i / k * 4 + *kept as usize) * 48..][..48];
                assert_eq!(&view.patches[i * 48..][..48], whole);
            }
        }
        assert_eq!((batch.strong.patches, batch.weak.kept), (masked.strong.patches, masked.weak.kept));
        config.contrast.symmetric = false;
        let one_way = Loader::new(data(5), &config, 0).unwrap().next().unwrap();
        assert!(one_way.strong.whole.is_empty() && one_way.weak.whole == batch.weak.whole);
    }

    #[test]
    fn the_view_as_target_is_what_the_encoder_sees() {
        let mut config = config();
        config.reconstruction.target = macrl_bundle::config::Target::View;
        config.views.strong.jitter_probability = 1.0;
        let view = Loader::new(data(5), &config, 0).unwrap().next().unwrap().strong;
        config.reconstruction.target = macrl_bundle::config::Target::Clean;
        let clean = Loader::new(data(5), &config, 0).unwrap().next().unwrap().strong;
        assert_eq!(view.patches, clean.patches);
        assert_ne!(view.target, clean.target);
        for (i, kept) in view.kept.iter().enumerate() {
            assert_eq!(&view.patches[i * 48..][..48], &view.target[(i * 4 + *kept as usize) * 48..][..48]);
        }
    }

    /// A data set whose images 1 and 2 cannot be read any more.
    struct Bad(Memory);

    impl Dataset for Bad {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn label(&self, index: usize) -> Option<u32> {
            self.0.label(index)
        }
        fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
            if index == 1 || index == 2 { bail!("bad") } else { self.0.image(index) }
        }
        fn name(&self, index: usize) -> String {
            self.0.name(index)
        }
    }

    #[test]
    fn an_unreadable_image_gives_way_to_the_next() {
        let data = Arc::new(Bad(Memory::new("train", images(4), vec![None; 4])));
        let mut loader = Loader::new(data, &config(), 0).unwrap();
        let mut indices = loader.next().unwrap().indices;
        indices.sort_unstable();
        assert_eq!(indices, [0, 3, 3, 3]);
        assert_eq!(loader.skipped(), [("train[1]".into(), "bad".into()), ("train[2]".into(), "bad".into())]);
    }

    /// Counts how many images were asked for.
    struct Counted(Memory, std::sync::atomic::AtomicUsize);

    impl Dataset for Counted {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn label(&self, index: usize) -> Option<u32> {
            self.0.label(index)
        }
        fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            self.0.image(index)
        }
        fn name(&self, index: usize) -> String {
            self.0.name(index)
        }
    }

    #[test]
    fn a_loader_that_nobody_reads_stops_two_batches_ahead() {
        let data = Arc::new(Counted(Memory::new("train", images(8), vec![None; 8]), Default::default()));
        let mut loader = Loader::new(data.clone(), &config(), 0).unwrap();
        loader.next().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        // One batch was taken, one waits in the channel, and one waits to be sent: 3 batches of 4.
        let asked = data.1.load(std::sync::atomic::Ordering::SeqCst);
        assert!((4..=12).contains(&asked), "{asked}");
    }

    #[test]
    fn too_few_images_for_a_batch_are_an_error() {
        let message = Loader::new(data(3), &config(), 0).err().unwrap().to_string();
        assert_eq!(message, "3 training images are too few for a batch of 4");
    }
}
