//! Each transform against torchvision 0.29's, on given parameters.
//!
//! ```python
//! from torchvision.transforms.v2 import functional as F
//! def picture(h, w):
//!     y, x, c = torch.meshgrid(torch.arange(h), torch.arange(w), torch.arange(3), indexing="ij")
//!     return ((37*x + 91*y + 53*c + 11*x*y + 7*x*x*(c+1)) % 256).permute(2, 0, 1) / 255
//! p, q = picture(10, 12), picture(4, 4)
//! ```

// A reference value happens to begin like log10(e).
#![allow(clippy::approx_constant)]

use image::RgbImage;

use super::blur;
use super::color::{adjust, gray, solarize};
use super::draw::{Adjust, Crop, Draws};
use super::geometry::{Scratch, resized_crop};

/// A sixteenth of the grey level that is asked for: the order of float additions is all that may differ.
const TOLERANCE: f32 = 1.0 / 255.0 / 16.0;

fn picture(height: u32, width: u32) -> RgbImage {
    let value = |x: u32, y: u32, c: u32| ((37 * x + 91 * y + 53 * c + 11 * x * y + 7 * x * x * (c + 1)) % 256) as u8;
    RgbImage::from_fn(width, height, |x, y| image::Rgb([value(x, y, 0), value(x, y, 1), value(x, y, 2)]))
}

/// `picture(4, 4)` as planes.
fn small() -> Vec<f32> {
    let image = picture(4, 4);
    (0..3).flat_map(|c| image.pixels().map(move |p| f32::from(p[c]) / 255.0).collect::<Vec<_>>()).collect()
}

fn resized(crop: Crop, flip: bool) -> Vec<f32> {
    let mut planes = vec![0.0; 48];
    resized_crop(&picture(10, 12), crop, flip, 4, &mut Scratch::default(), &mut planes);
    planes
}

fn adjusted(step: Adjust) -> Vec<f32> {
    let mut planes = small();
    adjust(&mut planes, step);
    planes
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= TOLERANCE, "largest difference {worst}\nfound {found:?}");
}

/// ```python
/// F.resized_crop(p, 1, 2, 7, 9, [4, 4], antialias=True)
/// ```
#[test]
fn reducing_crop() {
    assert_close(&resized(Crop { top: 1, left: 2, height: 7, width: 9 }, false), &SHRUNK);
}

/// ```python
/// F.horizontal_flip(F.resized_crop(p, 2, 3, 3, 2, [4, 4], antialias=True))
/// ```
#[test]
fn enlarging_crop_mirrored() {
    assert_close(&resized(Crop { top: 2, left: 3, height: 3, width: 2 }, true), &GROWN);
}

/// ```python
/// F.adjust_brightness(q, 1.3)
/// ```
#[test]
fn brightness() {
    assert_close(&adjusted(Adjust::Brightness(1.3)), &BRIGHTER);
}

/// ```python
/// F.adjust_contrast(q, 0.6)
/// ```
#[test]
fn contrast() {
    assert_close(&adjusted(Adjust::Contrast(0.6)), &FLATTER);
}

/// ```python
/// F.adjust_saturation(q, 1.4)
/// ```
#[test]
fn saturation() {
    assert_close(&adjusted(Adjust::Saturation(1.4)), &SATURATED);
}

/// ```python
/// F.adjust_hue(q, 0.1)
/// ```
#[test]
fn hue_up() {
    assert_close(&adjusted(Adjust::Hue(0.1)), &HUE_UP);
}

/// ```python
/// F.adjust_hue(q, -0.23)
/// ```
#[test]
fn hue_down() {
    assert_close(&adjusted(Adjust::Hue(-0.23)), &HUE_DOWN);
}

/// ```python
/// F.rgb_to_grayscale(q, 3)
/// ```
#[test]
fn grayscale() {
    let mut planes = small();
    gray(&mut planes);
    assert_close(&planes, &GRAY);
}

/// ```python
/// F.solarize(q, 0.5)
/// ```
#[test]
fn solarizing() {
    let mut planes = small();
    solarize(&mut planes);
    assert_close(&planes, &SOLARIZED);
}

/// ```python
/// F.gaussian_blur(q, [5, 5], [0.9, 0.9])
/// ```
#[test]
fn gaussian_blur() {
    let mut planes = small();
    blur::gaussian(&mut planes, 4, 0.9, 2, &mut blur::Scratch::default());
    assert_close(&planes, &BLURRED);
}

