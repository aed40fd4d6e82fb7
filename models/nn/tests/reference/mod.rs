//! Inputs from a formula that PyTorch computes as well, and the comparison with its numbers; also for training's operators.
//!
//! ```python
//! def wave(n, phase, scale=1.0): return scale * torch.sin(torch.arange(n) * 0.7 + phase)
//! ```

use candle_core::{Device, Tensor, Var};

pub(crate) fn wave(n: usize, phase: f64, scale: f64) -> Vec<f32> {
    (0..n).map(|i| (scale * (i as f64 * 0.7 + phase).sin()) as f32).collect()
}

pub(crate) fn var(values: Vec<f32>, shape: &[usize]) -> Var {
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

pub(crate) fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// `tolerance` is relative for values above 1, absolute below.
#[track_caller]
pub(crate) fn close(got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(*g) - e).abs() <= tolerance * e.abs().max(1.0), "value {i}: {g}, expected {e}");
    }
}
