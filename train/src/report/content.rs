//! The images and features that a report shows.

use image::RgbImage;

use crate::evaluate::Features;

/// One image in one branch.
#[derive(Debug, Clone)]
pub struct Reconstruction {
    /// The target of the decoder.
    pub input: RgbImage,
    /// The input of the encoder: augmented, removed patches in grey.
    pub corrupted: RgbImage,
    /// The prediction of the decoder.
    pub reconstructed: RgbImage,
}

/// A held-out image and its nearest neighbours.
#[derive(Debug, Clone)]
pub struct Neighbourhood {
    /// The image whose neighbours are shown.
    pub query: RgbImage,
    /// The class of the image, where it has one.
    pub label: Option<u32>,
    /// Its neighbours, nearest first.
    pub near: Vec<Neighbour>,
}

/// A neighbour of a query.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// The image itself.
    pub image: RgbImage,
    /// The class of the image, where it has one.
    pub label: Option<u32>,
    /// Cosine of its feature and the query's.
    pub similarity: f32,
}

/// What the report shows besides the text files of the run's folder; each part may be empty.
#[derive(Debug, Clone, Default)]
pub struct ReportContent {
    /// Images in the strong branch.
    pub strong: Vec<Reconstruction>,
    /// The same images in the weak branch.
    pub weak: Vec<Reconstruction>,
    /// Held-out images and their nearest neighbours.
    pub neighbours: Vec<Neighbourhood>,
    /// Description of the look-up set: `2000 training images`.
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
