//! InfoNCE (arXiv 1807.03748, as MoCo uses it, arXiv 1911.05722 eq. 1): a query's own key against other keys.
//!
//! L = -1/B sum_i log( exp(q_i . k_i / tau) / (exp(q_i . k_i / tau) + sum_n exp(q_i . n / tau)) )
//!
//! Negatives are the bank's keys and, where wanted, the batch's other keys; a key of the query's own image is never
//! one, whichever epoch it is from: keys carry the index of their image.

use candle_core::{Result, Tensor, bail};
use macrl_kernels::matmul::{MatrixView, Threads, matmul};
use macrl_kernels::simd::{exp, largest, reduce};
use macrl_kernels::vectorised;
use macrl_nn::ops::graph::{with_gradient, with_values};
use rayon::prelude::*;

/// Settings of the contrastive loss.
#[derive(Debug, Clone, Copy)]
pub struct ContrastSettings {
    /// tau, by which cosines are divided.
    pub temperature: f64,
    /// Whether the other keys of the batch are negatives.
    pub batch_negatives: bool,
    /// Factor on the loss.
    pub weight: f64,
}

/// Keys that a batch of queries is compared with; rows of all are L2-normalised.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    /// (B, C): row i belongs to query i.
    pub positives: &'a [f32],
    /// (B): the image each query and its key come from.
    pub images: &'a [u32],
    /// (M, C): past keys.
    pub bank: &'a [f32],
    /// (M): the image each past key comes from.
    pub bank_images: &'a [u32],
    /// C.
    pub width: usize,
    /// tau.
    pub temperature: f32,
    /// Whether the other keys of the batch are negatives.
    pub batch_negatives: bool,
}

/// The loss with what a report wants to know of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contrast {
    /// L.
    pub loss: f32,
    /// Mean cosine of a query and its key.
    pub positive: f32,
    /// Mean cosine of a query and its negatives; 0 where there are none.
    pub negative: f32,
}

struct Row {
    loss: f64,
    positive: f64,
    negative: f64,
    negatives: usize,
}

/// Writes -log softmax's pieces for one query: cosines become (softmax - one-hot) / (tau B), 0 where excluded.
fn row(cosines: &mut [f32], own: usize, excluded: impl Fn(usize) -> bool, tau: f32, batch: usize) -> Row {
    let mut sum = 0f64;
    let mut negatives = 0;
    let positive = cosines[own];
    for (j, c) in cosines.iter_mut().enumerate() {
        if j != own && excluded(j) {
            *c = f32::NEG_INFINITY;
        } else if j != own {
            sum += f64::from(*c);
            negatives += 1;
        }
    }
    let top = largest(cosines);
    let total = exponentials(cosines, top, 1.0 / tau);
    let loss = f64::from(total.ln() - (positive - top) / tau);
    scale(cosines, 1.0 / (total * tau * batch as f32));
    cosines[own] -= 1.0 / (tau * batch as f32);
    Row { loss, positive: f64::from(positive), negative: sum, negatives }
}

vectorised! {
    /// x = exp((x - top) * by); returns the sum.  Excluded entries (negative infinity) become exactly 0.
    fn exponentials(x: &mut [f32], top: f32, by: f32) -> f32 {
        for v in x.iter_mut() {
            let e = exp::<FMA>((*v - top) * by);
            *v = if *v == f32::NEG_INFINITY { 0.0 } else { e };
        }
        let x = &x[..];
        reduce(x.len(), |i| x[i])
    }
}

vectorised! {
    fn scale(x: &mut [f32], by: f32) {
        for v in x.iter_mut() {
            *v *= by;
        }
    }
}

/// The loss, and its gradient with respect to the queries; keys get none.
///
/// # Shapes
/// `queries` and the gradient (B, C).
pub fn info_nce(queries: &[f32], keys: Keys) -> (Contrast, Vec<f32>) {
    let (batch, bank, width) = (keys.images.len(), keys.bank_images.len(), keys.width);
    let columns = batch + bank;
    let mut cosines = vec![0f32; batch * columns];
    let q = MatrixView::new(queries, batch, width);
    let (k, m) = (MatrixView::new(keys.positives, batch, width), MatrixView::new(keys.bank, bank, width));
    matmul(q, k.t(), 1.0, false, &mut cosines, columns, Threads::All);
    if bank > 0 {
        matmul(q, m.t(), 1.0, false, &mut cosines[batch..], columns, Threads::All);
    }
    let rows: Vec<Row> = cosines
        .par_chunks_mut(columns)
        .enumerate()
        .map(|(i, cosines)| {
            let own = keys.images[i];
            let excluded = |j: usize| match j.checked_sub(batch) {
                Some(j) => keys.bank_images[j] == own,
                None => !keys.batch_negatives || keys.images[j] == own,
            };
            row(cosines, i, excluded, keys.temperature, batch)
        })
        .collect();
    let mut gradient = vec![0f32; queries.len()];
    matmul(MatrixView::strided(&cosines, batch, batch, columns), k, 1.0, false, &mut gradient, width, Threads::All);
    if bank > 0 {
        let weights = MatrixView::strided(&cosines[batch..], batch, bank, columns);
        matmul(weights, m, 1.0, true, &mut gradient, width, Threads::All);
    }
    let mean = |f: fn(&Row) -> f64| rows.iter().map(f).sum::<f64>() / batch.max(1) as f64;
    let negatives = rows.iter().map(|r| r.negatives).sum::<usize>().max(1) as f64;
    let contrast = Contrast {
        loss: mean(|r| r.loss) as f32,
        positive: mean(|r| r.positive) as f32,
        negative: (rows.iter().map(|r| r.negative).sum::<f64>() / negatives) as f32,
    };
    (contrast, gradient)
}

/// InfoNCE of L2-normalised queries (B, C) against [`Keys`], as an operator of Candle's; the scalar loss and its companions.
///
/// # Errors
/// Shapes that do not fit.
pub fn contrast(queries: &Tensor, keys: Keys) -> Result<(Tensor, Contrast)> {
    let (batch, width) = queries.dims2()?;
    if (keys.images.len(), keys.width) != (batch, width) || keys.positives.len() != batch * width {
        bail!("info_nce: queries are {batch} x {width}, keys {} x {}", keys.images.len(), keys.width)
    }
    let (contrast, gradient) = with_values(queries, |q| Ok(info_nce(q, keys)))?;
    let evaluate = move |_: &[f32], _: &[usize]| Ok((vec![contrast.loss], vec![], gradient.clone()));
    Ok((with_gradient("info_nce", queries, evaluate)?, contrast))
}
