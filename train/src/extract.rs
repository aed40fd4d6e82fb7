//! A data set's splits -> the features that evaluation compares: those of two encoders, and pixels.  Each file is read once.

use anyhow::{Context, Result, ensure};
use macrl_bundle::config::Config;
use macrl_bundle::preprocess::Preprocess;
use macrl_nn::ops::graph::with_values;
use macrl_nn::vit::Encoder;

use crate::data::{Data, Dataset};
use crate::encode::{LeftOut, PreparedImages, labelled, pixels_to_tensor, stream};
use crate::evaluate::draw::stratified;
use crate::evaluate::unlabelled::Spread;
use crate::evaluate::{Features, Pixels, Split, average, diagnostics, pixel_edge, pixel_features};

/// PreparedImages that spread and rank are measured on, where no image has a label.
const UNLABELLED: usize = 6_000;

/// The evaluated encoder, and an untrained one of the same shape to compare it with.
pub struct EncoderPair<'a> {
    /// The evaluated (`macrl`) and the untrained (`random`) encoder.
    encoders: [Encoder; 2],
    config: &'a Config,
    preprocess: Preprocess,
}

/// One split after both encoders.
struct EncodedSplit {
    features: [Features; 2],
    /// (n, E, E, 3) u8.
    pixels: Vec<u8>,
}

/// Both splits, and what could not be read.
pub struct Extracted {
    train: EncodedSplit,
    test: EncodedSplit,
    edge: usize,
    /// PreparedImages that could not be read, and why.
    pub left_out: Vec<LeftOut>,
}

impl<'a> EncoderPair<'a> {
    /// Pairs `encoder` with an untrained one.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn new(encoder: Encoder, config: &'a Config) -> Result<Self> {
        let random = Encoder::init(&config.encoder, config.train.seed)?;
        Ok(EncoderPair { encoders: [encoder, random], config, preprocess: Preprocess::from_config(config) })
    }

    /// Features and pixels of all labelled images of both splits.
    ///
    /// # Errors
    /// A split without a readable image that has a label.
    pub fn extract(&self, data: &Data) -> Result<Extracted> {
        let test = data.test.as_ref().context("the data has nothing to hold out for a test")?;
        let (train_known, test_known) = (labelled(data.train.as_ref()), labelled(test.as_ref()));
        let size = self.config.encoder.image_size;
        let edge = pixel_edge(size, train_known.len() + test_known.len());
        let mut left_out = Vec::new();
        let mut both = Vec::new();
        for (what, split, known) in [("training", &data.train, train_known), ("test", test, test_known)] {
            let (seen, broken) = self.see(split.as_ref(), &known, edge)?;
            ensure!(!seen.features[0].is_empty(), "{}", nothing(what, split.as_ref(), &known, &broken));
            left_out.extend(broken);
            both.push(seen);
        }
        let (test, train) = (both.pop(), both.pop());
        let (train, test) = train.zip(test).context("two splits")?;
        Ok(Extracted { train, test, edge, left_out })
    }

    fn see(&self, split: &dyn Dataset, chosen: &[usize], edge: usize) -> Result<(EncodedSplit, Vec<LeftOut>)> {
        let config = &self.config.encoder;
        let room = || Vec::with_capacity(chosen.len() * config.width);
        let mut values = [room(), room()];
        let (mut labels, mut pixels) = (Vec::new(), Vec::with_capacity(chosen.len() * 3 * edge * edge));
        let left_out = stream(split, chosen, &self.encoders[0], &self.preprocess, |images| {
            self.encode(images, &mut values)?;
            for image in images.pixels.chunks_exact(self.preprocess.values()) {
                average(image, config.image_size, edge, &mut pixels);
            }
            labels.extend_from_slice(&images.labels);
            Ok(())
        })?;
        let features = values.map(|values| Features { values, labels: labels.clone(), dim: config.width });
        Ok((EncodedSplit { features, pixels }, left_out))
    }

    fn encode(&self, images: &PreparedImages, values: &mut [Vec<f32>; 2]) -> Result<()> {
        let batch = pixels_to_tensor(&images.pixels, self.config.encoder.image_size, &self.preprocess)?;
        for (encoder, values) in self.encoders.iter().zip(values) {
            with_values(&encoder.features(&batch, self.config.evaluate.pooling)?, |f| {
                values.extend_from_slice(f);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Spread and effective rank of both encoders' features, which need no labels.  They are measured on a fixed random choice
    /// of held-out images (of training images where nothing is held out).
    ///
    /// # Errors
    /// No image is readable.
    pub fn spread(&self, data: &Data) -> Result<Unlabelled> {
        let split = data.test.as_ref().unwrap_or(&data.train);
        let chosen = stratified(&vec![None; split.len()], UNLABELLED, 1);
        let mut values = [Vec::new(), Vec::new()];
        let left_out = stream(split.as_ref(), &chosen, &self.encoders[0], &self.preprocess, |images| {
            self.encode(images, &mut values)
        })?;
        let dim = self.config.encoder.width;
        let images = values[0].len() / dim;
        ensure!(images > 0, "{}", nothing("held-out", split.as_ref(), &chosen, &left_out));
        let row = |(features, values): (&'static str, &Vec<f32>)| Spread {
            features,
            images,
            dim,
            feature_std: diagnostics::feature_std(values, dim),
            rank: diagnostics::effective_rank(values, dim),
        };
        Ok(Unlabelled { spread: ["macrl", "random"].into_iter().zip(&values).map(row).collect(), left_out })
    }
}

/// What can be measured without labels.
pub struct Unlabelled {
    /// For `macrl` and for `random`.
    pub spread: Vec<Spread>,
    /// PreparedImages that could not be read, and why.
    pub left_out: Vec<LeftOut>,
}

impl Extracted {
    /// Edge that the pixels of the baseline were averaged down to; `None` where they were not.
    pub fn averaged(&self, config: &Config) -> Option<usize> {
        (self.edge < config.encoder.image_size).then_some(self.edge)
    }

    /// The three sets of features in the order of the table; each is computed when the iterator reaches it.
    pub fn sets(self) -> impl Iterator<Item = (String, Split)> {
        let Extracted { train, test, edge, .. } = self;
        let labels = [&train, &test].map(|seen| seen.features[0].labels.clone());
        let pixels = [train.pixels, test.pixels];
        let encoded = train.features.into_iter().zip(test.features).map(|(train, test)| Split { train, test });
        let raw = std::iter::once_with(move || {
            let [train, test] = [0, 1].map(|i| Pixels { images: &pixels[i], labels: &labels[i] });
            pixel_features(train, test, edge)
        });
        ["macrl", "random", "pixels"].map(String::from).into_iter().zip(encoded.chain(raw))
    }
}

/// Says why a split cannot be used for evaluation.
fn nothing(what: &str, split: &dyn Dataset, chosen: &[usize], left_out: &[LeftOut]) -> String {
    match (chosen.is_empty(), left_out.first()) {
        (true, _) => format!("none of the {} {what} images has a label", split.len()),
        (_, Some((file, why))) => {
            format!("none of {} {what} images is readable; the first, {file}: {why}", chosen.len())
        }
        _ => format!("there is no {what} image"),
    }
}
