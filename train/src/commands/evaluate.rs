//! `macrl-train evaluate`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use macrl_bundle::config::Config;
use macrl_bundle::evaluation::Evaluation;
use macrl_bundle::output::answer;
use macrl_bundle::owned::FEATURES;
use macrl_bundle::probe::Probe;
use macrl_bundle::{atomic, say};

use super::claim::{Claim, check_file};
use super::shared::{Usage, data_dir, open_data_once};
use crate::data::Data;
use crate::encode::{LeftOut, labelled, load_encoder};
use crate::evaluate::{Settings, Split, evaluate, export, table, unlabelled};
use crate::extract::Pair;
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
    let data = open_data_once(&data_dir(&arguments.data, &run)?, &config)?;
    let pair = Pair::new(encoder, &config)?;
    let without_labels = labelled(data.train.as_ref()).is_empty();
    let mut evaluation = match without_labels {
        true => spread(&pair, &data, &config, arguments)?,
        false => accuracies(&pair, &data, &config, arguments, &run)?,
    };
    // The export compares these with the checkpoint that it exports: a probe of other weights would mislead.
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    evaluation.protocol.extra.insert("checkpoint".into(), name.into());
    evaluation.protocol.extra.insert("steps".into(), step.into());
    if let Some(finetuned) = result::read(&run)? {
        evaluation.extra.insert(result::KEY.into(), finetuned);
    }
    let json = evaluation.to_json();
    atomic::write_file(&run.evaluation(), json.as_bytes())
        .with_context(|| format!("cannot write {}", run.evaluation().display()))?;
    let text = if without_labels { unlabelled::table(&evaluation) } else { table(&evaluation) };
    answer(&if arguments.json { json } else { text });
    Ok(())
}

/// kNN and linear probe by the labels; the encoder's probe is written beside.
fn accuracies(pair: &Pair, data: &Data, config: &Config, arguments: &Arguments, run: &Run) -> Result<Evaluation> {
    // Held, and with it the folder's lock, until all is written.
    let _folder = claim_features(arguments)?;
    let extracted = pair.extract(data)?;
    say_left_out(&extracted.left_out);
    let settings = Settings { averaged: extracted.averaged(config), ..settings(data, config) };
    let sets = extracted.sets().map(|(name, split)| -> Result<(String, Split)> {
        if let Some(folder) = &arguments.features_out {
            export::write_features(folder, &name, &split)?;
        }
        Ok((name, split))
    });
    let (evaluation, probe) = evaluate(sets, &settings)?;
    let bytes = probe.to_bytes().context("cannot write the probe")?;
    atomic::write_file(&run.probe(), &bytes).with_context(|| format!("cannot write {}", run.probe().display()))?;
    Ok(evaluation)
}

/// An array does not tell who wrote it: the folder says which are ours.
fn claim_features(arguments: &Arguments) -> Result<Option<Claim>> {
    let Some(dir) = arguments.features_out.as_deref() else { return Ok(None) };
    let mut claim = Claim::take(dir, FEATURES, COMMAND)?;
    let in_the_way = export::in_the_way(dir, &ROWS);
    if !claim.is_ours() && !in_the_way.is_empty() {
        return Err(claim.foreign(&in_the_way));
    }
    claim.mark()?;
    Ok(Some(claim))
}

/// What can be said where nothing has a label.
fn spread(pair: &Pair, data: &Data, config: &Config, arguments: &Arguments) -> Result<Evaluation> {
    if arguments.features_out.is_some() {
        return Err(
            Usage("--features-out writes features beside their labels, and no image here has one".into()).into()
        );
    }
    say!("note: no image has a label, so there is no accuracy to measure; class sub-folders would be labels");
    let seen = pair.spread(data)?;
    say_left_out(&seen.left_out);
    Ok(unlabelled::evaluation(&seen.spread, &settings(data, config)))
}

fn settings(data: &Data, config: &Config) -> Settings {
    Settings {
        k: config.evaluate.k,
        temperature: config.evaluate.temperature,
        pooling: config.evaluate.pooling,
        seed: config.train.seed,
        split: format!("{}, its training and test split", data.format),
        labels: data.classes.clone(),
        averaged: None,
    }
}

fn say_left_out(files: &[LeftOut]) {
    if let Some((file, why)) = files.first() {
        say!("note: {} images could not be read and take no part; the first, {file}: {why}", files.len());
    }
}