/// ```python
/// x = F.adjust_hue(F.resized_crop(p, 1, 2, 7, 9, [4, 4], antialias=True), 0.1)
/// x = F.adjust_saturation(F.adjust_brightness(F.adjust_contrast(x, 1.3), 0.8), 0.7)
/// F.solarize(F.rgb_to_grayscale(x, 3), 0.5)
/// ```
#[test]
fn all_steps_in_order() {
    let crop = Crop { top: 1, left: 2, height: 7, width: 9 };
    let mut planes = resized(crop, false);
    let steps = vec![Adjust::Hue(0.1), Adjust::Contrast(1.3), Adjust::Brightness(0.8), Adjust::Saturation(0.7)];
    let draws = Draws { crop, flip: false, adjust: steps, gray: true, blur: None, solarize: true };
    super::corrupt(&mut planes, 4, &draws, &mut blur::Scratch::default());
    assert_close(&planes, &CHAIN);
}

#[rustfmt::skip]
const SHRUNK: [f32; 48] = [
    0.4500, 0.5081, 0.3464, 0.4811, 0.4103, 0.3907, 0.4571, 0.4697, 0.3679, 0.5041, 0.5820, 0.3983, 0.3356,
    0.4825, 0.5493, 0.7165, 0.3801, 0.5292, 0.4639, 0.6212, 0.3479, 0.4206, 0.6457, 0.5014, 0.4993, 0.4115,
    0.4063, 0.4633, 0.4789, 0.4895, 0.5176, 0.4578, 0.4905, 0.5840, 0.4648, 0.5468, 0.4701, 0.5523, 0.4768,
    0.5320, 0.4276, 0.4492, 0.4343, 0.4641, 0.6016, 0.5642, 0.4042, 0.6061,
];

#[rustfmt::skip]
const GROWN: [f32; 48] = [
    0.0706, 0.2157, 0.5059, 0.6510, 0.4015, 0.3830, 0.3460, 0.3275, 0.4221, 0.3955, 0.3423, 0.3157, 0.1255,
    0.2490, 0.4961, 0.6196, 0.7176, 0.5637, 0.2559, 0.1020, 0.4211, 0.4173, 0.4097, 0.4059, 0.4417, 0.4298,
    0.4060, 0.3941, 0.7725, 0.5971, 0.2461, 0.0706, 0.3608, 0.4098, 0.5078, 0.5569, 0.6917, 0.5771, 0.3479,
    0.2333, 0.7123, 0.5896, 0.3442, 0.2216, 0.4157, 0.4431, 0.4980, 0.5255,
];

#[rustfmt::skip]
const BRIGHTER: [f32; 48] = [
    0.0000, 0.2243, 0.5200, 0.8871, 0.4639, 0.7443, 1.0000, 0.2141, 0.9278, 1.0000, 0.3671, 0.8463, 0.0867,
    0.4792, 0.9431, 0.1733, 0.2702, 0.5302, 0.9329, 0.1733, 0.7341, 1.0000, 0.2039, 0.8055, 1.0000, 0.2651,
    0.7800, 0.1325, 0.3569, 0.7851, 0.0510, 0.7647, 0.5404, 0.8361, 0.0408, 0.7647, 1.0000, 0.0510, 0.6169,
    0.0918, 0.1631, 0.5710, 1.0000, 0.7239, 0.6271, 1.0000, 0.4639, 0.0510,
];

#[rustfmt::skip]
const FLATTER: [f32; 48] = [
    0.1744, 0.2780, 0.4144, 0.5838, 0.3886, 0.5180, 0.6803, 0.2733, 0.6027, 0.7580, 0.3438, 0.5650, 0.2144,
    0.3956, 0.6097, 0.2544, 0.2991, 0.4191, 0.6050, 0.2544, 0.5133, 0.6591, 0.2686, 0.5462, 0.7274, 0.2968,
    0.5344, 0.2356, 0.3391, 0.5368, 0.1980, 0.5274, 0.4238, 0.5603, 0.1933, 0.5274, 0.6380, 0.1980, 0.4591,
    0.2168, 0.2497, 0.4380, 0.7250, 0.5086, 0.4638, 0.6780, 0.3886, 0.1980,
];

#[rustfmt::skip]
const SATURATED: [f32; 48] = [
    0.0000, 0.0959, 0.3422, 0.8156, 0.2891, 0.5416, 1.0000, 0.0622, 0.6918, 1.0000, 0.1788, 0.7842, 0.0000,
    0.2919, 0.9035, 0.0308, 0.2232, 0.4253, 0.7869, 0.0470, 0.5801, 0.8711, 0.0603, 0.6991, 0.9828, 0.1013,
    0.6235, 0.0156, 0.2899, 0.6213, 0.0000, 0.6677, 0.5142, 0.7547, 0.0000, 0.6838, 0.8711, 0.0000, 0.5050,
    0.0000, 0.0000, 0.4307, 1.0000, 0.6524, 0.5809, 0.9508, 0.3874, 0.0000,
];

