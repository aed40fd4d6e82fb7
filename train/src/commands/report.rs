//! The command `macrl-train report`: writes report.html.

use anyhow::Result;
use clap::Args;
use macrl_bundle::output::one_line;
use macrl_bundle::{answer, say};

use super::claim::check_file;
use super::shared::{RunArguments, open_data_once};
use crate::report::{gather, is_own, write};

/// Arguments of `macrl-train report`.  Without images the report shows less.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    source: RunArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let run = arguments.source.run();
    let path = if run.best().exists() { run.best() } else { run.last() };
    check_file(&run.report(), |path| std::fs::read(path).is_ok_and(|page| is_own(&page)))?;
    let config = macrl_nn::checkpoint::load(&path)?.config;
    let data = match arguments.source.data_dir().and_then(|dir| open_data_once(&dir, &config)) {
        Ok(data) => Some(data),
        Err(error) if arguments.source.data.is_some() => return Err(error),
        Err(error) => {
            say!("note: the report is written without the data: {}", one_line(error.as_ref()));
            None
        }
    };
    let written = write(run.dir(), &gather(&run, data.as_ref())?)?;
    answer!("{}", written.display());
    Ok(())
}
