//! Compares the fused operators with PyTorch 2.15 (float64), finite differences and a composition of Candle operators.
//!
//! Large results are compared by one weighted sum:
//!
//! ```python
//! def check(t): t = t.flatten(); return float((t * torch.cos(torch.arange(t.numel()) * 0.3)).sum())
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod reference;

use std::sync::Arc;

use candle_core::{D, Device, Result, Tensor};
use macrl_nn::ops::attention::Heads;
use macrl_nn::ops::block::Block;
use macrl_nn::ops::{activation, graph};
use macrl_nn::params::Parameter;
use macrl_nn::vit::positions;
use reference::{close, flat, var, wave};

fn check(values: &[f32]) -> f64 {
    values.iter().enumerate().map(|(i, v)| f64::from(*v) * (i as f64 * 0.3).cos()).sum()
}

/// sum(y * wave(., 0.5)): a scalar whose gradient has another value at each position.
fn objective(y: &Tensor) -> Result<Tensor> {
    let weights = Tensor::from_vec(wave(y.elem_count(), 0.5, 1.0), y.shape(), &Device::Cpu)?;
    (y * weights)?.sum_all()
}

fn block_at(tokens: usize, width: usize, heads: usize, hidden: usize) -> Block {
    Block { at: Heads { tokens, heads, width }, hidden }
}

/// Parameter i is wave(n, i, 0.3); the weights of the two norms are that plus 1.
fn block_parameters(block: &Block) -> Vec<f32> {
    let mut out = Vec::new();
    for (i, parameter) in block.layout().parameters().iter().enumerate() {
        let around = if i == 0 || i == 6 { 1.0 } else { 0.0 };
        out.extend(wave(parameter.range.len(), i as f64, 0.3).iter().map(|v| v + around));
    }
    out
}

/// `F.layer_norm(x, (D,), w, b, 1e-6)`, `F.linear`, `F.scaled_dot_product_attention` on
/// `qkv.reshape(B, T, 3, H, D // H).permute(2, 0, 3, 1, 4)`, `F.gelu`; objective `(y * wave(n, 0.5)).sum()`.
#[test]
fn block_agrees_with_pytorch() {
    // (B, T, D, H, hidden) -> check of y, of x.grad, and of each parameter's grad
    #[allow(clippy::type_complexity)]
    let cases: [([usize; 5], [f64; 14]); 4] = [
        (
            [2, 3, 8, 2, 32],
            [
                0.7872985, -3.753694, -4.696166, -8.901119, -0.996413, -4.052438, -4.27873, 0.5558369, 3.38482,
                5.696676, 0.1369131, 0.3133821, -4.222007, -0.2983446,
            ],
        ),
        (
            [1, 1, 6, 1, 24],
            [
                1.686859,
                2.333514,
                -0.01841224,
                -0.04865179,
                -0.01300664,
                0.3047924,
                0.2306947,
                2.386024,
                -0.1825706,
                -0.137763,
                0.336016,
                -0.2841083,
                0.1753445,
                2.360598,
            ],
        ),
        (
            [3, 17, 20, 5, 36],
            [
                27.59163, 0.5720427, -2.275601, 1.492849, 0.6474954, -1.641975, 354.5072, 2.146947, 1.384952,
                0.08416276, 9.141794, 0.1933616, 25.39076, 2.451163,
            ],
        ),
        (
            [1, 65, 48, 3, 192],
            [
                -1.157639, 3.337118, -5.983114, 0.6867131, 1.618321, -0.3908014, -223.0095, 0.5525573, 2.435323,
                -1.082372, -0.9048335, -0.1983009, 128.3781, 0.8047341,
            ],
        ),
    ];
    for ([b, t, d, h, hidden], expected) in cases {
        let block = block_at(t, d, h, hidden);
        let parameters = block_parameters(&block);
        let (x, p) = (var(wave(b * t * d, 0.1, 1.0), &[b, t, d]), var(parameters.clone(), &[parameters.len()]));
        let y = graph::block(block, &x, &p).unwrap();
        let gradients = objective(&y).unwrap().backward().unwrap();
        let mut got = vec![check(&flat(&y)) as f32, check(&flat(gradients.get(&x).unwrap())) as f32];
        let dp = flat(gradients.get(&p).unwrap());
        got.extend(block.layout().parameters().iter().map(|p| check(&dp[p.range.clone()]) as f32));
        close(&got, &expected, 2e-4);
    }
}

