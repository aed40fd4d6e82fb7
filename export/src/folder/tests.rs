use std::fs;
use std::os::unix::fs::MetadataExt;

use macrl_bundle::bundle::Provenance;
use macrl_bundle::config::Config;

use super::*;

/// Writes files that stand for a bundle's, each with its name and `version` in it.
fn write(dir: &Path, names: &[&str], version: &str) -> Result<()> {
    for name in names {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(&path, format!("{name} {version}"))?;
    }
    let provenance = Provenance { name: version.into(), ..Provenance::default() };
    bundle::write_json(&dir.join(bundle::CONFIG), &ModelConfig::new(&Config::default(), &[], provenance))?;
    Ok(())
}

/// Exports like the real one, but for the work.
fn export(dir: &Path, names: &[&str], version: &str) -> Result<(), Failure> {
    Ok(BundleFolder::claim(dir)?.fill(|at| write(at, names, version))?)
}

fn refused(dir: &Path) -> String {
    let before = content(dir);
    let failure = export(dir, &ALWAYS, "refused").unwrap_err();
    assert_eq!((failure.code(), content(dir)), (2, before), "{failure}");
    failure.to_string()
}

/// Every file below a folder with its text.
fn content(dir: &Path) -> BTreeMap<PathBuf, String> {
    let text = |path: PathBuf| (path.clone(), fs::read_to_string(dir.join(path)).unwrap());
    files_below(dir).unwrap().into_iter().map(text).collect()
}

fn text(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

const WITH_PROBE: [&str; 7] = [
    bundle::CONFIG,
    bundle::WEIGHTS,
    bundle::PREPROCESSOR,
    bundle::ONNX,
    bundle::PARITY,
    bundle::README,
    bundle::PROBE,
];

#[test]
fn files_of_somebodys_outlive_every_export() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("bundle");
    export(&dir, &WITH_PROBE, "1").unwrap();
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    fs::create_dir(dir.join(".git")).unwrap();
    let theirs = [".git/HEAD", "notes.md", "onnx/mine.onnx"];
    theirs.iter().for_each(|name| fs::write(dir.join(name), name).unwrap());
    let inode = fs::metadata(&dir).unwrap().ino();
    export(&dir, &ALWAYS, "2").unwrap();
    assert_eq!(text(&dir, bundle::WEIGHTS), "model.safetensors 2");
    // What the new one does not have is gone; the folder itself is the same one: it may be where a disk is mounted.
    assert!(!dir.join(bundle::PROBE).exists() && !dir.join(bundle::README).exists());
    assert_eq!(fs::metadata(&dir).unwrap().ino(), inode);
    theirs.iter().for_each(|name| assert_eq!(text(&dir, name), *name));
    let ours = Marker::read(&dir).unwrap().unwrap().files;
    assert_eq!(ours.keys().collect::<Vec<_>>(), {
        let mut names = ALWAYS.to_vec();
        names.sort_unstable();
        names
    });
    assert_eq!(content(&dir).len(), theirs.len() + ours.len() + 1);
}

#[test]
fn an_empty_folder_is_used_whatever_is_hidden_in_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("lost+found")).unwrap();
    fs::create_dir_all(dir.path().join(".git")).unwrap();
    fs::write(dir.path().join(".git/HEAD"), "ref").unwrap();
    export(dir.path(), &ALWAYS, "1").unwrap();
    assert_eq!(
        (text(dir.path(), ".git/HEAD"), text(dir.path(), bundle::ONNX)),
        ("ref".into(), "onnx/model.onnx 1".into())
    );
    assert!(dir.path().join("lost+found").is_dir());
}

