//! Muon's updates: PyTorch's numbers, and AdamW's for everything that is not a matrix of a block.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use macrl_bundle::config::{Config, Optimizer, TrainConfig};
use macrl_bundle::parameters;
use macrl_nn::params::Group;
use macrl_train::gradients::Gradients;
use macrl_train::ops::muon::{QUINTIC, STEPS, orthogonalise};
use macrl_train::optimizer::AdamW;
use macrl_train::part::Part;
use macrl_train::schedule::Rates;

/// Numbers in [-1, 1) that Python makes as easily.
struct Draw(u32);

impl Draw {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (f64::from(self.0) / 2f64.powi(31) - 1.0) as f32
    }

    fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

fn train(optimizer: Optimizer) -> TrainConfig {
    TrainConfig { optimizer, weight_decay: 0.05, muon_momentum: 0.95, ..Config::default().train }
}

/// A block of width 8 whose matrices are drawn in their order; everything else starts as a fresh block's.
fn block(hidden: usize, draw: &mut Draw) -> Group {
    let layout = parameters::block("blocks.0.", 8, hidden);
    let named =
        Group::init(&layout, 0).unwrap().named().unwrap().into_iter().map(|(name, tensor)| match tensor.rank() {
            2 => (name, Tensor::from_vec(draw.take(tensor.elem_count()), tensor.shape(), &Device::Cpu).unwrap()),
            _ => (name, tensor),
        });
    let named: HashMap<String, Tensor> = named.collect();
    Group::load(&layout, &named, "").unwrap().trainable().unwrap()
}

/// Gradients of the matrices drawn in their order, of everything else 0.25.
fn gradient(group: &Group, draw: &mut Draw) -> Gradients {
    let values = group.parameters().iter().flat_map(|p| match p.shape.len() {
        2 => draw.take(p.range.len()),
        _ => vec![0.25; p.range.len()],
    });
    let values: Vec<f32> = values.collect();
    Gradients(vec![Some(Tensor::from_vec(values, group.values().elem_count(), &Device::Cpu).unwrap())])
}

/// Three steps; the gradient counts half, as clipping would have it.
fn three_steps(hidden: usize, optimizer: Optimizer) -> (Group, AdamW) {
    let mut draw = Draw(7);
    let group = block(hidden, &mut draw);
    let groups = [(Part::Encoder, &group)];
    let mut state = AdamW::new(&groups, &train(optimizer));
    for muon in [0.02, 0.1, 0.05] {
        state.update(&groups, &gradient(&group, &mut draw), Rates { adamw: 1e-3, muon }, 0.5).unwrap();
    }
    (group, state)
}

