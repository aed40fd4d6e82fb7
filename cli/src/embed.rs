//! `macrl embed`: images -> a file of embeddings, through an index in a temporary folder.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use macrl_bundle::{answer, say};

use crate::programs::{Ended, Scratch, Usage, quietly, run as start};
use crate::table;

/// Arguments of `macrl embed`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Folder of the bundle, for example models/pretrained/cifar10.
    bundle: PathBuf,
    /// A folder of images; a folder or file of Parquet, CIFAR or IDX data; a .tar, .tar.gz or .tgz file.
    source: PathBuf,
    /// OUT.parquet (id, vector, metadata), OUT.npy with OUT.jsonl beside it, or OUT.csv.
    out: PathBuf,
    /// Precision of the matrix products: f32, int8 or auto.
    #[arg(long, default_value = "f32")]
    precision: String,
}

/// Endings of files that `macrl-train` reads and that are no images.
const DATA: [&str; 3] = [".parquet", ".bin", "-ubyte"];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let ending = arguments.out.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if !["parquet", "npy", "csv"].contains(&ending) {
        let said = format!("expected OUT.parquet, OUT.npy or OUT.csv, found {}", arguments.out.display());
        return Err(Usage(said).into());
    }
    if ending == "csv" && arguments.out.exists() {
        return Err(Usage(format!("{} exists: name another file", arguments.out.display())).into());
    }
    let scratch = Scratch::new()?;
    let images = images(&arguments.source, &scratch)?;
    let index = scratch.path().join("index");
    let path = |path: &Path| path.as_os_str().to_os_string();
    let ingest: [OsString; 10] = [
        "ingest".into(),
        "--bundle".into(),
        path(&arguments.bundle),
        "--index".into(),
        path(&index),
        "--precision".into(),
        (&arguments.precision).into(),
        "--source".into(),
        path(&arguments.source),
        path(&images),
    ];
    // Some images may have been refused: the others are written all the same, and the exit code says that some are missing.
    let stored = start("macrl-serve", ingest);
    if stored.as_ref().is_err_and(|why| why.downcast_ref::<Ended>().is_none_or(|ended| ended.0 != 1)) || !index.is_dir()
    {
        return stored;
    }
    let out = if ending == "csv" { scratch.path().join("rows.npy") } else { arguments.out.clone() };
    let export: [OsString; 5] = ["export".into(), "--index".into(), path(&index), "--no-pictures".into(), path(&out)];
    let written = if ending == "csv" { quietly("macrl-serve", export) } else { start("macrl-serve", export) };
    written?;
    if ending == "csv" {
        let rows = table::csv(&out, &out.with_extension("jsonl"), &arguments.out)?;
        answer!("{rows} items in {}", arguments.out.display());
    }
    if stored.is_err() {
        say!("note: some images were refused; {} holds the others", arguments.out.display());
    }
    stored
}

/// A folder with the images: the source itself, or a copy of what it holds.
fn images(source: &Path, scratch: &Scratch) -> Result<PathBuf> {
    let name = source.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let place = scratch.path().join("images");
    if source.is_file() && [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending)) {
        std::fs::create_dir(&place)?;
        say!("unpacking {}", source.display());
        let done = Command::new("tar").arg("-xf").arg(source).arg("-C").arg(&place).status();
        ensure!(done.context("cannot start tar")?.success(), "tar has not unpacked {}", source.display());
        return Ok(place);
    }
    if source.is_file() && is_data(&name) {
        let folder = scratch.path().join("data");
        std::fs::create_dir(&folder)?;
        let full = source.canonicalize()?;
        std::os::unix::fs::symlink(full, folder.join(source.file_name().unwrap_or_default()))?;
        return unpack(&folder, &place);
    }
    if !source.is_dir() {
        let said = format!("expected a folder of images, Parquet files or a tar archive at {}", source.display());
        return Err(Usage(said).into());
    }
    match holds_data(source) {
        true => unpack(source, &place),
        false => Ok(source.to_path_buf()),
    }
}

fn is_data(name: &str) -> bool {
    DATA.iter().any(|ending| name.ends_with(ending) || name.strip_suffix(".gz").is_some_and(|n| n.ends_with(ending)))
}

/// Whether a folder, or its sub-folder `data`, holds files of data.
fn holds_data(folder: &Path) -> bool {
    [folder.to_path_buf(), folder.join("data")].iter().any(|folder| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| is_data(&entry.file_name().to_string_lossy().to_lowercase()))
    })
}

/// Writes both splits as PNG files.
fn unpack(source: &Path, place: &Path) -> Result<PathBuf> {
    for split in ["train", "test"] {
        let arguments: [OsString; 7] = [
            "unpack".into(),
            "--data".into(),
            source.into(),
            "--split".into(),
            split.into(),
            "--out".into(),
            place.join(split).into(),
        ];
        start("macrl-train", arguments)?;
    }
    Ok(place.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_files_are_told_from_images() {
        assert!(["train-0.parquet", "data_batch_1.bin", "t10k-images-idx3-ubyte.gz"].iter().all(|name| is_data(name)));
        assert!(!["a.png", "b.jpg", "notes.txt"].iter().any(|name| is_data(name)));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.png"), "").unwrap();
        assert!(!holds_data(dir.path()));
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::fs::write(dir.path().join("data/x.parquet"), "").unwrap();
        assert!(holds_data(dir.path()));
    }

    #[test]
    fn what_is_no_source_is_refused() {
        let scratch = Scratch::new().unwrap();
        let why = images(Path::new("/nowhere"), &scratch).unwrap_err();
        assert!(why.is::<Usage>() && why.to_string().contains("at /nowhere"), "{why}");
        let place = scratch.path().to_path_buf();
        drop(scratch);
        assert!(!place.exists());
    }
}
