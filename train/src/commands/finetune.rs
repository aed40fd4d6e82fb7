//! `macrl-train finetune`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use clap::Args;
use macrl_models::config::Config;
use macrl_models::device;
use macrl_models::runtime::Device as Choice;
use macrl_models::vit::Encoder;

use super::{Usage, data_dir, open_data, stop_on_ctrl_c};
use crate::data::identity::identity;
use crate::encode::load_encoder;
use crate::finetune::model::Classifier;
use crate::finetune::state::Tuned;
use crate::finetune::{Labelled, Place, outcome, result, tune, tuning};
use crate::run::Run;
use crate::trainer::Ending;

/// What `finetune` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The run's folder.
    #[arg(long)]
    run: PathBuf,
    /// The images; where the run found them, if not given.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Overrides one key of [finetune], for example --set finetune.epochs=5; may be repeated.
    #[arg(long = "set", value_name = "finetune.KEY=VALUE")]
    set: Vec<String>,
    /// Go on where it stopped.
    #[arg(long)]
    resume: bool,
    /// Leave out the same network from random weights, which takes as long again.
    #[arg(long)]
    no_baseline: bool,
    /// Where to compute.
    #[arg(long, default_value = "auto", value_parser = device::parse)]
    device: Choice,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.device == Choice::Cuda {
        return Err(Usage("--device cuda: fine-tuning computes on the CPU only so far".into()).into());
    }
    let run = Run::new(&arguments.run);
    let path = if run.best().exists() { run.best() } else { run.last() };
    let (encoder, pretrained, step) = load_encoder(&path)?;
    let config = settings(&pretrained, &arguments.set)?;
    if run.finetune().exists() && !arguments.resume {
        let dir = run.finetune();
        let said =
            format!("{0} holds a fine-tuning already: --resume goes on with it, rm -r {0} forgets it", dir.display());
        return Err(Usage(said).into());
    }
    eprintln!("encoder: {} (step {step})", path.display());
    let data = open_data(&data_dir(&arguments.data, &run)?, &config)?;
    let labelled = Labelled::of(&data, &config)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let origin = format!("{name} after {step} steps, {}", identity(&data));
    let stop = stop_on_ctrl_c()?;

    let mut starts = vec![("macrl", encoder, config.clone())];
    if !arguments.no_baseline {
        let mut flat = config.clone();
        flat.finetune.layer_decay = 1.0; // random layers are all equally far from what they should be
        starts.push(("random", Encoder::init(&config.encoder, config.train.seed)?, flat));
    }
    let images = (labelled.train.len(), labelled.test.labels.len());
    let split = format!("{}, its training and test split", data.format);
    let protocol = result::protocol(&config, &name, step, images, &split);
    let mut outcomes = Vec::new();
    for (kind, encoder, config) in starts {
        let tuned = one(&run, kind, encoder, &config, &origin, &labelled, &stop)?;
        outcomes.push(outcome(kind, &tuned, &labelled, &config)?);
        result::write(&run, &result::to_json(&protocol, &outcomes))?;
    }
    if !run.evaluation().exists() {
        eprintln!("note: evaluation.json will hold this too once `macrl-train evaluate` has run");
    }
    print!("{}", result::table(&outcomes));
    Ok(())
}

/// One fine-tuning, from its start or its last state to its end.
fn one(
    run: &Run,
    kind: &str,
    encoder: Encoder,
    config: &Config,
    origin: &str,
    data: &Labelled,
    stop: &Arc<AtomicBool>,
) -> Result<Tuned> {
    let place = Place::new(run, kind);
    let mut tuned = match place.last().exists() {
        true => {
            let (tuned, saved) = Tuned::load(&place.last(), tuning)?;
            if saved != *config || tuned.origin != origin {
                let dir = run.finetune();
                let said = format!(
                    "--resume: {} began otherwise: expected {} with the same [finetune], found {origin}",
                    dir.display(),
                    tuned.origin
                );
                return Err(Usage(said).into());
            }
            tuned
        }
        false => Tuned::new(Classifier::new(encoder, config, data.classes)?, &tuning(config), origin.to_string()),
    };
    std::fs::create_dir_all(place.dir()).with_context(|| format!("cannot create {}", place.dir().display()))?;
    let from = if kind == "random" { "random weights" } else { "the pretrained encoder" };
    eprintln!(
        "fine-tuning from {from}: {} classes, batch {}, peak learning rate {:.2e}, step {}",
        data.classes,
        config.finetune.batch_size,
        tuning(config).train.absolute_lr(),
        tuned.step
    );
    match tune(&place, config, data, &mut tuned, stop)? {
        Ending::Finished => Ok(tuned),
        Ending::Interrupted(step) => bail!("stopped at step {step}; the state is saved, go on with --resume"),
    }
}

/// The run's configuration with `[finetune]` overridden; everything else is as the encoder was trained.
fn settings(pretrained: &Config, set: &[String]) -> Result<Config> {
    if let Some(other) = set.iter().find(|s| !s.trim_start().starts_with("finetune.")) {
        let said = format!("--set {other}: expected a key of [finetune]; the rest is as the encoder was pretrained");
        return Err(Usage(said).into());
    }
    Ok(Config::parse(&pretrained.to_toml(), "the run's configuration", set)?)
}
