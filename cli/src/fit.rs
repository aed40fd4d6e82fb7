//! `macrl fit`: from images to a bundle that can be served.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use macrl_bundle::owned::{Marker, RUN};
use macrl_bundle::say;

use crate::programs::{Usage, run as start};

/// Arguments of `macrl fit`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Images: a folder (sub-folders are labels), CIFAR binaries, IDX files or Parquet; docs/data.md has the rules.
    data: PathBuf,
    /// Folder of the run [default: runs/NAME for images in a folder NAME].
    #[arg(long)]
    out: Option<PathBuf>,
    /// About how long pretraining may take.
    #[arg(long, value_name = "N", default_value_t = 30.0)]
    minutes: f64,
    /// Overrides one key of the chosen configuration, for example --set train.epochs=5; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Do not ask whether to serve the result.
    #[arg(long)]
    no_serve: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => PathBuf::from("runs").join(name_of(&arguments.data)?),
    };
    let bundle = out.join("bundle");
    say!("1 of 3: pretraining, into {}", out.display());
    start("macrl-train", pretraining(arguments, &out)?)?;
    say!("2 of 3: evaluation");
    start("macrl-train", ["evaluate".into(), "--run".into(), out.clone().into_os_string()])?;
    say!("3 of 3: export");
    start(
        "macrl-export",
        ["bundle".into(), bundle.clone().into_os_string(), "--run".into(), out.clone().into_os_string()],
    )?;
    offer(&bundle, &out.join("index"), &arguments.data, arguments.no_serve)
}

/// Arguments that begin the run, or continue it where it was stopped.
fn pretraining(arguments: &Arguments, out: &Path) -> Result<Vec<std::ffi::OsString>> {
    let mut list: Vec<std::ffi::OsString> = vec!["pretrain".into(), "--data".into(), (&arguments.data).into()];
    list.extend(["--out".into(), out.into()]);
    let begun = Marker::read(out)?.is_some_and(|marker| marker.kind == RUN);
    match begun {
        true => list.push("--resume".into()),
        false => list.extend(["--minutes".into(), arguments.minutes.to_string().into()]),
    }
    arguments.set.iter().for_each(|set| list.extend(["--set".into(), set.into()]));
    Ok(list)
}

fn name_of(data: &Path) -> Result<PathBuf> {
    let full = data.canonicalize().map_err(|why| Usage(format!("cannot read {}: {why}", data.display())))?;
    let name = full.file_name().map(PathBuf::from);
    name.ok_or_else(|| Usage(format!("{} has no name: give --out DIR", data.display())).into())
}

/// Asks on a terminal; otherwise names the commands.
fn offer(bundle: &Path, index: &Path, data: &Path, quiet: bool) -> Result<()> {
    let (bundle_text, index_text) = (bundle.display(), index.display());
    let asked = !quiet && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if asked && yes("Serve it now at http://127.0.0.1:8080, with its search page? [Y/n] ") {
        let ingest = ["ingest".into(), "--bundle".into(), bundle.into(), "--index".into(), index.into(), data.into()];
        start::<std::ffi::OsString>("macrl-serve", ingest)?;
        say!("http://127.0.0.1:8080 is the search page; Ctrl-C ends the server");
        return start::<std::ffi::OsString>(
            "macrl-serve",
            ["--bundle".into(), bundle.into(), "--index".into(), index.into()],
        );
    }
    say!("next: macrl-serve ingest --bundle {bundle_text} --index {index_text} {}", data.display());
    say!("      macrl-serve --bundle {bundle_text} --index {index_text}");
    say!("  or: macrl embed {bundle_text} {} embeddings.parquet", data.display());
    Ok(())
}

fn yes(question: &str) -> bool {
    let mut answer = String::new();
    let asked = std::io::stderr().write_all(question.as_bytes()).and_then(|()| std::io::stdin().read_line(&mut answer));
    asked.is_ok_and(|read| read > 0) && !answer.trim().to_lowercase().starts_with('n')
}