/// The same block from Candle's basic operations, with Candle's gradients.
fn plain_block(block: Block, x: &Tensor, flat: &Tensor) -> Result<Tensor> {
    let (b, t, d) = x.dims3()?;
    let h = block.at.heads;
    let layout = block.layout();
    let part = |p: &Parameter| flat.narrow(0, p.range.start, p.range.len())?.reshape(p.shape.as_slice());
    let p = layout.parameters().iter().map(part).collect::<Result<Vec<_>>>()?;
    let norm = |x: &Tensor, w: &Tensor, b: &Tensor| -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
        centred.broadcast_div(&deviation)?.broadcast_mul(w)?.broadcast_add(b)
    };
    let linear = |x: &Tensor, w: &Tensor, b: &Tensor| -> Result<Tensor> {
        let (rows, width) = (x.elem_count() / w.dim(1)?, w.dim(0)?);
        x.reshape((rows, w.dim(1)?))?.matmul(&w.t()?)?.broadcast_add(b)?.reshape((x.dim(0)?, x.dim(1)?, width))
    };
    let qkv = linear(&norm(x, &p[0], &p[1])?, &p[2], &p[3])?.reshape((b, t, 3, h, d / h))?;
    let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
    let scores = (part(0)?.matmul(&part(1)?.t()?.contiguous()?)? * (1.0 / ((d / h) as f64).sqrt()))?;
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
    let attended = weights.matmul(&part(2)?)?.transpose(1, 2)?.contiguous()?.reshape((b, t, d))?;
    let middle = (x + linear(&attended, &p[4], &p[5])?)?;
    let hidden = linear(&norm(&middle, &p[6], &p[7])?, &p[8], &p[9])?.gelu_erf()?;
    &middle + linear(&hidden, &p[10], &p[11])?
}

#[test]
fn block_agrees_with_the_plain_composition() {
    for [b, t, d, h, hidden] in [[2, 5, 12, 3, 48], [1, 1, 4, 1, 7], [2, 33, 40, 4, 100]] {
        let block = block_at(t, d, h, hidden);
        let parameters = block_parameters(&block);
        let (x, p) = (var(wave(b * t * d, 0.3, 1.0), &[b, t, d]), var(parameters.clone(), &[parameters.len()]));
        let (fused, plain) = (graph::block(block, &x, &p).unwrap(), plain_block(block, &x, &p).unwrap());
        let expected: Vec<f64> = flat(&plain).into_iter().map(f64::from).collect();
        close(&flat(&fused), &expected, 2e-5);
        let (fused, plain) = (objective(&fused).unwrap(), objective(&plain).unwrap());
        let (fused, plain) = (fused.backward().unwrap(), plain.backward().unwrap());
        for of in [&x, &p] {
            let expected: Vec<f64> = flat(plain.get(of).unwrap()).into_iter().map(f64::from).collect();
            close(&flat(fused.get(of).unwrap()), &expected, 1e-4);
        }
    }
}

/// Compares `gradient` with central differences of `f` at every `stride`-th position of `x`.
fn finite_differences(x: &[f32], gradient: &[f32], stride: usize, f: impl Fn(&[f32]) -> f64) {
    const H: f32 = 1e-2;
    for i in (0..x.len()).step_by(stride) {
        let at = |delta: f32| {
            let mut x = x.to_vec();
            x[i] += delta;
            f(&x)
        };
        let slope = (at(H) - at(-H)) / f64::from(2.0 * H);
        let got = f64::from(gradient[i]);
        assert!((slope - got).abs() < 2e-2 * slope.abs().max(1.0), "position {i}: slope {slope}, gradient {got}");
    }
}

#[test]
fn block_agrees_with_finite_differences() {
    let block = block_at(3, 8, 2, 20);
    let (xs, ps) = (wave(48, 0.1, 1.0), block_parameters(&block));
    let value = |x: &[f32], p: &[f32]| {
        let (x, p) = (Tensor::from_slice(x, (2, 3, 8), &Device::Cpu), Tensor::from_slice(p, p.len(), &Device::Cpu));
        f64::from(
            objective(&graph::block(block, &x.unwrap(), &p.unwrap()).unwrap()).unwrap().to_scalar::<f32>().unwrap(),
        )
    };
    let (x, p) = (var(xs.clone(), &[2, 3, 8]), var(ps.clone(), &[ps.len()]));
    let gradients = objective(&graph::block(block, &x, &p).unwrap()).unwrap().backward().unwrap();
    finite_differences(&xs, &flat(gradients.get(&x).unwrap()), 1, |x| value(x, &ps));
    finite_differences(&ps, &flat(gradients.get(&p).unwrap()), 7, |p| value(&xs, p));
}

/// `x = torch.linspace(-6, 6, 13); y = F.gelu(x); y.sum().backward()`
#[test]
fn gelu_agrees_with_pytorch() {
    let mut x: Vec<f32> = (-6..=6).map(|i| i as f32).collect();
    let values = [
        -0.00000001,
        -0.00000143,
        -0.00012668,
        -0.00404969,
        -0.04550026,
        -0.15865525,
        0.0,
        0.84134475,
        1.95449974,
        2.99595031,
        3.99987332,
        4.99999857,
        5.99999999,
    ];
    let slopes = [
        -0.00000004,
        -0.00000715,
        -0.00050365,
        -0.01194565,
        -0.08523180,
        -0.08331547,
        0.5,
        1.08331547,
        1.08523180,
        1.01194565,
        1.00050365,
        1.00000715,
        1.00000004,
    ];
    let mut y = vec![0.0; 13];
    activation::gelu(&x, &mut y);
    close(&y, &values, 4e-7);
    activation::gelu_and_slope(&mut x, &mut y);
    close(&y, &values, 4e-7);
    close(&x, &slopes, 4e-7);
}

