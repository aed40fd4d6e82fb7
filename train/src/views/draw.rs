//! One view's parameters, drawn as torchvision draws them but from the sample's own counter-based stream.

use macrl_bundle::config::ViewConfig;

use super::random::Philox;

/// Rectangle of the image that is resized to the view, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// Index of the first row.
    pub top: usize,
    /// Index of the first column.
    pub left: usize,
    /// Number of rows.
    pub height: usize,
    /// Number of columns.
    pub width: usize,
}

/// One step of the colour jitter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Adjust {
    /// Pixels times a factor.
    Brightness(f32),
    /// Away from (factor > 1) or towards the mean grey of the whole view.
    Contrast(f32),
    /// Away from or towards each pixel's own grey.
    Saturation(f32),
    /// Hue rotated, in turns, [-0.5, 0.5].
    Hue(f32),
}

/// All random parameters of one view except its mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Draws {
    /// The rectangle that becomes the view.
    pub crop: Crop,
    /// Whether the view is mirrored left to right.
    pub flip: bool,
    /// Jitter steps in the order drawn; empty: none.
    pub adjust: Vec<Adjust>,
    /// Whether colours are replaced by grey.
    pub gray: bool,
    /// Standard deviation of the Gaussian blur in pixels.
    pub blur: Option<f32>,
    /// Whether pixels above one half are inverted.
    pub solarize: bool,
}

/// Range of the blur's standard deviation in pixels (SimCLR, arXiv 2002.05709, appendix A).
const BLUR_SIGMA: [f64; 2] = [0.1, 2.0];
/// Draws of a crop that fits before the largest central one is taken, as torchvision does.
const CROP_ATTEMPTS: usize = 10;

impl Draws {
    /// Draws the parameters for an image of `height` x `width` pixels.
    pub fn new(config: &ViewConfig, height: usize, width: usize, random: &mut Philox) -> Self {
        Draws {
            crop: crop(config, height, width, random),
            flip: random.chance(config.flip),
            adjust: if random.chance(config.jitter_probability) { adjust(config, random) } else { Vec::new() },
            gray: random.chance(config.grayscale),
            blur: random.chance(config.blur).then(|| random.range(BLUR_SIGMA[0], BLUR_SIGMA[1]) as f32),
            solarize: random.chance(config.solarize),
        }
    }

    /// Whether anything happens to the pixels after the geometry.
    pub fn photometric(&self) -> bool {
        !self.adjust.is_empty() || self.gray || self.blur.is_some() || self.solarize
    }
}

/// Draws a crop as `torchvision.transforms.v2.RandomResizedCrop.make_params` does.
fn crop(config: &ViewConfig, height: usize, width: usize, random: &mut Philox) -> Crop {
    let area = (height * width) as f64;
    let log_ratio = config.crop_ratio.map(f64::ln);
    for _ in 0..CROP_ATTEMPTS {
        let target = area * random.range(config.crop_scale[0], config.crop_scale[1]);
        let ratio = random.range(log_ratio[0], log_ratio[1]).exp();
        let w = (target * ratio).sqrt().round_ties_even() as usize;
        let h = (target / ratio).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = random.below((height - h + 1) as u32) as usize;
            let left = random.below((width - w + 1) as u32) as usize;
            return Crop { top, left, height: h, width: w };
        }
    }
    central(config, height, width)
}

/// The largest central rectangle within the allowed ratios.
fn central(config: &ViewConfig, height: usize, width: usize) -> Crop {
    let ratio = width as f64 / height as f64;
    let [low, high] = config.crop_ratio;
    let (h, w) = if ratio < low {
        ((width as f64 / low).round_ties_even() as usize, width)
    } else if ratio > high {
        (height, (height as f64 * high).round_ties_even() as usize)
    } else {
        (height, width)
    };
    let (h, w) = (h.clamp(1, height), w.clamp(1, width));
    Crop { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}

/// `torchvision.transforms.v2.ColorJitter.make_params`: order, then factors; strengths of 0 leave a step out.
fn adjust(config: &ViewConfig, random: &mut Philox) -> Vec<Adjust> {
    let order = random.permutation(4);
    let [brightness, contrast, saturation, hue] = config.jitter;
    let mut factor = |strength: f64| random.range((1.0 - strength).max(0.0), 1.0 + strength) as f32;
    let steps = [
        Adjust::Brightness(factor(brightness)),
        Adjust::Contrast(factor(contrast)),
        Adjust::Saturation(factor(saturation)),
        Adjust::Hue(random.range(-hue, hue) as f32),
    ];
    order.into_iter().map(|i| i as usize).filter(|i| config.jitter[*i] > 0.0).map(|i| steps[i]).collect()
}

#[cfg(test)]
mod tests {
    use macrl_bundle::config::Config;

    use super::*;
    use crate::views::random::Stream;

    #[test]
    fn crops_lie_inside_and_keep_scale_and_ratio() {
        let config = ViewConfig { crop_scale: [0.2, 0.6], ..Config::default().views.strong };
        let mut mean = 0.0;
        for index in 0..2000 {
            let mut random = Philox::new(1, 0, index, Stream::Strong);
            let c = crop(&config, 300, 400, &mut random);
            assert!(c.top + c.height <= 300 && c.left + c.width <= 400);
            let (area, ratio) = ((c.height * c.width) as f64 / 120_000.0, c.width as f64 / c.height as f64);
            assert!((0.195..0.605).contains(&area) && (0.74..1.35).contains(&ratio), "{c:?}");
            mean += area / 2000.0;
        }
        assert!((mean - 0.4).abs() < 0.01, "{mean}");
    }

    #[test]
    fn impossible_crops_fall_back_to_the_centre() {
        let config = ViewConfig { crop_scale: [1.0, 1.0], ..Config::default().views.strong };
        let mut random = Philox::new(1, 0, 0, Stream::Strong);
        // torchvision: ratio 10 > 4/3, so h = 10, w = round(10 * 4/3) = 13, left = (100 - 13) // 2.
        assert_eq!(crop(&config, 10, 100, &mut random), Crop { top: 0, left: 43, height: 10, width: 13 });
        assert_eq!(crop(&config, 100, 10, &mut random), Crop { top: 43, left: 0, height: 13, width: 10 });
        assert_eq!(crop(&config, 1, 1, &mut random), Crop { top: 0, left: 0, height: 1, width: 1 });
    }

    #[test]
    fn steps_of_no_strength_are_left_out() {
        let config = ViewConfig { jitter: [0.4, 0.0, 0.2, 0.0], ..Config::default().views.strong };
        for index in 0..50 {
            let steps = adjust(&config, &mut Philox::new(1, 0, index, Stream::Strong));
            assert_eq!(steps.len(), 2);
            for step in steps {
                match step {
                    Adjust::Brightness(f) => assert!((0.6..1.4).contains(&f)),
                    Adjust::Saturation(f) => assert!((0.8..1.2).contains(&f)),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
