//! Embeds images with an exported encoder; prints one line per file: its name and the first values of its embedding.
//!
//!     cargo run --release --example embed -- models/pretrained/cifar10 FILE...

use std::path::Path;

use anyhow::{Context, Result};
use macrl_bundle::bundle::{INPUT, POOLED};
use macrl_bundle::{Bundle, DecodeLimits, decode};
use macrl_runtime::{SessionOptions, session};
use ort::value::TensorRef;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let bundle = Bundle::open(Path::new(&arguments.next().context("expected BUNDLE FILE...")?))?;
    let mut session = session(&bundle.onnx, &SessionOptions::default())?.session;
    for file in arguments {
        let image = decode(&std::fs::read(&file)?, &DecodeLimits::DEFAULT)?;
        // (3, S, S) f32, resized and normalised as in the evaluation during training.
        let mut pixels = vec![0.0; bundle.preprocess.values()];
        bundle.preprocess.normalize(bundle.preprocess.fit(&image).as_raw(), &mut pixels);
        let size = bundle.preprocess.image_size;
        let input = TensorRef::from_array_view(([1, 3, size, size], pixels.as_slice()))?;
        let outputs = session.run(ort::inputs![INPUT => input])?;
        let (_, embedding) = outputs[POOLED].try_extract_tensor::<f32>()?;
        println!("{file}: {} numbers, {:?}...", embedding.len(), &embedding[..3]);
    }
    Ok(())
}
