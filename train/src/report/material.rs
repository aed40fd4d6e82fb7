//! What the report shows beside what the run's folder holds as text.

use image::RgbImage;

use crate::evaluate::Features;

/// One image through one branch.
#[derive(Debug, Clone)]
pub struct Reconstruction {
    /// What the decoder is to predict.
    pub input: RgbImage,
    /// What the encoder sees: augmented, removed patches greyed out.
    pub corrupted: RgbImage,
    /// What the decoder predicts.
    pub reconstructed: RgbImage,
}

/// A held-out image and those that are nearest to it.
#[derive(Debug, Clone)]
pub struct Neighbourhood {
    /// What is looked for.
    pub query: RgbImage,
    /// Its class, where it has one.
    pub label: Option<u32>,
    /// Nearest first.
    pub near: Vec<Near>,
}

/// One neighbour.
#[derive(Debug, Clone)]
pub struct Near {
    /// The image.
    pub image: RgbImage,
    /// Its class, where it has one.
    pub label: Option<u32>,
    /// Cosine.
    pub similarity: f32,
}

/// What the report shows beside what the run's folder holds; everything may be empty.
#[derive(Debug, Clone, Default)]
pub struct Material {
    /// Images through the strong branch.
    pub strong: Vec<Reconstruction>,
    /// The same images through the weak branch.
    pub weak: Vec<Reconstruction>,
    /// Held-out images and their nearest in the gallery.
    pub neighbours: Vec<Neighbourhood>,
    /// What the gallery is: `2000 training images`.
    pub gallery: String,
    /// Features for the projection.
    pub projected: Option<Features>,
    /// Whether no image has a label.
    pub unlabelled: bool,
    /// Class names in label order; empty where there are none.
    pub labels: Vec<String>,
    /// Lines of the provenance: (`device`, `cpu`), (`commit`, `1a2b3c4`), ...
    pub provenance: Vec<(String, String)>,
}
