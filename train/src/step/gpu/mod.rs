//! Steps on a GPU: the same method over the GPU's operators.
//!
//! Everything that a step changes lies on the device, and the batches are made there where the data set fits.  Steps are
//! queued one behind the other, the whole step is captured as a CUDA graph, and the numbers of several steps are fetched at
//! once.

mod batches;
mod state;
mod stepper;

pub use batches::{DeviceBatch, HostBatch, HostBatches};
pub use stepper::GpuStepper;
