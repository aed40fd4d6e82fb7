//! The command `macrl-train finetune`: trains the encoder of a run on labels.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use clap::Args;
use macrl_bundle::config::Config;
use macrl_bundle::device::Device as Choice;
use macrl_bundle::evaluation::Evaluation;
use macrl_bundle::owned::FINETUNING;
use macrl_bundle::{answer, say};
use macrl_nn::device;
use macrl_nn::vit::Encoder;

use super::claim::{Claim, check_file};
use super::enough;
use super::shared::{RunArguments, Stopped, Usage, open_data, stop_on_ctrl_c};
use crate::data::identity::identity;
use crate::encode::load_encoder;
use crate::ending::Ending;
use crate::finetune::files::FinetuneFiles;
use crate::finetune::labelled::Labelled;
use crate::finetune::model::Classifier;
use crate::finetune::result;
use crate::finetune::state::FinetuneState;
use crate::finetune::training::{finetune, outcome, training_config};
use crate::run::Run;

/// The one key that may change when a fine-tuning is resumed.
const LENGTH: &str = "finetune.epochs";
/// What fine-tuning starts from; also the names of its folders.
const KINDS: [&str; 2] = ["macrl", "random"];

/// Arguments of `macrl-train finetune`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    source: RunArguments,
    /// Overrides one key of [finetune], for example --set finetune.epochs=5; may be repeated.
    #[arg(long = "set", value_name = "finetune.KEY=VALUE")]
    set: Vec<String>,
    /// Continue where fine-tuning stopped.
    #[arg(long)]
    resume: bool,
    /// Do not train the same network from random weights for comparison, which takes as long again.
    #[arg(long)]
    no_baseline: bool,
    /// Where to compute: auto or cpu.
    #[arg(long, default_value = "auto", value_parser = device::parse)]
    device: Choice,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.device == Choice::Cuda {
        return Err(Usage("--device cuda: fine-tuning runs on the CPU only".into()).into());
    }
    let run = arguments.source.run();
    let path = if run.best().exists() { run.best() } else { run.last() };
    let (encoder, pretrained, step) = load_encoder(&path)?;
    let config = settings(&pretrained, &arguments.set)?;
    let mut claim = claim(&run, arguments.resume)?;
    say!("encoder: {} (step {step})", path.display());
    let data = open_data(&arguments.source.data_dir()?, &config)?;
    let labelled = Labelled::of(&data, &config)?;
    check_enough(&labelled, &config)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let origin = format!("{name} after {step} steps, {}", identity(&data));
    check_file(&run.finetuned(), |_| result::read(&run).is_ok_and(|r| r.is_some_and(|r| r["rows"].is_array())))?;
    check_file(&run.evaluation(), |path| Evaluation::read(path).is_ok())?;
    claim.mark()?;
    let stop = stop_on_ctrl_c()?;

    let longer = arguments.set.iter().any(|set| set.trim_start().starts_with(LENGTH));
    let mut starts = vec![(KINDS[0], encoder, config.clone())];
    if !arguments.no_baseline {
        let mut flat = config.clone();
        flat.finetune.layer_decay = 1.0; // layer-wise decay would only slow down random layers
        starts.push((KINDS[1], Encoder::init(&config.encoder, config.train.seed)?, flat));
    }
    let images = (labelled.train.len(), labelled.test.labels.len());
    let split = format!("{}, its training and test split", data.format);
    let protocol = result::protocol(&config, &name, step, images, &split);
    let mut outcomes = Vec::new();
    for (kind, encoder, config) in starts {
        let state = one(&run, kind, encoder, &config, &origin, &labelled, (&stop, longer))?;
        outcomes.push(outcome(kind, &state, &labelled, &config)?);
        result::write(&run, &result::to_json(&protocol, &outcomes))?;
    }
    if !run.evaluation().exists() {
        say!("note: evaluation.json will hold this too once `macrl-train evaluate` has run");
    }
    answer!("{}", result::table(&outcomes));
    Ok(())
}

