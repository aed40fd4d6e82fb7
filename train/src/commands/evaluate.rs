//! `macrl-train evaluate`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use macrl_models::atomic;
use macrl_models::config::Config;
use macrl_models::preprocess::Preprocess;
use macrl_models::vit::Encoder;

use super::{data_dir, open_data};
use crate::data::Data;
use crate::encode::{Images, load_encoder};
use crate::evaluate::{FeatureSets, Pixels, Settings, Split, evaluate, export, pixel_features, table};
use crate::finetune::result;
use crate::run::Run;

/// What `evaluate` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The run's folder.
    #[arg(long)]
    run: PathBuf,
    /// The images; where the run found them, if not given.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Print evaluation.json's content instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write the features as .npy files into this folder.
    #[arg(long)]
    features_out: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let run = Run::new(&arguments.run);
    let path = if run.best().exists() { run.best() } else { run.last() };
    let (encoder, config, step) = load_encoder(&path)?;
    eprintln!("encoder: {} (step {step})", path.display());
    let data = open_data(&data_dir(&arguments.data, &run)?, &config)?;
    let sets = feature_sets(&encoder, &config, &data)?;
    if let Some(folder) = &arguments.features_out {
        sets.iter().try_for_each(|(name, split)| export::write_features(folder, name, split))?;
    }
    let settings = Settings {
        k: config.evaluate.k,
        temperature: config.evaluate.temperature,
        pooling: config.evaluate.pooling,
        seed: config.train.seed,
        split: format!("{}, its training and test split", data.format),
        labels: data.classes.clone(),
    };
    let (mut evaluation, probe) = evaluate(&sets, &settings)?;
    // The export compares these with the checkpoint that it exports: a probe of other weights would mislead.
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    evaluation.protocol.extra.insert("checkpoint".into(), name.into());
    evaluation.protocol.extra.insert("steps".into(), step.into());
    if let Some(finetuned) = result::read(&run)? {
        evaluation.extra.insert(result::KEY.into(), finetuned);
    }
    let bytes = probe.to_bytes().context("cannot write the probe")?;
    atomic::write_file(&run.probe(), &bytes).with_context(|| format!("cannot write {}", run.probe().display()))?;
    let json = evaluation.to_json();
    atomic::write_file(&run.evaluation(), json.as_bytes())
        .with_context(|| format!("cannot write {}", run.evaluation().display()))?;
    print!("{}", if arguments.json { json } else { table(&evaluation) });
    Ok(())
}

/// The encoder's features, a fresh encoder's of the same shape, and raw pixels.
fn feature_sets(encoder: &Encoder, config: &Config, data: &Data) -> Result<FeatureSets> {
    let preprocess = Preprocess::from_config(config);
    let test = data.test.as_ref().context("the data has nothing to hold out for a test")?;
    let train = Images::read(data.train.as_ref(), usize::MAX, &preprocess)?;
    let test = Images::read(test.as_ref(), usize::MAX, &preprocess)?;
    let pooling = config.evaluate.pooling;
    let random = Encoder::init(&config.encoder, config.train.seed)?;
    let encoded = |encoder: &Encoder| -> Result<Split> {
        Ok(Split {
            train: train.encode(encoder, &preprocess, pooling)?,
            test: test.encode(encoder, &preprocess, pooling)?,
        })
    };
    let raw = pixel_features(raw_pixels(&train), raw_pixels(&test), config.encoder.image_size);
    Ok(vec![
        ("macrl".to_string(), encoded(encoder)?),
        ("random".to_string(), encoded(&random)?),
        ("pixels".to_string(), raw),
    ])
}

fn raw_pixels(images: &Images) -> Pixels<'_> {
    Pixels { images: &images.pixels, labels: &images.labels }
}
