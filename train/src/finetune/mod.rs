//! Fine-tuning: the whole encoder, with a linear head, trained on the labels.
//!
//! AdamW with layer-wise decay of the learning rate, warm-up and half a cosine, the weak view (crop and flip) without a
//! mask; label smoothing and mixup where the configuration asks for them.  The same network from random weights is trained
//! with the same budget for comparison.

pub mod files;
pub mod labelled;
pub mod learner;
pub mod loss;
pub mod model;
pub mod result;
pub mod state;
pub mod target;
pub mod training;

#[cfg(test)]
mod tests;
