//! Which patches a view keeps.

use super::random::Philox;

/// Draws which of `patches` are kept, each set of `kept.len()` of them as likely, and lists them in ascending order.
///
/// Convention elsewhere: mask 1 = removed; here the kept ones are named, since only they are encoded.
pub fn draw(patches: usize, kept: &mut [u32], order: &mut Vec<u32>, random: &mut Philox) {
    order.clear();
    order.extend(0..patches as u32);
    // The first steps of a Fisher-Yates shuffle.
    for i in 0..kept.len() {
        let j = i + random.below((patches - i) as u32) as usize;
        order.swap(i, j);
    }
    kept.copy_from_slice(&order[..kept.len()]);
    kept.sort_unstable();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::random::Stream;

    #[test]
    fn kept_patches_ascend_and_are_spread_evenly() {
        let (mut counts, mut order) = ([0; 16], Vec::new());
        for index in 0..4000 {
            let mut kept = [0; 4];
            draw(16, &mut kept, &mut order, &mut Philox::new(3, 0, index, Stream::Weak));
            assert!(kept.windows(2).all(|w| w[0] < w[1]), "{kept:?}");
            kept.iter().for_each(|k| counts[*k as usize] += 1);
        }
        // 1000 expected each, standard deviation sqrt(4000 * 1/4 * 3/4) = 27.
        assert!(counts.iter().all(|c| (880..1120).contains(c)), "{counts:?}");
    }

    #[test]
    fn all_can_be_kept() {
        let mut kept = [9; 3];
        draw(3, &mut kept, &mut Vec::new(), &mut Philox::new(3, 0, 0, Stream::Weak));
        assert_eq!(kept, [0, 1, 2]);
    }
}