/// ```python
/// class Muon:                                               # b.lerp_(g, 0.05): b <- 0.95 b + 0.05 g
///     def __init__(self, params, decay, momentum=0.95):
///         self.params, self.decay, self.momentum = params, decay, momentum
///         self.buffers = [torch.zeros_like(p) for p in params]
///     @torch.no_grad()
///     def step(self, lr):
///         for p, b in zip(self.params, self.buffers):
///             b.lerp_(p.grad, 1 - self.momentum)
///             u, parts = p.grad.lerp(b, self.momentum), 3 if p.shape[0] == 3 * p.shape[1] else 1
///             for w, g in zip(p.chunk(parts), u.chunk(parts)):
///                 tall = g.shape[0] > g.shape[1]
///                 x = g.mT if tall else g
///                 x = x / (x.norm() + 1e-7)
///                 for _ in range(5):
///                     a = x @ x.mT
///                     x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
///                 x = x.mT if tall else x
///                 w.mul_(1 - lr * self.decay).add_(x, alpha=-lr * max(1, g.shape[0] / g.shape[1]) ** 0.5)
/// state = 7
/// def draw(shape):
///     global state
///     out = torch.empty(shape).flatten()
///     for i in range(out.numel()):
///         state = (state * 1664525 + 1013904223) % 2**32
///         out[i] = state / 2**31 - 1
///     return out.view(shape)
/// w = [torch.nn.Parameter(draw(s)) for s in [(24, 8), (8, 8), (hidden, 8), (8, hidden)]]   # qkv, proj, fc1, fc2
/// o = Muon(w, 0.05)
/// for lr in (0.02, 0.1, 0.05):
///     for p in w: p.grad = 0.5 * draw(p.shape)
///     o.step(lr)
/// for p in w:                                               # and o.buffers' second value
///     f = p.detach().flatten(); n = len(f); print([f[i].item() for i in (0, n // 3 + 1, 2 * n // 3 + 2, n - 1)])
/// ```
#[test]
fn three_steps_are_pytorchs() {
    let expected = [
        (
            32,
            [
                [-0.5124092, 0.7381315, 0.8844924, -0.1681232],
                [0.8402932, 0.9824822, 0.6663245, 0.4121253],
                [0.7324997, 0.4271124, -0.9651363, -0.1534446],
                [-0.3046056, -0.4972048, -0.9096665, -0.6340321],
            ],
            [0.0419741, -0.0280999, 0.0129269, -0.0103227],
        ),
        (
            10,
            [
                [-0.5148667, 0.7844473, 0.8176943, -0.1233721],
                [0.9218144, 0.8841106, 0.6294762, 0.4751359],
                [0.6963637, -0.3391814, 0.5443213, -0.6705437],
                [0.2078144, -0.948079, -0.928812, 0.5031421],
            ],
            [-0.0050113, 0.0265016, -0.0019267, 0.0043862f32],
        ),
    ];
    for (hidden, weights, momenta) in expected {
        let (group, state) = three_steps(hidden, Optimizer::Muon);
        let values = group.values().to_vec1::<f32>().unwrap();
        let matrices = group.parameters().iter().filter(|p| p.shape.len() == 2);
        for ((p, weights), momentum) in matrices.zip(weights).zip(momenta) {
            let (n, of) = (p.range.len(), |i: usize| values[p.range.start + i]);
            let found = [of(0), of(n / 3 + 1), of(2 * n / 3 + 2), of(n - 1)];
            let largest = found.iter().zip(weights).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(largest < 2e-6, "{}: {found:?}, not {weights:?}", p.name);
            let kept = state.moments[0].first[p.range.start + 1];
            assert!((kept - momentum).abs() < 1e-7, "{}: momentum {kept}, not {momentum}", p.name);
        }
    }
}

#[test]
fn everything_else_is_adamws() {
    let ((muon, muon_state), (adamw, _)) = (three_steps(32, Optimizer::Muon), three_steps(32, Optimizer::Adamw));
    let (a, b) = (muon.values().to_vec1::<f32>().unwrap(), adamw.values().to_vec1::<f32>().unwrap());
    for p in muon.parameters() {
        let same = a[p.range.clone()] == b[p.range.clone()];
        assert_eq!(same, p.shape.len() == 1, "{}", p.name);
        let second = muon_state.moments[0].second[p.range.clone()].iter().any(|v| *v != 0.0);
        assert_eq!(second, p.shape.len() == 1, "{}", p.name);
    }
}

#[test]
fn only_matrices_of_blocks_are_muons() {
    let config = Config::parse("[encoder]\ndepth = 1\n[decoder]\ndepth = 1\n", "test", &[]).unwrap();
    let method = macrl_train::method::Method::init(&config).unwrap();
    let groups = method.trainable();
    let names = groups.iter().flat_map(|(_, group)| group.parameters());
    let muons: Vec<String> =
        names.filter(|p| !p.block_matrices().is_empty()).map(|p| format!("{} {:?}", p.name, p.shape)).collect();
    let of = |prefix: &str, d: usize| {
        [
            format!("{prefix}.0.attn.qkv.weight [{}, {d}]", 3 * d),
            format!("{prefix}.0.attn.proj.weight [{d}, {d}]"),
            format!("{prefix}.0.mlp.fc1.weight [{}, {d}]", 4 * d),
            format!("{prefix}.0.mlp.fc2.weight [{d}, {}]", 4 * d),
        ]
    };
    assert_eq!(muons, [of("blocks", 192), of("decoder_blocks", 96)].concat());
    let qkv = groups.iter().flat_map(|(_, group)| group.parameters()).find(|p| p.name.contains("qkv")).unwrap();
    let parts = qkv.block_matrices();
    assert!(parts.iter().all(|m| (m.rows, m.columns) == (192, 192)));
    assert_eq!((parts.len(), parts[0].range.start, parts[2].range.end), (3, qkv.range.start, qkv.range.end));
}

