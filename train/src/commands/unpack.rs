//! The command `macrl-train unpack`: writes a data set's images as PNG files.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use macrl_bundle::config::Config;
use macrl_bundle::say;

use super::shared::open_data;
use crate::data::unpack::unpack;

/// Arguments of `macrl-train unpack`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Folder with the images, in any format that is read.
    #[arg(long)]
    data: PathBuf,
    /// Split to write: train or test.
    #[arg(long, value_enum, default_value = "test")]
    split: Split,
    /// Images of each class at most; 0: all.
    #[arg(long, default_value_t = 0)]
    per_class: usize,
    /// Folder for the class sub-folders.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Split {
    Train,
    Test,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let data = open_data(&arguments.data, &Config::default())?;
    let split = match arguments.split {
        Split::Train => &data.train,
        Split::Test => data.test.as_ref().context("the data has no test split")?,
    };
    let (written, unreadable) = unpack(split.as_ref(), &data.classes, arguments.per_class, &arguments.out)?;
    unreadable.iter().for_each(|why| say!("left out {why}"));
    say!("{written} images in {}", arguments.out.display());
    Ok(())
}