/// Claims the folder of both fine-tunings; fails where it holds files that we did not write.
fn claim(run: &Run, resume: bool) -> Result<Claim> {
    let claim = Claim::take(&run.finetune(), FINETUNING, "macrl-train finetune")?;
    let kinds = KINDS.map(|kind| FinetuneFiles::new(run, kind));
    let paths = kinds.iter().flat_map(|files| [files.last(), files.best(), files.metrics()]);
    let in_the_way: Vec<PathBuf> = paths.filter(|path| path.symlink_metadata().is_ok()).collect();
    // Earlier versions wrote no marker; their states can be loaded.
    let earlier = || {
        let mut states = kinds.iter().map(FinetuneFiles::last).filter(|last| last.exists()).peekable();
        states.peek().is_some() && states.all(|last| FinetuneState::load(&last, training_config).is_ok())
    };
    if !claim.is_ours() && !in_the_way.is_empty() && !earlier() {
        return Err(claim.foreign(&in_the_way));
    }
    if !resume && (claim.is_ours() || !in_the_way.is_empty()) {
        let dir = run.finetune();
        let said = format!(
            "{0} holds a fine-tuning already: continue it with --resume, or remove it with rm -r {0}",
            dir.display()
        );
        return Err(Usage(said).into());
    }
    Ok(claim)
}

fn check_enough(labelled: &Labelled, config: &Config) -> Result<()> {
    let (images, batch) = (labelled.train.len(), config.finetune.batch_size);
    if images >= batch {
        return Ok(());
    }
    let said = format!(
        "{images} labelled training images are too few: at least {batch} are needed, finetune.batch_size; or make it \
         smaller, --set finetune.batch_size={}",
        enough::smaller(images)
    );
    Err(Usage(said).into())
}

/// A resumed fine-tuning keeps its data and configuration; only its length may change, where that was asked for (`longer`).
fn check_same(
    run: &Run,
    state: &FinetuneState,
    saved: &Config,
    config: &Config,
    origin: &str,
    longer: bool,
) -> Result<()> {
    let dir = run.finetune();
    if state.origin != origin {
        let said = format!("--resume: {} began with {}, here is {origin}", dir.display(), state.origin);
        return Err(Usage(said).into());
    }
    let changed = saved.all_differences(config);
    if changed.iter().all(|d| longer && d.key == LENGTH) {
        return Ok(());
    }
    let named: Vec<String> = changed.iter().map(|d| format!("{} is {} and here {}", d.key, d.own, d.other)).collect();
    let said = format!(
        "--resume: in {} {}: a fine-tuning keeps its configuration; --set finetune.epochs=N changes its length",
        dir.display(),
        named.join(", ")
    );
    Err(Usage(said).into())
}

/// A resumed fine-tuning cannot become shorter than the steps that are done.
fn check_length(state: &FinetuneState, config: &Config, data: &Labelled) -> Result<()> {
    let per_epoch = (data.train.len() / config.finetune.batch_size) as u64;
    if state.step <= per_epoch * config.finetune.epochs as u64 {
        return Ok(());
    }
    let done = state.step as f64 / per_epoch.max(1) as f64;
    let said = format!("{LENGTH} = {}: the fine-tuning has done {done:.1} epochs already", config.finetune.epochs);
    Err(Usage(said).into())
}

/// Runs one fine-tuning, from its start or its last checkpoint to its end.
fn one(
    run: &Run,
    kind: &str,
    encoder: Encoder,
    config: &Config,
    origin: &str,
    data: &Labelled,
    (stop, longer): (&Arc<AtomicBool>, bool),
) -> Result<FinetuneState> {
    let files = FinetuneFiles::new(run, kind);
    let mut state = match files.last().exists() {
        true => {
            let (state, saved) = FinetuneState::load(&files.last(), training_config)?;
            check_same(run, &state, &saved, config, origin, longer)?;
            check_length(&state, config, data)?;
            state
        }
        false => FinetuneState::new(
            Classifier::new(encoder, config, data.classes)?,
            &training_config(config),
            origin.to_string(),
            data.names.clone(),
        ),
    };
    std::fs::create_dir_all(files.dir()).with_context(|| format!("cannot create {}", files.dir().display()))?;
    let from = if kind == "random" { "random weights" } else { "the pretrained encoder" };
    say!(
        "fine-tuning from {from}: {} classes, batch {}, peak learning rate {:.2e}, step {}",
        data.classes,
        config.finetune.batch_size,
        training_config(config).train.absolute_lr(),
        state.step
    );
    match finetune(&files, config, data, &mut state, stop)? {
        Ending::Finished => Ok(state),
        Ending::Interrupted(step) => Err(Stopped::at(step, &format!(" of fine-tuning from {from}")).into()),
    }
}

/// The run's configuration with `[finetune]` overridden; all other sections stay as in pretraining.
fn settings(pretrained: &Config, set: &[String]) -> Result<Config> {
    if let Some(other) = set.iter().find(|s| !s.trim_start().starts_with("finetune.")) {
        let said = format!("--set {other}: expected a key of [finetune]; the rest is as the encoder was pretrained");
        return Err(Usage(said).into());
    }
    Ok(Config::parse(&pretrained.to_toml(), "the run's configuration", set)?)
}
