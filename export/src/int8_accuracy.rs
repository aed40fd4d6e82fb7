//! What 8 bits cost in accuracy: kNN and the probe on labelled images, with the features of both graphs.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use macrl_bundle::bundle::POOLED;
use macrl_bundle::decode::{DecodeLimits, decode_to};
use macrl_bundle::folder::{Arrangement, Assignment, LabelFrom, Split, Walk, arrange, walk};
use macrl_bundle::preprocess::Preprocess;
use macrl_bundle::probe::Probe;
use macrl_bundle::quantized::{Pair, QuantizedAccuracy};
use macrl_bundle::regular;
use safetensors::{Dtype, SafeTensors};

use crate::images::ParityImages;
use crate::outputs::{argmax, onnx_runtime};

/// Written by `macrl-train evaluate`.
pub const FILE: &str = "evaluation_images.safetensors";

/// Images of a folder that are taken at most: to look up, to classify.
const FROM_FOLDER: [usize; 2] = [5000, 5000];

/// Some images with their classes.
#[derive(Debug, Clone)]
pub struct Labelled {
    /// (n, 3, S, S).
    pub images: ParityImages,
    /// (n), the probe's numbers of the classes.
    pub labels: Vec<u32>,
}

/// Images on which the accuracies of two graphs are compared.
#[derive(Debug, Clone)]
pub struct EvaluationImages {
    /// Neighbours are looked up among these.
    pub lookup: Labelled,
    /// These are classified.
    pub queries: Labelled,
}

/// How neighbours vote.
#[derive(Debug, Clone, Copy)]
pub struct Votes {
    /// Number of neighbours that vote.
    pub k: usize,
    /// Of their weights, exp(cosine / temperature).
    pub temperature: f64,
}

impl EvaluationImages {
    /// `evaluation_images.safetensors` of a run: `lookup_pixels` and `query_pixels` u8 (n, S, S, 3) after the evaluation transform,
    /// `lookup_labels` and `query_labels` i64 (n).
    ///
    /// # Errors
    /// A damaged file, or images of another size.
    pub fn read(path: &Path, preprocess: &Preprocess) -> Result<Self> {
        let bytes =
            regular::read_up_to(path, regular::MAX_IMAGE).with_context(|| format!("cannot read {}", path.display()))?;
        let named = || format!("{} is not a whole file of labelled images", path.display());
        let file = SafeTensors::deserialize(&bytes).with_context(named)?;
        let part = |name: &str| labelled(&file, name, preprocess).with_context(named);
        Ok(Self { lookup: part("lookup")?, queries: part("query")? })
    }

    /// Images of a folder with class sub-folders (docs/data.md): its training split to look up and its test split to classify,
    /// or of undivided images every third to classify.  Classes are the probe's by name; without a probe, the folder's.
    ///
    /// # Errors
    /// A folder that cannot be listed, or without labelled and readable images for both.
    pub fn from_folder(folder: &Path, preprocess: &Preprocess, probe: Option<&Probe>) -> Result<Self> {
        let found = walk(folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let layout = arrange(&found.images, LabelFrom::First);
        let number = |class: u32| match probe {
            Some(probe) => probe.labels.iter().position(|l| Some(l) == layout.classes.get(class as usize)),
            None => Some(class as usize),
        };
        let known: Vec<(usize, u32)> = (0..layout.assignments.len())
            .filter_map(|i| {
                Some((i, number(layout.assignments[i].class.filter(|_| !layout.assignments[i].excluded)?)? as u32))
            })
            .collect();
        let [lookup, queries] = parts(&layout, &known).map(|part| load(&found, &part, preprocess));
        let images = Self { lookup, queries };
        let (lookup, queries) = (images.lookup.labels.len(), images.queries.labels.len());
        ensure!(
            lookup > 0 && queries > 0,
            "{}: expected readable images in class sub-folders (of the bundle's classes, where it has a probe), found {lookup} \
             to look up and {queries} to classify",
            folder.display()
        );
        Ok(images)
    }

    /// What both graphs reach on these images.
    ///
    /// # Errors
    /// A graph that does not run.
    pub fn accuracy(&self, full: &Path, int8: &Path, votes: Votes, probe: Option<&Probe>) -> Result<QuantizedAccuracy> {
        let features = |graph: &Path| -> Result<[Vec<f32>; 2]> {
            let pooled = |part: &Labelled| onnx_runtime(graph, &part.images, &[POOLED]).map(|outputs| outputs.pooled);
            Ok([pooled(&self.lookup)?, pooled(&self.queries)?])
        };
        let both = [features(full)?, features(int8)?];
        let named = both.each_ref().map(|[lookup, queries]| self.neighbours(lookup, queries, votes));
        let linear = |probe: &Probe| {
            let classes = |queries: &[f32]| -> Vec<Option<u32>> {
                let features = queries.chunks_exact(probe.dim());
                features.map(|f| argmax(&probe.logits(f)).map(|class| class as u32)).collect()
            };
            let named = both.each_ref().map(|[_, queries]| classes(queries));
            self.pair(&named)
        };
        Ok(QuantizedAccuracy {
            lookup_images: self.lookup.labels.len(),
            query_images: self.queries.labels.len(),
            knn: self.pair(&named),
            linear: probe.map(linear),
        })
    }

    /// The class that neighbours vote for, of each query.
    fn neighbours(&self, lookup: &[f32], queries: &[f32], votes: Votes) -> Vec<Option<u32>> {
        let dim = lookup.len() / self.lookup.labels.len().max(1);
        let known = normalized(lookup, dim);
        let name = |query: &[f32]| {
            let cosine = |row: &[f32]| row.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
            let mut near: Vec<(f32, u32)> =
                known.chunks_exact(dim).map(cosine).zip(self.lookup.labels.iter().copied()).collect();
            let k = votes.k.clamp(1, near.len());
            near.select_nth_unstable_by(k - 1, |a, b| b.0.total_cmp(&a.0));
            let mut weights = std::collections::BTreeMap::<u32, f64>::new();
            for (cosine, label) in &near[..k] {
                *weights.entry(*label).or_default() += (f64::from(*cosine) / votes.temperature).exp();
            }
            weights.into_iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).map(|(label, _)| label)
        };
        normalized(queries, dim).chunks_exact(dim).map(name).collect()
    }

