//! Times the evaluation at CIFAR-10's size: `cargo bench -p macrl-train --bench evaluation`.

use std::time::Instant;

use macrl_train::evaluate::{Features, diagnostics, knn, linear};

const DIM: usize = 192;
const CLASSES: usize = 10;

/// Overlapping clouds around one centre per class, from a fixed generator.
fn features(n: usize, seed: u64) -> Features {
    let mut state = seed;
    let mut draw = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let labels: Vec<u32> = (0..n).map(|i| (i % CLASSES) as u32).collect();
    let centre = |label: u32, i: usize| ((label as usize * DIM + i) as f32 * 12.9898).sin() * 0.25;
    let values = labels.iter().flat_map(|&label| (0..DIM).map(move |i| (label, i)));
    let values = values.map(|(label, i)| centre(label, i) + draw() + draw()).collect();
    Features { values, labels, dim: DIM }
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what:<60} {:7.2} s", start.elapsed().as_secs_f64());
    result
}

fn main() {
    let (train, test) = (features(50_000, 1), features(10_000, 2));
    let near = timed("kNN: 10,000 queries in 50,000 x 192", || knn::accuracy(&train, &test, 20, 0.07));
    let labels: Vec<String> = (0..CLASSES).map(|i| i.to_string()).collect();
    let fit = timed("linear probe: 50,000 x 192, 10 classes, strength chosen", || linear::fit(&train, &labels, 0));
    let answers = linear::predict(&fit.probe, &test);
    let right = answers.iter().zip(&test.labels).filter(|(a, b)| a == b).count();
    timed("effective rank: 10,000 x 192", || diagnostics::effective_rank(&test.values, DIM));
    println!("kNN {:.1} %, linear {:.1} % (synthetic clouds)", 100.0 * near.knn, right as f64 / 100.0);
}
