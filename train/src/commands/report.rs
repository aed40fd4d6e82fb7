//! The command `macrl-train report`: writes report.html.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use macrl_bundle::output::one_line;
use macrl_bundle::{answer, say};

use super::claim::check_file;
use super::shared::{data_dir, open_data_once};
use crate::report::{gather, is_own, write};
use crate::run::Run;

/// Arguments of `macrl-train report`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Folder of the run.
    #[arg(long)]
    run: PathBuf,
    /// Folder with the images; if not given, the one that the run was trained on.  Without images the report shows less.
    #[arg(long)]
    data: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let run = Run::new(&arguments.run);
    let path = if run.best().exists() { run.best() } else { run.last() };
    check_file(&run.report(), |path| std::fs::read(path).is_ok_and(|page| is_own(&page)))?;
    let config = macrl_nn::checkpoint::load(&path)?.config;
    let data = match data_dir(&arguments.data, &run).and_then(|dir| open_data_once(&dir, &config)) {
        Ok(data) => Some(data),
        Err(error) if arguments.data.is_some() => return Err(error),
        Err(error) => {
            say!("note: the report is written without the data: {}", one_line(error.as_ref()));
            None
        }
    };
    let written = write(run.dir(), &gather(&run, data.as_ref())?)?;
    answer!("{}", written.display());
    Ok(())
}