    fn pair(&self, [full, int8]: &[Vec<Option<u32>>; 2]) -> Pair {
        let count = self.queries.labels.len().max(1) as f64;
        let right =
            |named: &[Option<u32>]| named.iter().zip(&self.queries.labels).filter(|(n, l)| **n == Some(**l)).count();
        let same = full.iter().zip(int8).filter(|(a, b)| a == b).count();
        Pair { f32: right(full) as f64 / count, int8: right(int8) as f64 / count, agreement: same as f64 / count }
    }
}

fn labelled(file: &SafeTensors, name: &str, preprocess: &Preprocess) -> Result<Labelled> {
    let size = preprocess.image_size;
    let (pixels, labels) = (file.tensor(&format!("{name}_pixels"))?, file.tensor(&format!("{name}_labels"))?);
    let fits = matches!(pixels.shape(), &[n, h, w, 3] if n > 0 && h == size && w == size && labels.shape() == [n]);
    ensure!(
        fits && pixels.dtype() == Dtype::U8 && labels.dtype() == Dtype::I64,
        "expected {name}_pixels u8 (n, {size}, {size}, 3) and {name}_labels i64 (n), found {:?} and {:?}",
        pixels.shape(),
        labels.shape()
    );
    let (labels, _) = labels.data().as_chunks();
    let labels = labels.iter().map(|bytes| u32::try_from(i64::from_le_bytes(*bytes)).map_err(Into::into));
    Ok(Labelled { images: ParityImages::normalized(pixels.data(), preprocess), labels: labels.collect::<Result<_>>()? })
}

/// Numbers and classes of images to look up and of images to classify.
fn parts(layout: &Arrangement, known: &[(usize, u32)]) -> [Vec<(usize, u32)>; 2] {
    let of = |i: usize| -> &Assignment { &layout.assignments[i] };
    let [train, test]: [Vec<_>; 2] = [false, true].map(|test| {
        let belongs = |i: usize| matches!(of(i).split, Some(Split::Validation | Split::Test)) == test;
        known.iter().copied().filter(|(i, _)| belongs(*i)).collect()
    });
    let (lookup, queries) = match test.is_empty() {
        false => (train, test),
        true => {
            let third = |n: usize| n % 3 == 2;
            let numbered = || train.iter().copied().enumerate();
            let queries = numbered().filter(|(n, _)| third(*n)).map(|(_, image)| image).collect();
            (numbered().filter(|(n, _)| !third(*n)).map(|(_, image)| image).collect(), queries)
        }
    };
    [spread(&lookup, FROM_FOLDER[0]), spread(&queries, FROM_FOLDER[1])]
}

/// At most `count` of a list in the order of its classes' folders, evenly: as many of each class as its share.
fn spread(list: &[(usize, u32)], count: usize) -> Vec<(usize, u32)> {
    let count = count.min(list.len());
    (0..count).map(|i| list[i * list.len() / count]).collect()
}

/// Those that can be read.
fn load(found: &Walk, list: &[(usize, u32)], preprocess: &Preprocess) -> Labelled {
    let read = |(i, label): &(usize, u32)| {
        let bytes = regular::read_up_to(&found.images[*i].path, regular::MAX_IMAGE).ok()?;
        let image = decode_to(&bytes, &DecodeLimits::default(), preprocess.shortest()).ok()?;
        Some((preprocess.fit(&image).into_raw(), *label))
    };
    let (pixels, labels): (Vec<Vec<u8>>, Vec<u32>) = list.iter().filter_map(read).unzip();
    Labelled { images: ParityImages::normalized(&pixels.concat(), preprocess), labels }
}

/// Rows of length 1.
fn normalized(rows: &[f32], dim: usize) -> Vec<f32> {
    let one = |row: &[f32]| {
        let length = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        row.iter().map(|v| v / length).collect::<Vec<_>>()
    };
    rows.chunks_exact(dim.max(1)).flat_map(one).collect()
}