#[test]
fn what_we_did_not_write_is_not_replaced() {
    let place = tempfile::tempdir().unwrap();
    // A model of somebody's, as Hugging Face's hub has them.
    let model = place.path().join("model");
    write(&model, &[bundle::WEIGHTS, bundle::PREPROCESSOR, "notes.txt"], "theirs").unwrap();
    assert!(refused(&model).contains("found a folder with something else in it"));
    // One of our names, beside a bundle that does not have it.
    let dir = place.path().join("bundle");
    export(&dir, &ALWAYS, "1").unwrap();
    fs::write(dir.join(bundle::PROBE), "mine").unwrap();
    assert!(refused(&dir).contains("found a probe.safetensors that macrl-export did not write"));
    fs::remove_file(dir.join(bundle::PROBE)).unwrap();
    // A file of ours that was edited.
    fs::write(dir.join(bundle::PARITY), "edited").unwrap();
    assert!(refused(&dir).contains("found that parity.json was changed since macrl-export wrote it"));
    fs::remove_file(dir.join(bundle::PARITY)).unwrap();
    export(&dir, &ALWAYS, "2").unwrap();
    assert_eq!(text(&dir, bundle::PARITY), "parity.json 2");
    // A run, a file, and a marker that is none.
    let run = place.path().join("run");
    fs::create_dir(&run).unwrap();
    Marker::new("run", "macrl-train").write(&run).unwrap();
    assert!(refused(&run).contains("the folder of a run"));
    fs::write(run.join(MARKER), "my notes").unwrap();
    assert!(refused(&run).contains("a .macrl.json that macrl did not write"));
    let file = place.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(export(&file, &ALWAYS, "1").unwrap_err().to_string().contains("found a file"));
}

#[test]
fn a_bundle_of_an_earlier_version_is_known_by_its_names_alone() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("bundle");
    write(&dir, &WITH_PROBE, "old").unwrap();
    fs::write(dir.join("notes.md"), "mine").unwrap();
    assert!(refused(&dir).contains("something else in it"));
    fs::remove_file(dir.join("notes.md")).unwrap();
    fs::remove_file(dir.join(bundle::PARITY)).unwrap();
    assert!(refused(&dir).contains("something else in it"));
    fs::write(dir.join(bundle::PARITY), "").unwrap();
    export(&dir, &ALWAYS, "new").unwrap();
    assert!(text(&dir, bundle::WEIGHTS).ends_with("new") && !dir.join(bundle::PROBE).exists());
}

#[test]
fn a_kill_at_any_moment_leaves_the_old_one_or_the_new_one_to_be_finished() {
    let place = tempfile::tempdir().unwrap();
    for moved in 0..=ALWAYS.len() + 1 {
        let dir = place.path().join(moved.to_string());
        export(&dir, &WITH_PROBE, "old").unwrap();
        // Killed while it was made.
        fs::create_dir(dir.join(NEW)).unwrap();
        fs::write(dir.join(NEW).join(bundle::WEIGHTS), "half").unwrap();
        drop(BundleFolder::claim(&dir).unwrap());
        assert_eq!(text(&dir, bundle::WEIGHTS), "model.safetensors old");
        // Killed after so many moves.
        remove(&dir.join(NEW)).unwrap();
        fs::create_dir(dir.join(NEW)).unwrap();
        write(&dir.join(NEW), &ALWAYS, "new").unwrap();
        marker(&dir.join(NEW)).unwrap().write(&dir.join(NEW)).unwrap();
        commit(&dir, &old_files(&dir).unwrap()).unwrap();
        for name in ALWAYS.iter().take(moved) {
            fs::rename(dir.join(COMMIT).join(name), dir.join(name)).unwrap();
        }
        if moved > ALWAYS.len() {
            fs::remove_file(dir.join(bundle::PROBE)).unwrap();
        }
        let told = macrl_bundle::bundle::Bundle::open(&dir).unwrap_err().to_string();
        assert!(told.contains("is half replaced") && told.contains("`macrl-export bundle "), "{told}");
        drop(BundleFolder::claim(&dir).unwrap());
        let expected = place.path().join("expected");
        remove(&expected).unwrap();
        export(&expected, &ALWAYS, "new").unwrap();
        assert_eq!(content(&dir), content(&expected), "killed after {moved} moves");
    }
}

#[test]
fn two_exports_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let first = BundleFolder::claim(dir.path()).unwrap();
    assert!(refused(dir.path()).contains(&format!("is being written by process {}", std::process::id())));
    first.fill(|at| write(at, &ALWAYS, "1")).unwrap();
    export(dir.path(), &ALWAYS, "2").unwrap();
    let failed = BundleFolder::claim(dir.path()).unwrap().fill(|at| {
        write(at, &ALWAYS, "3")?;
        anyhow::bail!("stop")
    });
    let left: Result<()> = failed;
    assert_eq!(
        (left.unwrap_err().to_string(), text(dir.path(), bundle::WEIGHTS)),
        ("stop".into(), "model.safetensors 2".into())
    );
    assert!(!dir.path().join(NEW).exists());
}
