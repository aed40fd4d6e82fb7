//! L-BFGS with a preconditioner (Nocedal and Wright, *Numerical Optimization*, algorithm 7.4), for smooth convex
//! functions: full steps almost always hold, so the line search is plain backtracking.

use std::collections::VecDeque;

/// Number of past steps that are kept.
const MEMORY: usize = 10;
/// Share of the predicted decrease that a step must reach at least (Armijo).
const DECREASE: f64 = 1e-4;

/// Criteria for stopping.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// Largest absolute value in the gradient.
    pub gradient: f64,
    /// Number of iterations at most.
    pub iterations: usize,
}

/// Minimises from `x`, in place; returns the number of iterations.
///
/// `value_and_gradient` writes the gradient into its second argument; `precondition` multiplies by a rough inverse
/// of the Hessian, in place.
pub fn minimise(
    x: &mut Vec<f64>,
    stop: Stop,
    mut value_and_gradient: impl FnMut(&[f64], &mut [f64]) -> f64,
    precondition: impl Fn(&mut [f64]),
) -> usize {
    let mut gradient = vec![0.0; x.len()];
    let mut value = value_and_gradient(x, &mut gradient);
    let mut history = VecDeque::with_capacity(MEMORY);
    let (mut next, mut next_gradient) = (x.clone(), gradient.clone());
    for iteration in 0..stop.iterations {
        if gradient.iter().all(|g| g.abs() <= stop.gradient) {
            return iteration;
        }
        let direction = direction(&gradient, &history, &precondition);
        let slope = dot(&direction, &gradient);
        let mut step = 1.0;
        let next_value = loop {
            next.iter_mut().zip(x.iter().zip(&direction)).for_each(|(n, (x, d))| *n = x + step * d);
            let value_there = value_and_gradient(&next, &mut next_gradient);
            if value_there <= value + DECREASE * step * slope {
                break value_there;
            }
            step *= 0.5;
            // No step along a descent direction decreases the value: the rest is rounding.
            if step < 1e-6 {
                return iteration;
            }
        };
        remember(&mut history, x, &next, &gradient, &next_gradient);
        std::mem::swap(x, &mut next);
        std::mem::swap(&mut gradient, &mut next_gradient);
        value = next_value;
    }
    stop.iterations
}

/// A step, the change of gradient along it, and 1 / (their product).
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    scale: f64,
}

fn remember(history: &mut VecDeque<Pair>, x: &[f64], next: &[f64], gradient: &[f64], next_gradient: &[f64]) {
    let step: Vec<f64> = next.iter().zip(x).map(|(a, b)| a - b).collect();
    let change: Vec<f64> = next_gradient.iter().zip(gradient).map(|(a, b)| a - b).collect();
    let curvature = dot(&step, &change);
    // A pair without positive curvature would spoil the approximation; rounding can make one near the minimum.
    if curvature <= 1e-12 * dot(&change, &change) {
        return;
    }
    if history.len() == MEMORY {
        history.pop_front();
    }
    history.push_back(Pair { step, change, scale: 1.0 / curvature });
}

/// The two loops: minus the approximate inverse Hessian times the gradient.
fn direction(gradient: &[f64], history: &VecDeque<Pair>, precondition: &impl Fn(&mut [f64])) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(history.len());
    for pair in history.iter().rev() {
        let alpha = pair.scale * dot(&pair.step, &q);
        q.iter_mut().zip(&pair.change).for_each(|(q, y)| *q -= alpha * y);
        alphas.push(alpha);
    }
    precondition(&mut q);
    if let Some(last) = history.back() {
        let mut preconditioned = last.change.clone();
        precondition(&mut preconditioned);
        let gamma = 1.0 / (last.scale * dot(&last.change, &preconditioned));
        q.iter_mut().for_each(|q| *q *= gamma);
    }
    for (pair, alpha) in history.iter().zip(alphas.into_iter().rev()) {
        let beta = pair.scale * dot(&pair.change, &q);
        q.iter_mut().zip(&pair.step).for_each(|(q, s)| *q += (alpha - beta) * s);
    }
    q
}

/// Sum of products, in eight lanes so that it vectorises.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a8.zip(b8) {
        for i in 0..8 {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_minimum_of_an_ill_conditioned_bowl() {
        // f = sum_i w_i (cosh(x_i - i) - 1), w from 1 to 10,000: its minimum is x_i = i.
        let weight = |i: usize| 10f64.powi(i as i32);
        let f = |x: &[f64], g: &mut [f64]| {
            x.iter().enumerate().for_each(|(i, x)| g[i] = weight(i) * (x - i as f64).sinh());
            x.iter().enumerate().map(|(i, x)| weight(i) * ((x - i as f64).cosh() - 1.0)).sum()
        };
        let stop = Stop { gradient: 1e-9, iterations: 200 };
        let mut plain = vec![0.5; 5];
        let slow = minimise(&mut plain, stop, f, |_| ());
        let mut preconditioned = vec![0.5; 5];
        let fast =
            minimise(&mut preconditioned, stop, f, |q| q.iter_mut().enumerate().for_each(|(i, q)| *q /= weight(i)));
        for x in [plain, preconditioned] {
            assert!(x.iter().enumerate().all(|(i, x)| (x - i as f64).abs() < 1e-6), "{x:?}");
        }
        assert!(fast < slow && slow < 200, "{fast} {slow}");
    }
}
