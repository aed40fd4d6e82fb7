//! An index in a folder that cannot be written, as on a read-only mount.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use macrl_serve::index::{EmbeddedIndex, Index};
use serde_json::json;

use crate::backends::*;

/// User `nobody`: root could write everywhere.
const NOBODY: u32 = 65534;

/// Runs the program as a user who may write only to `out`.
fn run(place: &Path, args: &[&str]) -> Output {
    let program = place.join("macrl-serve");
    let mut command = Command::new(&program);
    command.args(args).current_dir(place.join("out")).env("TMPDIR", place.join("out"));
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output().unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_read_only_index_is_exported_with_its_last_changes() {
    let temporary = tempfile::tempdir().unwrap();
    let place = temporary.path();
    set_mode(place, 0o755);
    fs::copy(env!("CARGO_BIN_EXE_macrl-serve"), place.join("macrl-serve")).unwrap();
    fs::create_dir(place.join("out")).unwrap();
    set_mode(&place.join("out"), 0o777);
    let dir = place.join("index # 1?");
    let index = EmbeddedIndex::open(&dir, &encoder(4), &options()).unwrap();
    fill(&index, (0..50).map(|i| item(&i.to_string(), &[1.0, i as f32, 0.0, 0.0], json!({}))).collect()).await;
    // A closed index, and one after `kill -9`, whose last changes are in the journal.
    let torn = place.join("torn");
    fs::create_dir(&torn).unwrap();
    for name in ["items.sqlite", "items.sqlite-wal"] {
        fs::copy(dir.join(name), torn.join(name)).unwrap();
    }
    assert!(fs::metadata(torn.join("items.sqlite-wal")).unwrap().len() > 0);
    drop(index);
    for folder in [&dir, &torn] {
        let names =
            || fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>();
        let before = names();
        for file in fs::read_dir(folder).unwrap() {
            set_mode(&file.unwrap().path(), 0o444);
        }
        set_mode(folder, 0o555);
        for args in [
            ["export", "--index", folder.to_str().unwrap(), "all.parquet"],
            ["backup", "--index", folder.to_str().unwrap(), "copy"],
        ] {
            let output = run(place, &args);
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success() && out.starts_with("50 items in "), "{args:?}: {out}{err}");
        }
        let (copy, _) = EmbeddedIndex::open_read_only(&place.join("out/copy")).unwrap();
        assert_eq!(copy.status().await.unwrap().items, 50);
        drop(copy);
        fs::remove_dir_all(place.join("out/copy")).unwrap();
        set_mode(folder, 0o755);
        assert_eq!(names(), before);
        let left: Vec<_> = fs::read_dir(place.join("out")).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(left, ["all.parquet"], "a temporary copy stayed");
    }
}
