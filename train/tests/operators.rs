//! The losses and updates against PyTorch 2.15 (float64).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

#[path = "../../models/nn/tests/reference/mod.rs"]
mod reference;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use macrl_nn::ops::graph;
use macrl_train::ops::info_nce::{Keys, info_nce};
use macrl_train::ops::l1::masked_l1;
use macrl_train::ops::update::{AdamStep, adamw, moving_average, sum_of_squares};
use reference::{close, flat, var, wave};

/// `p = wave(24, 0.4) (2, 4, 3)`, `t = wave(18, 1.4) (2, 3, 3)`, `(p[:, 1:] - t).abs()[mask].mean()`,
/// mask = [[1, 0, 1], [0, 1, 1]].
#[test]
fn masked_l1_agrees_with_pytorch() {
    let p = var(wave(24, 0.4, 1.0), &[2, 4, 3]);
    let counts = Arc::new(vec![true, false, true, false, true, true]);
    let loss = masked_l1(&p, Arc::new(wave(18, 1.4, 1.0)), counts).unwrap();
    close(&[loss.to_scalar().unwrap()], &[0.981298377], 1e-6);
    let signs = [0, 0, 0, -1, -1, -1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, -1, -1];
    let gradients = (loss * 3.0).unwrap().backward().unwrap();
    close(&flat(gradients.get(&p).unwrap()), &signs.map(|s| 3.0 * f64::from(s) / 12.0), 1e-6);
}

fn unit_rows(values: Vec<f32>, width: usize) -> Vec<f32> {
    let rows = values.len() / width;
    flat(&graph::l2_normalize(&Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()).unwrap())
}

/// `F.cross_entropy(cat([q @ k.T, q @ bank.T], 1) / 0.2, arange(3))` with -inf where image and bank image agree (and,
/// in the second case, at the batch's other keys); q, k, bank = normalised wave(12, 0.2), wave(12, 1.2), wave(20, 2.2).
#[test]
fn info_nce_agrees_with_pytorch_and_no_key_meets_its_own_image() {
    let (q, k) = (unit_rows(wave(12, 0.2, 1.0), 4), unit_rows(wave(12, 1.2, 1.0), 4));
    let bank = unit_rows(wave(20, 2.2, 1.0), 4);
    let keys = |batch_negatives| Keys {
        positives: &k,
        images: &[7, 8, 9],
        bank: &bank,
        bank_images: &[1, 8, 2, 3, 9],
        width: 4,
        temperature: 0.2,
        batch_negatives,
    };
    let (contrast, gradient) = info_nce(&q, keys(true));
    close(&[contrast.loss], &[1.356593030], 1e-6);
    let expected = [
        -0.38508948,
        -0.04057238,
        0.32302653,
        0.53470103,
        0.90759916,
        0.72289329,
        0.19819941,
        -0.41971075,
        -0.92817147,
        -0.94663989,
        -0.51988878,
        0.15137415,
    ];
    close(&gradient, &expected, 2e-6);
    let (contrast, gradient) = info_nce(&q, keys(false));
    close(&[contrast.loss], &[1.076874005], 1e-6);
    let expected = [
        -0.19767000,
        -0.01569783,
        0.17365728,
        0.28133866,
        0.90429008,
        0.71785177,
        0.19379657,
        -0.42140420,
        -0.96179562,
        -0.96565859,
        -0.51535724,
        0.17732468,
    ];
    close(&gradient, &expected, 2e-6);
    // Moving a key of the query's own image cannot change the loss: it is no negative.
    let mut moved = bank.clone();
    moved[4..8].fill(0.0);
    moved[5] = 1.0;
    let only = |bank: &[f32]| info_nce(&q[4..8], Keys { positives: &k[4..8], images: &[8], bank, ..keys(true) }).0.loss;
    assert_eq!(only(&bank), only(&moved));
}

/// `torch.optim.AdamW([wave(5, 0.1)], lr=0.01, betas=(0.9, 0.95), weight_decay=0.05)`, gradients wave(5, step).
#[test]
fn adamw_agrees_with_pytorch() {
    let (mut p, mut m, mut v) = (wave(5, 0.1, 1.0), vec![0.0; 5], vec![0.0; 5]);
    for t in 0..3 {
        let step = AdamStep {
            lr: 0.01,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.05,
            corrections: [1.0 - 0.9f32.powi(t + 1), 1.0 - 0.95f32.powi(t + 1)],
            gradient_scale: 1.0,
        };
        adamw(&mut p, &wave(5, f64::from(t), 1.0), &mut m, &mut v, step);
    }
    close(&p, &[0.08385562, 0.68705700, 0.97012050, 0.79059586, 0.23879121], 1e-6);
}

#[test]
fn moving_average_and_norm() {
    let mut average = vec![1.0, 2.0];
    moving_average(&mut average, &[3.0, 6.0], 0.75);
    assert_eq!(average, [1.5, 3.0]);
    assert_eq!(sum_of_squares(&vec![2.0; 40_000]), 160_000.0);
    assert!(sum_of_squares(&[1.0, f32::NAN]).is_nan());
}