#[rustfmt::skip]
const HUE_UP: [f32; 48] = [
    0.0416, 0.2196, 0.0314, 0.6824, 0.3984, 0.1114, 0.8431, 0.0706, 0.2361, 0.9725, 0.3459, 0.6510, 0.1082,
    0.4157, 0.7255, 0.0392, 0.0000, 0.1725, 0.7176, 0.1333, 0.3569, 0.8078, 0.2510, 0.6196, 0.9216, 0.4298,
    0.2824, 0.1020, 0.0667, 0.3686, 0.1333, 0.5882, 0.4157, 0.6431, 0.0745, 0.2588, 0.7725, 0.0392, 0.1569,
    0.3059, 0.1255, 0.2039, 0.9176, 0.2275, 0.4824, 0.8392, 0.0392, 0.2745,
];

#[rustfmt::skip]
const HUE_DOWN: [f32; 48] = [
    0.0000, 0.1725, 0.7176, 0.1333, 0.3569, 0.8078, 0.2647, 0.6196, 0.9216, 0.4452, 0.2824, 0.1020, 0.0667,
    0.3686, 0.1471, 0.5882, 0.4157, 0.6431, 0.0882, 0.2478, 0.7725, 0.0392, 0.1569, 0.3169, 0.1255, 0.2039,
    0.9176, 0.2165, 0.4824, 0.8392, 0.0392, 0.2855, 0.0499, 0.2290, 0.0314, 0.6824, 0.4067, 0.0960, 0.8431,
    0.0706, 0.2202, 0.9725, 0.3586, 0.6510, 0.1165, 0.4251, 0.7255, 0.0392,
];

#[rustfmt::skip]
const GRAY: [f32; 48] = [
    0.1694, 0.3643, 0.5444, 0.3493, 0.5262, 0.6498, 0.3982, 0.4210, 0.7686, 0.4605, 0.5412, 0.3179, 0.2361,
    0.5604, 0.2806, 0.3896, 0.1694, 0.3643, 0.5444, 0.3493, 0.5262, 0.6498, 0.3982, 0.4210, 0.7686, 0.4605,
    0.5412, 0.3179, 0.2361, 0.5604, 0.2806, 0.3896, 0.1694, 0.3643, 0.5444, 0.3493, 0.5262, 0.6498, 0.3982,
    0.4210, 0.7686, 0.4605, 0.5412, 0.3179, 0.2361, 0.5604, 0.2806, 0.3896,
];

#[rustfmt::skip]
const SOLARIZED: [f32; 48] = [
    0.0000, 0.1725, 0.4000, 0.3176, 0.3569, 0.4275, 0.1569, 0.1647, 0.2863, 0.0275, 0.2824, 0.3490, 0.0667,
    0.3686, 0.2745, 0.1333, 0.2078, 0.4078, 0.2824, 0.1333, 0.4353, 0.1922, 0.1569, 0.3804, 0.0784, 0.2039,
    0.4000, 0.1020, 0.2745, 0.3961, 0.0392, 0.4118, 0.4157, 0.3569, 0.0314, 0.4118, 0.2275, 0.0392, 0.4745,
    0.0706, 0.1255, 0.4392, 0.0824, 0.4431, 0.4824, 0.1608, 0.3569, 0.0392,
];

#[rustfmt::skip]
const BLURRED: [f32; 48] = [
    0.3494, 0.4200, 0.5052, 0.5137, 0.4700, 0.5142, 0.5340, 0.5093, 0.5748, 0.5876, 0.5384, 0.4890, 0.5401,
    0.5605, 0.5206, 0.4719, 0.5061, 0.5050, 0.4561, 0.4171, 0.5443, 0.5113, 0.4354, 0.3988, 0.5353, 0.4754,
    0.3911, 0.3616, 0.4989, 0.4413, 0.3641, 0.3433, 0.4369, 0.3859, 0.3333, 0.3247, 0.4159, 0.3991, 0.3953,
    0.3870, 0.4307, 0.4725, 0.5080, 0.4835, 0.4776, 0.5263, 0.5292, 0.4778,
];

#[rustfmt::skip]
const CHAIN: [f32; 48] = [
    0.3263, 0.4317, 0.2893, 0.4831, 0.2993, 0.3330, 0.4929, 0.3843, 0.3606, 0.3543, 0.4111, 0.3243, 0.2723,
    0.4111, 0.4235, 0.4474, 0.3263, 0.4317, 0.2893, 0.4831, 0.2993, 0.3330, 0.4929, 0.3843, 0.3606, 0.3543,
    0.4111, 0.3243, 0.2723, 0.4111, 0.4235, 0.4474, 0.3263, 0.4317, 0.2893, 0.4831, 0.2993, 0.3330, 0.4929,
    0.3843, 0.3606, 0.3543, 0.4111, 0.3243, 0.2723, 0.4111, 0.4235, 0.4474,
];
