//! What evaluation works on: one row of numbers per image, and its label.

use anyhow::{Result, bail, ensure};

/// Features of some images.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// (n, D), row-major; raw pooled features, neither centred nor normalised.
    pub values: Vec<f32>,
    /// (n), class numbers from 0.
    pub labels: Vec<u32>,
    /// D.
    pub dim: usize,
}

impl Features {
    /// n, number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
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

    /// The images of these numbers, in this order.
    pub fn select(&self, indices: &[usize]) -> Features {
        Features {
            values: indices.iter().flat_map(|&i| self.row(i)).copied().collect(),
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
            dim: self.dim,
        }
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
    /// Looked up in, and fitted on.
    pub train: Features,
    /// Judged.
    pub test: Features,
}

impl Split {
    /// Whether both sets are sound and fit each other.
    ///
    /// # Errors
    /// What [`Features::check`] finds, or two different widths.
    pub fn check(&self, name: &str) -> Result<()> {
        self.train.check(&format!("training features `{name}`"))?;
        self.test.check(&format!("test features `{name}`"))?;
        let (train, test) = (self.train.dim, self.test.dim);
        ensure!(train == test, "features `{name}`: expected test features {train} wide, found {test}");
        Ok(())
    }
}

/// One image set of `n` images of S x S pixels.
#[derive(Debug, Clone, Copy)]
pub struct Pixels<'a> {
    /// (n, S, S, 3), as the encoder's preprocessing fits them, before it normalises.
    pub images: &'a [u8],
    /// (n).
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
    // At least one value, should every image be black.
    let kept: Vec<usize> = (0..values).step_by(step).filter(|&i| i == 0 || used[i]).collect();
    let features = |set: Pixels| Features {
        values: set
            .images
            .chunks_exact(values)
            .flat_map(|image| kept.iter().map(|&i| f32::from(image[i]) / 255.0))
            .collect(),
        labels: set.labels.to_vec(),
        dim: kept.len(),
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
        // The first is kept whatever it is.
        assert_eq!((split.train.values.as_slice(), split.train.dim), (&[0.0, 0.2, 1.0][..], 3));

        let mut colour = grey.clone();
        colour[3] = 50;
        let split = pixel_features(Pixels { images: &grey, labels: &[0] }, Pixels { images: &colour, labels: &[1] }, 2);
        assert_eq!(split.train.dim, 7);
        assert_eq!(split.test.values[1], 50.0 / 255.0);
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
