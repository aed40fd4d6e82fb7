//! The targets of the classifier: one class for each image, smoothed and mixed where the configuration asks for it.

use crate::views::View;
use crate::views::random::Philox;

/// Labels as rows that sum to 1: `smoothing / C` everywhere, the rest on the label (arXiv 1512.00567, section 7).
///
/// # Shapes
/// `labels` (B), the result (B, C).
pub fn smooth(labels: &[u32], classes: usize, smoothing: f32) -> Vec<f32> {
    let mut targets = vec![smoothing / classes as f32; labels.len() * classes];
    for (row, label) in targets.chunks_exact_mut(classes).zip(labels) {
        row[*label as usize] += 1.0 - smoothing;
    }
    targets
}

/// Mixes each image's row with that of the image at the other end of the batch: `share` of its own, the rest of the
/// other's (mixup, arXiv 1710.09412; paired as timm does).
///
/// # Shapes
/// `rows` (B, width), changed in place.
pub fn mix(rows: &mut [f32], width: usize, share: f32) {
    let count = rows.len() / width;
    for i in 0..count / 2 {
        let (front, back) = rows.split_at_mut((count - 1 - i) * width);
        for (a, b) in front[i * width..][..width].iter_mut().zip(&mut back[..width]) {
            (*a, *b) = (share * *a + (1.0 - share) * *b, share * *b + (1.0 - share) * *a);
        }
    }
}

/// The same for the pixels of a view of `batch` images.
pub fn mix_view(view: &mut View, batch: usize, share: f32) {
    let width = view.patches.len() / batch.max(1);
    mix(&mut view.patches, width, share);
}

/// A draw from Beta(alpha, alpha), 0 < alpha <= 1 (Jöhnk 1964): how much an image keeps of itself.
pub fn beta(alpha: f64, random: &mut Philox) -> f64 {
    loop {
        let (x, y) = (random.unit().powf(1.0 / alpha), random.unit().powf(1.0 / alpha));
        if x + y <= 1.0 && x + y > 0.0 {
            return x / (x + y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::random::Stream;

    #[test]
    fn rows_are_smoothed_and_mixed() {
        assert_eq!(smooth(&[1, 0], 2, 0.0), [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(smooth(&[1], 4, 0.2), [0.05, 0.85, 0.05, 0.05]);
        let mut rows = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        mix(&mut rows, 2, 0.75);
        // 0.75 x own + 0.25 x the other's; the middle one is its own partner.
        assert_eq!(rows, [2.0, 3.0, 3.0, 4.0, 4.0, 5.0]);
    }

    #[test]
    fn shares_are_beta_distributed() {
        for (alpha, variance) in [(1.0, 1.0 / 12.0), (0.2, 1.0 / (4.0 * 1.4))] {
            let mut random = Philox::new(1, 0, 0, Stream::Mix);
            let draws: Vec<f64> = (0..20_000).map(|_| beta(alpha, &mut random)).collect();
            let mean = draws.iter().sum::<f64>() / 2e4;
            let spread = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 2e4;
            // Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); standard errors below 0.003.
            assert!((mean - 0.5).abs() < 0.015 && (spread - variance).abs() < 0.01, "{alpha}: {mean} {spread}");
        }
    }
}
