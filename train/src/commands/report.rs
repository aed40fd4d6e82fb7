//! `macrl-train report`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{data_dir, open_data};
use crate::report::{gather, write};
use crate::run::Run;

/// What `report` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The run's folder.
    #[arg(long)]
    run: PathBuf,
    /// The images; where the run found them, if not given.  Without any, fewer features are shown.
    #[arg(long)]
    data: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let run = Run::new(&arguments.run);
    let path = if run.best().exists() { run.best() } else { run.last() };
    let config = macrl_models::checkpoint::load(&path)?.config;
    let data = match data_dir(&arguments.data, &run).and_then(|dir| open_data(&dir, &config)) {
        Ok(data) => Some(data),
        Err(error) if arguments.data.is_some() => return Err(error),
        Err(error) => {
            eprintln!("note: the report does without the data: {error:#}");
            None
        }
    };
    let written = write(run.dir(), &gather(&run, data.as_ref())?)?;
    println!("{}", written.display());
    Ok(())
}
