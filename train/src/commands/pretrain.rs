//! `macrl-train pretrain`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use macrl_models::atomic;
use macrl_models::config::{Config, Optimizer, Precision};
use macrl_models::device;
use macrl_models::runtime::Device as Choice;

use super::{Usage, check_data, open_data, stop_on_ctrl_c};
use crate::data::identity::identity;
use crate::run::Run;
use crate::state::State;
use crate::trainer::{Ending, pretrain};

/// What `pretrain` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The run's configuration (see configs/).
    #[arg(long)]
    config: PathBuf,
    /// Images: a folder, CIFAR binaries, a Tiny-ImageNet tree, IDX files or Parquet.
    #[arg(long)]
    data: Option<PathBuf>,
    /// The run's folder; runs/NAME of the configuration file where not given.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Overrides one key, for example --set train.epochs=5; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Go on where the run stopped.
    #[arg(long)]
    resume: bool,
    /// Where to compute: auto (a GPU where one works), cpu or cuda.
    #[arg(long, default_value = "auto", value_parser = device::parse)]
    device: Choice,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let (device, named) = device::open(arguments.device).map_err(|why| Usage(why.to_string()))?;
    let config = Config::load(&arguments.config, &arguments.set)?;
    if config.train.precision == Precision::Bf16 && device.is_cpu() {
        return Err(Usage("`train.precision` = \"bf16\" needs --device cuda; on the CPU use \"f32\"".into()).into());
    }
    let run = Run::new(
        &arguments
            .out
            .clone()
            .unwrap_or_else(|| PathBuf::from("runs").join(arguments.config.file_stem().unwrap_or_default())),
    );
    let (mut state, config) = start(arguments, &run, config)?;
    let dir = match &arguments.data {
        Some(dir) => dir.clone(),
        None => super::data_dir(&None, &run)?,
    };
    let data = open_data(&dir, &config)?;
    check_data("--resume", &state, &data)?;
    state.data = Some(identity(&data));

    let checkpoints = run.dir().join("checkpoints");
    std::fs::create_dir_all(&checkpoints)
        .and_then(|()| atomic::sweep(&checkpoints))
        .with_context(|| format!("cannot create {}", run.dir().display()))?;
    atomic::write_file(&run.config(), config.to_toml().as_bytes()).context("cannot write config.toml")?;
    let absolute = dir.canonicalize().unwrap_or(dir);
    atomic::write_file(&run.data(), absolute.display().to_string().as_bytes()).context("cannot write data.txt")?;
    let muon = match config.train.optimizer {
        Optimizer::Muon => format!(", of Muon {:.2e}", config.train.muon_lr),
        Optimizer::Adamw => String::new(),
    };
    eprintln!(
        "run: {}; {named}, {} threads; batch {}, peak learning rate {:.2e} (train.lr x batch / 256){muon}",
        run.dir().display(),
        rayon::current_num_threads(),
        config.train.batch_size,
        config.train.absolute_lr()
    );

    let stop = stop_on_ctrl_c()?;
    match pretrain(&run, &config, &data, state, &device, &stop)? {
        Ending::Finished => {
            eprintln!("done: {}", run.last().display());
            Ok(())
        }
        Ending::Interrupted(step) => bail!("stopped at step {step}; the state is saved, go on with --resume"),
    }
}

/// A fresh state, or the run's last one.
fn start(arguments: &Arguments, run: &Run, config: Config) -> Result<(State, Config)> {
    if !arguments.resume {
        if run.last().exists() {
            let message =
                format!("{} holds a run already: --resume goes on with it, --out names another", run.dir().display());
            return Err(Usage(message).into());
        }
        return Ok((State::init(&config)?, config));
    }
    if !run.last().exists() {
        eprintln!("nothing to resume in {}: starting from the beginning", run.dir().display());
        return Ok((State::init(&config)?, config));
    }
    let (state, saved) = State::load(&run.last())?;
    ensure!(
        saved.same_run(&config),
        Usage(format!("--resume: the configuration is not the run's own, which is in {}", run.config().display()))
    );
    eprintln!("resuming after step {}", state.step);
    Ok((state, config))
}
