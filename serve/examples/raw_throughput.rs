//! What the machine can do without a server: decode, resize and infer in one process, images/s for each batch size.
//!
//! `raw_throughput BUNDLE IMAGE SECONDS [BATCH ...]`: one session of one thread per core, each decoding its own images.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use macrl_bundle::bundle::{Bundle, INPUT, POOLED};
use macrl_bundle::decode::decode;
use macrl_runtime::{Device, SessionOptions, session};
use ort::value::TensorRef;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, bundle, image, seconds, batches @ ..] = args.as_slice() else {
        anyhow::bail!("usage: raw_throughput BUNDLE IMAGE SECONDS [BATCH ...]")
    };
    let batches = batches.iter().map(|batch| batch.parse()).collect::<Result<Vec<usize>, _>>()?;
    let batches = if batches.is_empty() { vec![1, 2, 4, 8, 16, 32] } else { batches };
    let bundle = Bundle::open(Path::new(bundle))?;
    let bytes = std::fs::read(image).with_context(|| image.clone())?;
    let time = Duration::from_secs_f64(seconds.parse()?);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for batch in batches {
        let counts: Vec<Result<usize>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..cores).map(|_| scope.spawn(|| work(&bundle, &bytes, batch, time))).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| anyhow::bail!("a thread failed"))).collect()
        });
        let images: usize = counts.into_iter().collect::<Result<Vec<_>>>()?.into_iter().sum();
        println!("batch {batch}: {:.0} images/s", images as f64 / time.as_secs_f64());
    }
    Ok(())
}

/// Images done within `time`.
fn work(bundle: &Bundle, bytes: &[u8], batch: usize, time: Duration) -> Result<usize> {
    let options = SessionOptions { device: Device::Cpu, threads: 1, ..SessionOptions::default() };
    let mut session = session(&bundle.onnx, &options)?.session;
    let transform = &bundle.preprocess;
    let (values, edge) = (transform.values(), transform.image_size);
    let mut input = vec![0f32; batch * values];
    let (mut done, since) = (0, Instant::now());
    while since.elapsed() < time {
        for slot in input.chunks_exact_mut(values) {
            let pixels = transform.fit(&decode(bytes, &Default::default())?);
            transform.normalize(pixels.as_raw(), slot);
        }
        let tensor = TensorRef::from_array_view(([batch, 3, edge, edge], input.as_slice()))?;
        let outputs = session.run(ort::inputs![INPUT => tensor])?;
        std::hint::black_box(outputs.get(POOLED).context("no pooled output")?);
        done += batch;
    }
    Ok(done)
}
