//! Pretrains a small encoder on a folder of images.
//!
//!     cargo run --release --example pretrain -- FOLDER OUT
//!
//! OUT becomes a run folder, which `macrl-train evaluate --data FOLDER` and `macrl-export bundle` can read.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use candle_core::Device;
use macrl_bundle::Config;
use macrl_train::{Run, State, data, pretrain};

/// Keys that are not listed keep their defaults (`Config::default`); unknown keys are errors.
const CONFIG: &str = r#"
    [encoder]
    image_size = 32
    patch_size = 8
    width = 48
    depth = 2
    heads = 3

    [train]
    epochs = 2
    batch_size = 8
    warmup_epochs = 0
"#;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (folder, out) = arguments.next().zip(arguments.next()).context("expected FOLDER OUT")?;
    let config = Config::parse(CONFIG, "the example's configuration", &[])?;
    let data = data::open(Path::new(&folder), &config)?;
    println!("{} training images ({})", data.train.len(), data.format);

    let run = Run::new(Path::new(&out));
    std::fs::create_dir_all(run.dir().join("checkpoints"))?;
    std::fs::write(run.config(), config.to_toml())?;
    // A signal handler, for example, can set this: the loop then writes a checkpoint and returns.
    let stop = AtomicBool::new(false);
    pretrain(&run, &config, &data, State::init(&config)?, &Device::Cpu, &stop)?;
    println!("{}", run.last().display());
    Ok(())
}
