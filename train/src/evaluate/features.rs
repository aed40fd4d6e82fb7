//! The input of evaluation: one row of numbers for each image, and its label.

use anyhow::{Result, bail, ensure};

/// Features of some images.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// (n, D), row-major; raw pooled features, neither centred nor normalised.
    pub values: Vec<f32>,
    /// (n), class numbers from 0.
    pub labels: Vec<u32>,
    /// D, the number of values of a feature.
    pub dim: usize,
}

impl Features {
    /// n, the number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// One more than the largest label.
    pub fn classes(&self) -> usize {
        self.labels.iter().max().map_or(0, |l| *l as usize + 1)
    }

    /// Feature (D) of image `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.dim..(i + 1) * self.dim]
    }

    /// The features of the images with these indices, in this order.
    pub fn select(&self, indices: &[usize]) -> Features {
        let mut values = Vec::with_capacity(indices.len() * self.dim);
        indices.iter().for_each(|&i| values.extend_from_slice(self.row(i)));
        Features { values, labels: indices.iter().map(|&i| self.labels[i]).collect(), dim: self.dim }
    }

    /// Whether the parts fit together and every value is finite; `what` is named in errors.
    ///
    /// # Errors
    /// No images, lengths that disagree, NaN or infinity.
    pub fn check(&self, what: &str) -> Result<()> {
        ensure!(self.dim > 0 && !self.is_empty(), "{what}: expected at least one image, found none");
        let (found, expected) = (self.values.len(), self.len() * self.dim);
        ensure!(found == expected, "{what}: expected {expected} values ({} x {}), found {found}", self.len(), self.dim);
        if let Some(i) = self.values.iter().position(|v| !v.is_finite()) {
            bail!("{what}: expected finite features, found {} at image {}", self.values[i], i / self.dim);
        }
        Ok(())
    }
}

/// Features of both sets by one extractor.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// The look-up set of kNN, and the training set of the probe.
    pub train: Features,
    /// The queries of kNN, and the test set of the probe.
    pub test: Features,
}

impl Split {
    /// Checks that both sets are valid and have features of the same width.
    ///
    /// # Errors
    /// One of the sets is invalid, or the widths differ.
    pub fn check(&self, name: &str) -> Result<()> {
        self.train.check(&format!("training features `{name}`"))?;
        self.test.check(&format!("test features `{name}`"))?;
        let (train, test) = (self.train.dim, self.test.dim);
        ensure!(train == test, "features `{name}`: expected test features {train} wide, found {test}");
        Ok(())
    }
}

/// Larger images are averaged down to this edge for the baseline of raw pixels.  Memory and time grow with the number of pixels,
/// and more pixels do not make photographs easier to compare.
pub const PIXEL_EDGE: usize = 32;
/// Bytes that the baseline's features may take.  Where there are very many images, they are averaged further, but not below
/// [`LEAST_EDGE`].
const PIXEL_BYTES: usize = 1 << 30;
const LEAST_EDGE: usize = 8;

/// Edge of the baseline's images: S itself up to [`PIXEL_EDGE`].
pub fn pixel_edge(size: usize, images: usize) -> usize {
    let bytes = |edge: usize| images.saturating_mul(3 * edge * edge * size_of::<f32>());
    let mut edge = size.min(PIXEL_EDGE);
    while size > PIXEL_EDGE && edge > LEAST_EDGE && bytes(edge) > PIXEL_BYTES {
        edge /= 2;
    }
    edge
}

/// Averages an image down: each pixel is the mean of those that it covers, weighted by the covered area.
///
/// # Shapes
/// `image` (S, S, 3) u8 -> appended to `out`: (E, E, 3) u8, E <= S.
pub fn average(image: &[u8], size: usize, edge: usize, out: &mut Vec<u8>) {
    if edge == size {
        return out.extend_from_slice(image);
    }
    // Columns first: (S, E, 3).
    let covers = |i: usize| cover(i, size, edge);
    let mut narrow = vec![0.0f32; size * edge * 3];
    for (row, narrow) in image.chunks_exact(size * 3).zip(narrow.chunks_exact_mut(edge * 3)) {
        for (i, to) in narrow.chunks_exact_mut(3).enumerate() {
            for (at, share) in covers(i) {
                (0..3).for_each(|channel| to[channel] += share * f32::from(row[3 * at + channel]));
            }
        }
    }
    let mut line = vec![0.0f32; edge * 3];
    for i in 0..edge {
        line.fill(0.0);
        for (at, share) in covers(i) {
            let row = &narrow[at * edge * 3..(at + 1) * edge * 3];
            line.iter_mut().zip(row).for_each(|(to, x)| *to += share * x);
        }
        out.extend(line.iter().map(|x| x.round() as u8));
    }
}

