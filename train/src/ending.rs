//! How training ended.

/// How pretraining or fine-tuning ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All epochs are done.
    Finished,
    /// Stopped on request after this many steps; a checkpoint is written.
    Interrupted(u64),
}
