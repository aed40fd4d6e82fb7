//! The command `macrl-train pretrain`: starts or resumes a run.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use macrl_bundle::config::{Config, Difference, Optimizer, Precision};
use macrl_bundle::device::Device as Choice;
use macrl_bundle::owned::RUN;
use macrl_bundle::{atomic, say};
use macrl_nn::{checkpoint, device};

use super::claim::Claim;
use super::shared::{Stopped, Usage, check_data, data_dir, open_data, path_line, stop_on_ctrl_c};
use super::{choose, enough, estimate};
use crate::data::Data;
use crate::data::identity::identity;
use crate::ending::Ending;
use crate::initial::Initial;
use crate::run::Run;
use crate::state::State;
use crate::trainer::pretrain;

/// The one key that may change when a run is resumed.
const LENGTH: &str = "train.epochs";

/// Arguments of `macrl-train pretrain`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Configuration file of the run (see configs/); if not given, one is chosen for the images and the time.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Without --config: about how long the run may take [default: 30].
    #[arg(long, value_name = "N", conflicts_with = "config")]
    minutes: Option<f64>,
    /// Images: a folder (classes and train/val/test from the names of sub-folders), CIFAR binaries, a Tiny-ImageNet tree,
    /// IDX files or Parquet; docs/data.md has the rules.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder of the run; if not given, runs/NAME for a configuration NAME.toml, or for the folder NAME of the images.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Start from these weights instead of random ones: a bundle's folder, a checkpoint, or a safetensors file of a ViT with
    /// timm's names and fixed sine-cosine positions (MAE's).  They decide [encoder], and a bundle's or checkpoint's [data] mean,
    /// std and fit.
    #[arg(long, value_name = "PATH", conflicts_with = "resume")]
    init: Option<PathBuf>,
    /// Overrides one key, for example --set train.epochs=5; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Continue where the run stopped; with --set train.epochs=N to another length (docs/runs.md).
    #[arg(long)]
    resume: bool,
    /// Where to compute: auto (a GPU where one works), cpu or cuda.
    #[arg(long, default_value = "auto", value_parser = device::parse)]
    device: Choice,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let (device, named) = device::open(arguments.device).map_err(|why| Usage(why.to_string()))?;
    let run = Run::new(&out(arguments)?);
    let initial =
        arguments.init.as_deref().map(Initial::read).transpose().map_err(|why| Usage(format!("--init: {why:#}")))?;
    let config = configuration(arguments, initial.as_ref(), &run, &device)?;
    if config.train.precision == Precision::Bf16 && device.is_cpu() {
        return Err(Usage("`train.precision` = \"bf16\" needs --device cuda; on the CPU use \"f32\"".into()).into());
    }
    let mut claim = Claim::take(run.dir(), RUN, "macrl-train pretrain")?;
    let (mut state, saved) = begin(arguments, &run, &claim, &config)?;
    if let Some(initial) = &initial {
        let encoder = initial.encoder(&config.encoder).map_err(|why| Usage(format!("--init: {why:#}")))?;
        state = State::starting_from(&config, encoder)?;
        let left = if initial.left.is_empty() { "nothing".to_string() } else { initial.left.join(", ") };
        say!(
            "--init: the encoder's {} tensors are taken; left: {left}; decoder and projector are new",
            initial.taken()
        );
    }
    let dir = match &arguments.data {
        Some(dir) => dir.clone(),
        None => data_dir(&None, &run)?,
    };
    let data = open_data(&dir, &config)?;
    check_data("--resume", &state, &data)?;
    enough::check(&data, &config)?;
    check_length(&state, &config, &data)?;
    state.data = Some(identity(&data));

    claim.mark()?;
    prepare(&run, &config, &state, saved.as_ref())?;
    let absolute = dir.canonicalize().unwrap_or(dir);
    atomic::write_file(&run.data(), &path_line(&absolute)).context("cannot write data.txt")?;
    announce(&run, &config, &named);
    estimate::announce(&config, &data, &device, state.step)?;
    let stop = stop_on_ctrl_c()?;
    match pretrain(&run, &config, &data, state, &device, &stop)? {
        Ending::Finished => {
            say!("done: {}", run.last().display());
            say!("next: macrl-train evaluate --run {}", run.dir().display());
            Ok(())
        }
        Ending::Interrupted(step) => Err(Stopped::at(step, "").into()),
    }
}