/// Source pixels under pixel `i` of `edge`, and their shares, which sum to 1.
fn cover(i: usize, size: usize, edge: usize) -> impl Iterator<Item = (usize, f32)> {
    let (start, end) = (i * size, (i + 1) * size); // in units of 1 / edge source pixels
    (start / edge..end.div_ceil(edge)).map(move |at| {
        let inside = end.min((at + 1) * edge) - start.max(at * edge);
        (at, inside as f32 / size as f32)
    })
}

/// One image set of `n` images of S x S pixels.
#[derive(Debug, Clone, Copy)]
pub struct Pixels<'a> {
    /// (n, S, S, 3), as the encoder's preprocessing fits them, before it normalises, averaged down to [`pixel_edge`].
    pub images: &'a [u8],
    /// (n): label of each image.
    pub labels: &'a [u32],
}

/// The baseline's features: the pixels themselves, in [0, 1].
///
/// Grey images count once and not three times, and pixels that are black in every image (padding) are left out:
/// neither changes a cosine or what a linear classifier can express.
pub fn pixel_features(train: Pixels, test: Pixels, image_size: usize) -> Split {
    let values = 3 * image_size * image_size;
    let grey = |set: Pixels| set.images.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]);
    let step = if grey(train) && grey(test) { 3 } else { 1 };
    let mut used = vec![false; values];
    for image in train.images.chunks_exact(values).chain(test.images.chunks_exact(values)) {
        used.iter_mut().zip(image).for_each(|(used, x)| *used |= *x != 0);
    }
    // Keep at least one value, even if every image is black.
    let kept: Vec<usize> = (0..values).step_by(step).filter(|&i| i == 0 || used[i]).collect();
    let features = |set: Pixels| {
        // Allocate once: a growing vector would take twice the memory.
        let mut features = Vec::with_capacity(set.labels.len() * kept.len());
        for image in set.images.chunks_exact(values) {
            features.extend(kept.iter().map(|&i| f32::from(image[i]) / 255.0));
        }
        Features { values: features, labels: set.labels.to_vec(), dim: kept.len() }
    };
    Split { train: features(train), test: features(test) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_pixels_count_once_and_padding_not_at_all() {
        let grey = [[0u8; 3], [51; 3], [0; 3], [255; 3]].concat();
        let split = pixel_features(Pixels { images: &grey, labels: &[0] }, Pixels { images: &grey, labels: &[1] }, 2);
        // The first value is always kept.
        assert_eq!((split.train.values.as_slice(), split.train.dim), (&[0.0, 0.2, 1.0][..], 3));

        let mut colour = grey.clone();
        colour[3] = 50;
        let split = pixel_features(Pixels { images: &grey, labels: &[0] }, Pixels { images: &colour, labels: &[1] }, 2);
        assert_eq!(split.train.dim, 7);
        assert_eq!(split.test.values[1], 50.0 / 255.0);
    }

    #[test]
    fn averages_cover_every_pixel_once() {
        let image: Vec<u8> = (0..75u32).map(|i| (i * 3 + (i / 3).pow(2) % 17) as u8).collect();
        let averaged = |size: usize, edge: usize, image: &[u8]| {
            let mut out = Vec::new();
            average(image, size, edge, &mut out);
            out
        };
        // Half of the middle row and column belongs to each side.
        let weights = [1.0, 1.0, 0.5, 0.0, 0.0];
        let mut expected = 0.0;
        for (y, wy) in weights.iter().enumerate() {
            for (x, wx) in weights.iter().enumerate() {
                expected += wy * wx * f64::from(image[3 * (5 * y + x)]) / 6.25;
            }
        }
        let small = averaged(5, 2, &image);
        assert_eq!((small.len(), f64::from(small[0])), (12, expected.round()));
        assert_eq!(averaged(5, 5, &image), image);
        assert_eq!(averaged(4, 2, &[10u8; 48]), [10; 12]);
        assert_eq!(averaged(4, 2, &(0..48).collect::<Vec<u8>>())[..3], [8, 9, 10]);
    }

    #[test]
    fn small_images_stay_and_large_sets_of_large_ones_shrink() {
        assert_eq!([8, 28, 32].map(|size| pixel_edge(size, usize::MAX / 2)), [8, 28, 32]);
        assert_eq!([60_000, 200_000, 1_300_000].map(|images| pixel_edge(224, images)), [32, 16, 8]);
        assert_eq!((pixel_edge(33, 400), pixel_edge(224, 10_000_000)), (32, 8));
    }

    #[test]
    fn faults_are_named() {
        let features = |values: &[f32], labels: &[u32], dim| {
            let features = Features { values: values.to_vec(), labels: labels.to_vec(), dim };
            features.check("x").unwrap_err().to_string()
        };
        assert_eq!(features(&[0.0; 5], &[0, 1, 2], 2), "x: expected 6 values (3 x 2), found 5");
        assert_eq!(
            features(&[0.0, 1.0, f32::NAN, 0.0], &[0, 1], 2),
            "x: expected finite features, found NaN at image 1"
        );
        assert_eq!(features(&[], &[], 2), "x: expected at least one image, found none");
    }
}
