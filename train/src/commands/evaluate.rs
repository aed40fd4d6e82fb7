//! `macrl-train evaluate`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use macrl_models::config::Config;
use macrl_models::evaluation::Evaluation;
use macrl_models::output::answer;
use macrl_models::owned::FEATURES;
use macrl_models::preprocess::Preprocess;
use macrl_models::probe::Probe;
use macrl_models::vit::Encoder;
use macrl_models::{atomic, say};

use super::claim::{Claim, check_file};
use super::{data_dir, open_data};
use crate::data::Data;
use crate::encode::{Images, load_encoder};
use crate::evaluate::{FeatureSets, Pixels, Settings, Split, evaluate, export, pixel_features, table};
use crate::finetune::result;
use crate::run::Run;

const COMMAND: &str = "macrl-train evaluate";
/// The features that are judged.
const ROWS: [&str; 3] = ["macrl", "random", "pixels"];

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
    say!("encoder: {} (step {step})", path.display());
    check_file(&run.probe(), |path| Probe::read(path).is_ok())?;
    check_file(&run.evaluation(), |path| Evaluation::read(path).is_ok())?;
    // An array does not tell who wrote it: the folder says which are ours.
    let mut folder = arguments.features_out.as_deref().map(|dir| Claim::take(dir, FEATURES, COMMAND)).transpose()?;
    if let (Some(claim), Some(dir)) = (&mut folder, &arguments.features_out) {
        let in_the_way = export::in_the_way(dir, &ROWS);
        if !claim.is_ours() && !in_the_way.is_empty() {
            return Err(claim.foreign(&in_the_way));
        }
        claim.mark()?;
    }
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
    answer(&if arguments.json { json } else { table(&evaluation) });
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
        (ROWS[0].to_string(), encoded(encoder)?),
        (ROWS[1].to_string(), encoded(&random)?),
        (ROWS[2].to_string(), raw),
    ])
}

fn raw_pixels(images: &Images) -> Pixels<'_> {
    Pixels { images: &images.pixels, labels: &images.labels }
}