/// The folder of the run.
fn out(arguments: &Arguments) -> Result<PathBuf> {
    if let Some(out) = &arguments.out {
        return Ok(out.clone());
    }
    let data = || arguments.data.as_deref().map(|data| data.canonicalize().unwrap_or_else(|_| data.to_path_buf()));
    let named = match &arguments.config {
        Some(config) => config.file_stem().map(Into::into),
        None => data().and_then(|data| data.file_name().map(PathBuf::from)),
    };
    let missing = || Usage("expected --config FILE, or --data DIR to choose one for, found neither".into());
    Ok(PathBuf::from("runs").join(named.ok_or_else(missing)?))
}

/// The given configuration, the one of the run that is resumed, or one that suits the images.
fn configuration(
    arguments: &Arguments,
    initial: Option<&Initial>,
    run: &Run,
    device: &candle_core::Device,
) -> Result<Config> {
    let fixed = initial.map_or(&[][..], |initial| initial.settings.as_slice());
    let set = [fixed, arguments.set.as_slice()].concat();
    if let Some(file) = &arguments.config {
        return Ok(Config::load(file, &set)?);
    }
    if arguments.resume && run.config().exists() {
        let written = Config::load_resolved(&run.config())?;
        return Ok(Config::parse(&written.to_toml(), "the run's configuration", &arguments.set)?);
    }
    let minutes = arguments.minutes.unwrap_or(choose::MINUTES);
    if !(minutes > 0.0 && minutes <= 1e6) {
        return Err(Usage(format!("--minutes must be above 0, found {minutes}")).into());
    }
    let Some(dir) = &arguments.data else {
        return Err(Usage("without --config, --data DIR names the images to choose a configuration for".into()).into());
    };
    let first = Config::parse("", "the defaults", &set)?;
    let data = crate::data::open(dir, &first)?;
    let choice = choose::choose(&data, minutes, &set, device)?;
    say!("no --config: chosen for these images and {minutes} minutes");
    choice.why.iter().for_each(|why| say!("  {why}"));
    say!("  every value is in {} once the run begins", run.config().display());
    Ok(choice.config)
}

/// Prepares the run's folder, and writes the configuration.
fn prepare(run: &Run, config: &Config, state: &State, saved: Option<&Config>) -> Result<()> {
    let checkpoints = run.dir().join("checkpoints");
    std::fs::create_dir_all(&checkpoints)
        .and_then(|()| atomic::sweep(&checkpoints))
        .with_context(|| format!("cannot create {}", run.dir().display()))?;
    if let Some(saved) = saved.filter(|saved| saved.train.epochs != config.train.epochs) {
        say!(
            "train.epochs is {0} now, {1} before: from step {2} on the learning rate follows the cosine of {0} epochs",
            config.train.epochs,
            saved.train.epochs,
            state.step
        );
        // The checkpoint comes first, so that a kill leaves either the old length or the new one everywhere it is read.
        state.save(&run.last(), config)?;
    }
    // A file with the same values is kept, with its comments.
    if Config::load_resolved(&run.config()).is_ok_and(|written| written == *config) {
        return Ok(());
    }
    atomic::write_file(&run.config(), config.to_toml().as_bytes()).context("cannot write config.toml")
}

fn announce(run: &Run, config: &Config, device: &str) {
    let muon = match config.train.optimizer {
        Optimizer::Muon => format!(", of Muon {:.2e}", config.train.muon_lr),
        Optimizer::Adamw => String::new(),
    };
    say!(
        "run: {}; {device}, {} threads; batch {}, peak learning rate {:.2e} (train.lr x batch / 256){muon}",
        run.dir().display(),
        rayon::current_num_threads(),
        config.train.batch_size,
        config.train.absolute_lr()
    );
}

