//! What a training step takes and gives, whichever device computes it.

use anyhow::Result;

use crate::gradients::Norms;
use crate::losses::TermNumbers;
use crate::schedule::Schedule;
use crate::state::State;

/// What one optimiser step measured.
///
/// With `train.accumulate` above 1 every loss is the mean over the batch's parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Sum of the weighted terms.
    pub loss: f64,
    /// The numbers of each term that has a weight.
    pub terms: Vec<TermNumbers>,
    /// Gradient norms before clipping.
    pub norms: Norms,
    /// Names of the parameters that no gradient reached.
    pub unreached: Vec<String>,
}

impl Measured {
    /// Whether loss and gradient are finite.  A step for which they are not changes nothing, on every device.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.norms.total.is_finite()
    }

    /// A number of one of the terms by its key in metrics.jsonl.
    pub fn get(&self, key: &str) -> Option<f32> {
        self.terms.iter().find_map(|term| term.get(key))
    }
}

/// A finished step of pretraining or fine-tuning.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Which step, counted from 0.
    pub step: u64,
    /// The losses and norms that it measured.
    pub measured: Measured,
    /// Numbers of the images in its batch.
    pub images: Vec<u32>,
    /// How long it took, waiting for the batch included.
    pub seconds: f64,
    /// Share of that time spent waiting for the batch.
    pub waiting: f64,
}

/// Makes the steps of pretraining on one device, in order, each with its batch.
pub trait Stepper {
    /// Whole batches in an epoch.
    fn steps_per_epoch(&self) -> u64;

    /// Makes (on a GPU: queues) the next step, and gives the steps that have finished by now.  A step that is not finite is
    /// the last one given; the state is then the one before it.
    ///
    /// # Errors
    /// Unreadable data, or a failure of the device.
    fn advance(&mut self, state: &mut State, schedule: &Schedule) -> Result<Vec<Finished>>;

    /// Waits for all queued steps, brings the state up to date for whoever saves it, and gives the steps still due.
    ///
    /// # Errors
    /// A failure of the device.
    fn settle(&mut self, state: &mut State) -> Result<Vec<Finished>>;

    /// Whether steps are queued ahead of the host: looking at the state then means waiting for them.
    fn runs_ahead(&self) -> bool;

    /// Whether a step runs as one captured CUDA graph by now.
    fn is_captured(&self) -> bool;

    /// Images that turned out to be unreadable while training, and why.
    fn skipped(&self) -> Vec<(String, String)>;
}