/// `F.gelu(F.linear(x, w, b))` with x = wave(21, 0.1) (3, 7), w = wave(35, 0.3, 0.5) (5, 7), b = wave(5, 0.4).
#[test]
fn linear_with_gelu_agrees_with_pytorch() {
    let x = var(wave(21, 0.1, 1.0), &[3, 7]);
    let p = var([wave(35, 0.3, 0.5), wave(5, 0.4, 1.0)].concat(), &[40]);
    let y = graph::linear(&x, &p, 5, true).unwrap();
    let gradients = objective(&y).unwrap().backward().unwrap();
    let dp = flat(gradients.get(&p).unwrap());
    let got = [&flat(&y), &flat(gradients.get(&x).unwrap()), &dp[..35], &dp[35..]].map(|v: &[f32]| check(v) as f32);
    close(&got, &[-2.2941009, 3.0692930, 3.0611071, 0.7318062], 2e-5);
}

/// Tokens: `cat([cls + pos[0], F.linear(x, w, b) + pos[1:][kept]], 1)`, kept = [[0, 2], [1, 3]], D = 8, P = 5.
#[test]
fn embedding_agrees_with_pytorch() {
    let kept = Arc::new(vec![0, 2, 1, 3]);
    let x = Tensor::from_vec(wave(20, 0.1, 1.0), (2, 2, 5), &Device::Cpu).unwrap();
    let p = var([wave(8, 0.2, 1.0), wave(40, 0.3, 0.3), wave(8, 0.4, 1.0)].concat(), &[56]);
    let y = graph::embed(&x, &p, kept, Arc::new(wave(40, 0.6, 0.2))).unwrap();
    let dp = flat(objective(&y).unwrap().backward().unwrap().get(&p).unwrap());
    let got = [&flat(&y), &dp[..8], &dp[8..48], &dp[48..]].map(|v: &[f32]| check(v) as f32);
    close(&got, &[1.9257004, 1.8699971, 0.3270158, -2.1683418], 2e-5);
}

/// Decoder tokens: `t = F.linear(x, w, b)`; mask tokens, overwritten by `t[:, 1:]` at kept, + pos; D = 8, E = 4.
#[test]
fn filling_agrees_with_pytorch() {
    let kept = Arc::new(vec![0, 2, 1, 3]);
    let x = var(wave(48, 0.1, 1.0), &[2, 3, 8]);
    let p = var([wave(32, 0.3, 0.3), wave(4, 0.4, 1.0), wave(4, 0.8, 1.0)].concat(), &[40]);
    let y = graph::fill(&x, &p, kept, Arc::new(wave(20, 0.6, 0.2))).unwrap();
    let gradients = objective(&y).unwrap().backward().unwrap();
    let dp = flat(gradients.get(&p).unwrap());
    let parts = [&flat(&y), &flat(gradients.get(&x).unwrap()), &dp[..32], &dp[32..36], &dp[36..]];
    close(&parts.map(|v: &[f32]| check(v) as f32), &[1.7680951, 1.9136705, -0.2080513, 4.7134435, -2.2162813], 2e-5);
}

/// `F.normalize(wave(8, 0.3).reshape(2, 4), dim=1)`, objective with wave(8, 0.9).
#[test]
fn normalisation_agrees_with_pytorch() {
    let x = var(wave(8, 0.3, 1.0), &[2, 4]);
    let y = graph::l2_normalize(&x).unwrap();
    let expected = [0.19767104, 0.56285304, 0.66331646, 0.45181178, 0.02861069, -0.42100528, -0.67261589, -0.60788474];
    close(&flat(&y), &expected, 1e-6);
    let weights = Tensor::from_vec(wave(8, 0.9, 1.0), (2, 4), &Device::Cpu).unwrap();
    let gradients = (y * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let expected =
        [0.35526706, 0.18826378, -0.06728291, -0.29118539, -0.38997547, -0.28090553, -0.03972133, 0.22014443];
    close(&flat(gradients.get(&x).unwrap()), &expected, 2e-6);
}

/// `get_2d_sincos_pos_embed(8, 2)` of facebookresearch/mae, whose grid lists the column first.
#[test]
fn positions_agree_with_mae() {
    let (s, t, c, u) = (0.841471, 0.0099998, 0.5403023, 0.99995);
    let zero = [0.0, 0.0, 1.0, 1.0];
    let one = [s, t, c, u];
    let expected = [[0.0; 8].as_slice(), &zero, &zero, &one, &zero, &zero, &one, &one, &one].concat();
    close(&positions(2, 8), &expected, 1e-6);
}

/// The sums in the operators must not depend on the number of threads.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let block = block_at(17, 24, 3, 96);
    let parameters = block_parameters(&block);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (x, p) =
                (var(wave(40 * 17 * 24, 0.1, 1.0), &[40, 17, 24]), var(parameters.clone(), &[parameters.len()]));
            let gradients = objective(&graph::block(block, &x, &p).unwrap()).unwrap().backward().unwrap();
            (flat(gradients.get(&x).unwrap()), flat(gradients.get(&p).unwrap()))
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}
