//! The loss of fine-tuning: cross-entropy with soft targets.

use candle_core::{D, Result, Tensor};

/// Mean over the batch of `-sum_c target_c log softmax(logits)_c`; a scalar.
///
/// # Shapes
/// `logits` and `targets` (B, C); rows of `targets` sum to 1.
///
/// # Errors
/// Shapes that do not fit.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let batch = logits.dim(0)?;
    // Subtracting the largest logit prevents overflow and does not change the result.
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let entropy = (shifted.broadcast_sub(&log_sum)? * targets)?.sum_all()?;
    entropy * (-1.0 / batch as f64)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// ```python
    /// logits = torch.tensor([[2.0, -1.0, 0.5, 0.0], [0.1, 0.2, -0.3, 3.0], [100.0, -100.0, 0.0, 1.0]], requires_grad=True)
    /// F.cross_entropy(logits, torch.tensor([0, 1, 3]), label_smoothing=0.1).backward()          # smoothed labels
    /// mixed = 0.3 * F.one_hot(torch.tensor([0, 1, 3]), 4) + 0.7 * F.one_hot(torch.tensor([3, 1, 0]), 4)
    /// F.cross_entropy(logits, mixed.float()).backward()                                         # mixed labels
    /// ```
    #[test]
    fn value_and_gradient_are_pytorchs() {
        let values = [[2.0f32, -1.0, 0.5, 0.0], [0.1, 0.2, -0.3, 3.0], [100.0, -100.0, 0.0, 1.0]];
        let smoothed = crate::finetune::target::smooth(&[0, 1, 3], 4, 0.1);
        let mut mixed = crate::finetune::target::smooth(&[0, 1, 3], 4, 0.0);
        crate::finetune::target::mix(&mut mixed, 4, 0.3);
        for (targets, loss, gradient) in [(smoothed, SMOOTHED_LOSS, SMOOTHED), (mixed, MIXED_LOSS, MIXED)] {
            let logits = Var::new(&values, &Device::Cpu).unwrap();
            let targets = Tensor::from_vec(targets, (3, 4), &Device::Cpu).unwrap();
            let found = cross_entropy(logits.as_tensor(), &targets).unwrap();
            assert!((found.to_scalar::<f32>().unwrap() - loss).abs() < 1e-5 * loss, "{found}");
            let found =
                found.backward().unwrap().get(&logits).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let largest = found.iter().zip(gradient).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(largest < 1e-6, "{largest}: {found:?}");
        }
    }

    const SMOOTHED_LOSS: f32 = 34.155_655;
    #[rustfmt::skip]
    const SMOOTHED: [f32; 12] = [
        -0.07163338, 0.00345126, 0.04448156, 0.02370052, 0.00757784, -0.29074875, 0.00233224, 0.28083864,
        0.325, -0.00833333, -0.00833333, -0.3083333,
    ];
    const MIXED_LOSS: f32 = 11.461_491;
    #[rustfmt::skip]
    const MIXED: [f32; 12] = [
        0.13669996, 0.0117846, 0.0528149, -0.20129947, 0.01591117, -0.31574878, 0.01066558, 0.28917202,
        0.10000001, 0.0, 0.0, -0.10000001,
    ];
}
