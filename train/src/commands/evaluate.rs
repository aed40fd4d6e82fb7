//! The command `macrl-train evaluate`: evaluates the frozen features of a run.

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
use super::shared::{RunArguments, Usage, open_data_once};
use crate::data::Data;
use crate::encode::{LeftOut, labelled, load_encoder};
use crate::evaluate::{Settings, Split, evaluate, export, table, unlabelled};
use crate::evaluation_images;
use crate::extract::EncoderPair;
use crate::finetune::result;
use crate::run::Run;

const COMMAND: &str = "macrl-train evaluate";
/// The features that are evaluated.
const ROWS: [&str; 3] = ["macrl", "random", "pixels"];

/// Arguments of `macrl-train evaluate`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    source: RunArguments,
    /// Print evaluation.json's content instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write the features as .npy files into this folder.
    #[arg(long)]
    features_out: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let run = arguments.source.run();
    let path = if run.best().exists() { run.best() } else { run.last() };
    let (encoder, config, step) = load_encoder(&path)?;
    say!("encoder: {} (step {step})", path.display());
    check_file(&run.probe(), |path| Probe::read(path).is_ok())?;
    check_file(&run.evaluation_images(), evaluation_images::is_ours)?;
    check_file(&run.evaluation(), |path| Evaluation::read(path).is_ok())?;
    let data = open_data_once(&arguments.source.data_dir()?, &config)?;
    let pair = EncoderPair::new(encoder, &config)?;
    let without_labels = labelled(data.train.as_ref()).is_empty();
    let mut evaluation = match without_labels {
        true => spread(&pair, &data, &config, arguments)?,
        false => accuracies(&pair, &data, &config, arguments, &run)?,
    };
    // The export compares these with the checkpoint that it exports, and refuses a probe of other weights.
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
    let dir = run.dir().display();
    say!("next: macrl-export bundle {dir}/bundle --run {dir}");
    Ok(())
}

/// Measures kNN and linear probe, and writes the encoder's probe.
fn accuracies(
    pair: &EncoderPair,
    data: &Data,
    config: &Config,
    arguments: &Arguments,
    run: &Run,
) -> Result<Evaluation> {
    // Keeps the folder locked until everything is written.
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
    evaluation_images::write(run, config, data)?;
    Ok(evaluation)
}

/// Claims the folder for the features: an array alone does not say who wrote it, the folder's marker does.
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

/// Measures spread and rank where no image has a label.
fn spread(pair: &EncoderPair, data: &Data, config: &Config, arguments: &Arguments) -> Result<Evaluation> {
    if arguments.features_out.is_some() {
        return Err(Usage("--features-out writes features and labels, and no image here has a label".into()).into());
    }
    say!(
        "note: no image has a label, so no accuracy is measured; put images into one sub-folder for each class to label them"
    );
    let seen = pair.spread(data)?;
    say_left_out(&seen.left_out);
    Ok(unlabelled::evaluation(&seen.spread, &settings(data, config)))
}

pub(super) fn settings(data: &Data, config: &Config) -> Settings {
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

pub(super) fn say_left_out(files: &[LeftOut]) {
    if let Some((file, why)) = files.first() {
        say!("note: {} images could not be read and are left out; the first, {file}: {why}", files.len());
    }
}
