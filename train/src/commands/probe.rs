//! The command `macrl-train probe`: a linear probe on a bundle's features for labels of the user's.
//!
//! The probe's file is made here; `macrl-export upgrade` puts it into the weights, graphs and configuration of the bundle.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Args;
use macrl_bundle::bundle::{self, Bundle};
use macrl_bundle::config::Config;
use macrl_bundle::evaluation::Evaluation;
use macrl_bundle::output::answer;
use macrl_bundle::probe::Probe;
use macrl_bundle::{atomic, say};
use macrl_nn::ops::graph::with_values;
use macrl_nn::vit::Encoder;

use super::claim::check_file;
use super::evaluate::{say_left_out, settings};
use super::shared::{Usage, open_data_once};
use crate::data::Dataset;
use crate::encode::{LeftOut, labelled, pixels_to_tensor, stream};
use crate::evaluate::{Features, Split, evaluate_set, evaluation, table};

/// Arguments of `macrl-train probe`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Folder of the bundle.
    #[arg(long)]
    bundle: PathBuf,
    /// Labelled images (docs/data.md); part of them is held out to measure the probe.
    #[arg(long)]
    data: PathBuf,
    /// Write probe.safetensors and evaluation.json into this folder, and leave the bundle as it is.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let bundle = Bundle::open(&arguments.bundle).map_err(|why| Usage(why.to_string()))?;
    let config = configuration(&bundle)?;
    let weights = candle_core::safetensors::load(&bundle.weights, &Device::Cpu)?;
    let encoder =
        Encoder::from_tensors(&config.encoder, &weights, "").with_context(|| bundle.weights.display().to_string())?;
    let data = open_data_once(&arguments.data, &config)?;
    if labelled(data.train.as_ref()).is_empty() {
        let said = format!(
            "no image of {} has a label: put them into one sub-folder for each class",
            arguments.data.display()
        );
        return Err(Usage(said).into());
    }
    let held = data.test.as_ref().context("the data has nothing to hold out for a test")?;
    let (train, mut left_out) = features(&encoder, data.train.as_ref(), &bundle)?;
    let (test, more) = features(&encoder, held.as_ref(), &bundle)?;
    left_out.extend(more);
    say_left_out(&left_out);
    let settings = settings(&data, &config);
    let split = Split { train, test };
    let (row, probe) = evaluate_set("macrl", &split, &settings)?;
    let evaluation = evaluation(vec![row], (split.train.len(), split.test.len()), &settings);
    answer(&table(&evaluation));
    match &arguments.out {
        Some(dir) => {
            write(dir, &probe, &evaluation)?;
            say!("next: macrl-export upgrade {} --probe {}", arguments.bundle.display(), dir.display());
            Ok(())
        }
        None => {
            let dir = scratch(&arguments.bundle)?;
            write(dir.path(), &probe, &evaluation)?;
            export(&arguments.bundle, dir.path())
        }
    }
}

/// The run's configuration with the bundle's own geometry and pooling.
fn configuration(bundle: &Bundle) -> Result<Config> {
    let written = Config::parse_resolved(&bundle.config.macrl.config, "the bundle's configuration");
    let mut config = written.unwrap_or_default();
    config.encoder = bundle.config.encoder();
    config.evaluate.pooling = bundle.config.pooling;
    config.data.limit = 0;
    (config.data.fit, config.data.mean, config.data.std) =
        (bundle.preprocess.fit, bundle.preprocess.mean, bundle.preprocess.std);
    Ok(config)
}

/// Features of the labelled images of a split.
fn features(encoder: &Encoder, split: &dyn Dataset, bundle: &Bundle) -> Result<(Features, Vec<LeftOut>)> {
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    let known = labelled(split);
    let left_out = stream(split, &known, encoder, &bundle.preprocess, |images| {
        let batch = pixels_to_tensor(&images.pixels, bundle.preprocess.image_size, &bundle.preprocess)?;
        labels.extend_from_slice(&images.labels);
        with_values(&encoder.features(&batch, bundle.config.pooling)?, |f| {
            values.extend_from_slice(f);
            Ok(())
        })?;
        Ok(())
    })?;
    Ok((Features { values, labels, dim: encoder.config().width }, left_out))
}

fn write(dir: &Path, probe: &Probe, evaluation: &Evaluation) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let (file, numbers) = (dir.join(bundle::PROBE), dir.join(bundle::EVALUATION));
    check_file(&file, |path| Probe::read(path).is_ok())?;
    check_file(&numbers, |path| Evaluation::read(path).is_ok())?;
    let bytes = probe.to_bytes().context("cannot write the probe")?;
    for (path, bytes) in [(&file, bytes.as_slice()), (&numbers, evaluation.to_json().as_bytes())] {
        atomic::write_file(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A folder that is removed again.
struct Scratch(PathBuf);

impl Scratch {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A new folder in the system's folder for temporary files.
fn scratch(bundle: &Path) -> Result<Scratch> {
    let name = bundle.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let dir = std::env::temp_dir().join(format!("macrl-probe-{}-{name}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(Scratch(dir))
}

/// Runs `macrl-export upgrade`, the program beside this one or on the PATH.
fn export(bundle: &Path, probe: &Path) -> Result<()> {
    let beside = std::env::current_exe().ok().map(|this| this.with_file_name("macrl-export"));
    let program = beside.filter(|path| path.is_file()).unwrap_or_else(|| "macrl-export".into());
    let done = Command::new(&program).arg("upgrade").arg(bundle).arg("--probe").arg(probe).status();
    let done = done.with_context(|| format!("cannot run {}; --out DIR writes the probe alone", program.display()))?;
    ensure!(done.success(), "macrl-export upgrade has failed; the bundle stays as it was");
    Ok(())
}
