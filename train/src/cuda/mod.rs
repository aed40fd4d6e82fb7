//! Training on a GPU: the same method over [`macrl_models::cuda`]'s operators, with everything that a step changes on the
//! device, the batches made there where the data set fits, and the whole step captured as a CUDA graph.

mod feed;
mod place;
mod step;

pub use feed::{Feed, Room};
pub use place::Placed;
pub use step::Trainer;