/// The same in float64 by the definition: X <- a X + (b A + c A A) X, A = X X^T, on the matrix or its transpose.
fn exactly(x: &[f32], rows: usize, columns: usize) -> Vec<f64> {
    let (n, m) = (rows.min(columns), rows.max(columns));
    let at = |i: usize, j: usize| if rows > columns { x[j * columns + i] } else { x[i * columns + j] };
    let mut x: Vec<f64> = (0..n * m).map(|k| f64::from(at(k / m, k % m))).collect();
    let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt() + 1e-7;
    x.iter_mut().for_each(|v| *v /= norm);
    let product = |a: &[f64], b: &[f64], k: usize, m: usize| -> Vec<f64> {
        let mut out = vec![0.0; n * m];
        for (i, p, j) in (0..n).flat_map(|i| (0..k).flat_map(move |p| (0..m).map(move |j| (i, p, j)))) {
            out[i * m + j] += a[i * k + p] * b[p * m + j];
        }
        out
    };
    let [a, b, c] = QUINTIC.map(f64::from);
    for _ in 0..STEPS {
        let transposed: Vec<f64> = (0..m * n).map(|k| x[k % n * m + k / n]).collect();
        let gram = product(&x, &transposed, m, n);
        let squared = product(&gram, &gram, n, n);
        let inner: Vec<f64> = gram.iter().zip(&squared).map(|(g, s)| b * g + c * s).collect();
        let moved = product(&inner, &x, n, m);
        x.iter_mut().zip(moved).for_each(|(x, moved)| *x = a * *x + moved);
    }
    let back = |k: usize| if rows > columns { x[k % columns * m + k / columns] } else { x[k] };
    (0..n * m).map(back).collect()
}

#[test]
fn every_shape_is_orthogonalised_as_the_definition_says() {
    let shapes = [(1, 1), (1, 9), (9, 1), (5, 4), (4, 5), (24, 24), (20, 30), (30, 20), (16, 64), (64, 16), (33, 100)];
    for (rows, columns) in shapes {
        let mut x = Draw(rows as u32 + 100 * columns as u32).take(rows * columns);
        let expected = exactly(&x, rows, columns);
        orthogonalise(&mut x, rows, columns);
        let largest = x.iter().zip(&expected).fold(0f64, |m, (a, b)| m.max((f64::from(*a) - b).abs()));
        assert!(largest < 2e-5, "{rows} x {columns}: {largest}");
    }
}

#[test]
fn a_gradient_of_rank_one_and_one_of_zeros_stay_finite() {
    for (rows, columns) in [(24, 24), (96, 24), (24, 96)] {
        let mut x: Vec<f32> =
            (0..rows * columns).map(|i| ((i / columns + 1) * (i % columns + 2)) as f32 * 1e-9).collect();
        let expected = exactly(&x, rows, columns);
        orthogonalise(&mut x, rows, columns);
        let largest = x.iter().zip(&expected).fold(0f64, |m, (a, b)| m.max((f64::from(*a) - b).abs()));
        assert!(largest < 2e-3, "{rows} x {columns}: {largest}");
        let mut zeros = vec![0f32; rows * columns];
        orthogonalise(&mut zeros, rows, columns);
        assert!(zeros.iter().all(|v| *v == 0.0));
    }
}