/// An initial state, or the run's last checkpoint with its configuration.
fn begin(arguments: &Arguments, run: &Run, claim: &Claim, config: &Config) -> Result<(State, Option<Config>)> {
    let (dir, last) = (run.dir().display(), run.last().exists());
    if !claim.is_ours() {
        let (in_the_way, earlier) = (run.in_the_way(), || last && is_earlier(run));
        if !in_the_way.is_empty() && !earlier() {
            return Err(claim.foreign(&in_the_way));
        }
    }
    if !arguments.resume {
        if claim.is_ours() || last {
            let said =
                format!("{dir} holds a run already: continue it with --resume, or name another folder with --out");
            return Err(Usage(said).into());
        }
        return Ok((State::init(config)?, None));
    }
    if !last {
        if let Some(other) = [run.best()].into_iter().chain(run.all_numbered()).find(|path| path.exists()) {
            let (last, other) = (run.last(), other.display());
            let said = format!(
                "{} is missing, and a new start would replace {other}: copy a checkpoint there",
                last.display()
            );
            return Err(Usage(said).into());
        }
        say!("nothing to resume in {dir}: starting from the beginning");
        return Ok((State::init(config)?, None));
    }
    let (state, saved) = State::load(&run.last())?;
    let explicit = arguments.set.iter().any(|set| set.trim_start().starts_with("train.epochs"));
    check_same(&saved, config, explicit, &format!("--resume: in {dir}"))?;
    check_edited(run, &saved)?;
    say!("resuming after step {}", state.step);
    Ok((state, Some(saved)))
}

/// Whether this is a run of an earlier version, which wrote no marker: checkpoint and config.toml then agree.
fn is_earlier(run: &Run) -> bool {
    let saved = checkpoint::load(&run.last()).map(|last| last.config);
    let written = Config::load_resolved(&run.config());
    matches!((saved, written), (Ok(saved), Ok(written)) if length_aside(saved.differences(&written)).is_empty())
}

/// The differences except the run's length, which may change.
fn length_aside(found: Vec<Difference>) -> Vec<Difference> {
    found.into_iter().filter(|difference| difference.key != LENGTH).collect()
}

/// A resumed run keeps its configuration; only its length may change, where that was asked for.
fn check_same(saved: &Config, config: &Config, explicit: bool, place: &str) -> Result<()> {
    let all = saved.differences(config);
    if all.is_empty() || (explicit && length_aside(all.clone()).is_empty()) {
        return Ok(());
    }
    let named: Vec<String> = all.iter().map(|d| format!("{} is {} and here {}", d.key, d.own, d.other)).collect();
    let said =
        format!("{place} {}: a run keeps its configuration; --set train.epochs=N changes its length", named.join(", "));
    Err(Usage(said).into())
}

/// config.toml documents the run.  Editing it has no effect, so an edited file is refused and not overwritten.
fn check_edited(run: &Run, saved: &Config) -> Result<()> {
    if !run.config().exists() {
        return Ok(());
    }
    let written = Config::load_resolved(&run.config())?;
    let Some(edited) = length_aside(saved.differences(&written)).into_iter().next() else { return Ok(()) };
    let said = format!(
        "{} was edited: {} is {} there and {} in the run; it only documents the run: restore it, or remove it",
        run.config().display(),
        edited.key,
        edited.other,
        edited.own
    );
    Err(Usage(said).into())
}

/// A resumed run cannot become shorter than the steps that are done.
fn check_length(state: &State, config: &Config, data: &Data) -> Result<()> {
    let per_epoch = (data.train.len() / config.train.batch_size) as u64;
    let total = per_epoch * config.train.epochs as u64;
    if state.step <= total {
        return Ok(());
    }
    let done = state.step as f64 / per_epoch.max(1) as f64;
    Err(Usage(format!("train.epochs = {}: the run has done {done:.1} epochs already", config.train.epochs)).into())
}
