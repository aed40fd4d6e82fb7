//! Folders, pipes and signals with the real binaries: files of the user are kept, a run has one writer, a closed pipe
//! does not end a command, and a run is resumed with its own configuration.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use macrl::{binary, fail, root, run, succeed, write_config, write_idx};
use serde_json::Value;

struct Workspace {
    dir: tempfile::TempDir,
}

impl Workspace {
    fn new() -> Self {
        let workspace = Workspace { dir: tempfile::tempdir().unwrap() };
        write_idx(&workspace.path("data"), 96, 16);
        write_config(&workspace.path("run.toml"));
        workspace
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Arguments of `pretrain` into `out` for two epochs (of 6 steps), followed by `more`.
    fn arguments(&self, out: &str, more: &[&str]) -> Vec<String> {
        let (config, data, out) = (self.text("run.toml"), self.text("data"), self.text(out));
        let fixed = ["pretrain", "--config", &config, "--data", &data, "--out", &out, "--set", "train.epochs=2"];
        fixed.iter().chain(more).map(|argument| argument.to_string()).collect()
    }

    fn pretrain(&self, out: &str, more: &[&str]) -> String {
        let arguments = self.arguments(out, more);
        let output = run("macrl-train", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    #[track_caller]
    fn refused(&self, out: &str, more: &[&str], hint: &str) {
        let arguments = self.arguments(out, more);
        fail("macrl-train", &arguments.iter().map(String::as_str).collect::<Vec<_>>(), 2, hint);
    }

    /// (step, value of `key`) of every line in metrics.jsonl that has both.
    fn metrics(&self, out: &str, key: &str) -> Vec<(u64, f64)> {
        let text = fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|line| Some((line["step"].as_u64()?, line[key].as_f64()?))).collect()
    }
}

/// Waits until a condition holds, while the process runs.
fn wait_until(child: &mut Child, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(child.try_wait().unwrap().is_none(), "the process has ended");
        assert!(start.elapsed() < Duration::from_secs(120), "the condition did not hold within 120 s");
        sleep(Duration::from_millis(5));
    }
}

/// Paths and contents of all files below a folder.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut found, mut open) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => found.push((path.clone(), fs::read(path).unwrap())),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn files_of_the_user_are_not_overwritten() {
    let workspace = Workspace::new();
    for (out, file) in [
        ("own-config", "config.toml"),
        ("own-metrics", "metrics.jsonl"),
        ("own-best", "checkpoints/best.safetensors"),
        ("own-last", "checkpoints/last.safetensors"),
        ("own-step", "checkpoints/step-00000006.safetensors"),
    ] {
        let path = workspace.path(out).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "mine").unwrap();
        let before = content(&workspace.path(out));
        for more in [&[][..], &["--resume"]] {
            let hint =
                format!("holds files that macrl-train did not write and would overwrite ({file}): move them away");
            workspace.refused(out, more, &hint);
            assert_eq!(content(&workspace.path(out)), before);
        }
    }
    // Other files of the user in the folder are kept.
    fs::create_dir_all(workspace.path("run/checkpoints")).unwrap();
    let theirs = ["notes.txt", "checkpoints/step-keep.safetensors", "checkpoints/.notes.tmp-today"];
    theirs.iter().for_each(|name| fs::write(workspace.path("run").join(name), "mine").unwrap());
    workspace.pretrain("run", &["--set", "train.keep_checkpoints=1"]);
    for name in theirs {
        assert_eq!(fs::read_to_string(workspace.path("run").join(name)).unwrap(), "mine", "{name}");
    }
    // Files with the names of results are not overwritten either.
    let run_dir = workspace.text("run");
    for (command, file) in
        [("evaluate", "evaluation.json"), ("evaluate", "probe.safetensors"), ("report", "report.html")]
    {
        fs::write(workspace.path("run").join(file), "mine").unwrap();
        let hint = format!("{file} exists and was not written by macrl-train: move it away");
        fail("macrl-train", &[command, "--run", &run_dir], 2, &hint);
        assert_eq!(fs::read_to_string(workspace.path("run").join(file)).unwrap(), "mine");
        fs::remove_file(workspace.path("run").join(file)).unwrap();
    }
    for _ in 0..2 {
        succeed("macrl-train", &["evaluate", "--run", &run_dir]);
        succeed("macrl-train", &["report", "--run", &run_dir]);
    }
    // Nor are files in a folder of features or of images.
    let features = workspace.path("features");
    fs::create_dir(&features).unwrap();
    fs::write(features.join("random-test-labels.npy"), "mine").unwrap();
    let evaluate = ["evaluate", "--run", &run_dir, "--features-out", &workspace.text("features")];
    fail("macrl-train", &evaluate, 2, "would overwrite (random-test-labels.npy)");
    assert_eq!(content(&features).len(), 1);
    fs::remove_file(features.join("random-test-labels.npy")).unwrap();
    for _ in 0..2 {
        succeed("macrl-train", &evaluate);
    }
    let images = workspace.text("images");
    let unpack = |split: &str| {
        ["unpack", "--data", &workspace.text("data"), "--split", split, "--out", &images].map(String::from)
    };
    for _ in 0..2 {
        succeed("macrl-train", &unpack("test").each_ref().map(String::as_str));
    }
    let before = content(&workspace.path("images"));
    fail("macrl-train", &unpack("train").each_ref().map(String::as_str), 1, "exists with other content");
    assert!(before.iter().all(|(path, bytes)| fs::read(path).unwrap() == *bytes));
}

#[test]
fn a_started_run_is_resumed_or_refused() {
    let workspace = Workspace::new();
    workspace.pretrain("run", &[]);
    workspace.refused("run", &[], "holds a run already: continue it with --resume, or name another folder with --out");
    workspace.refused(
        "run",
        &["--resume", "--set", "train.lr=1"],
        "train.lr is 0.01 and here 1.0: a run keeps its configuration",
    );
    let config = workspace.path("run/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("lr = 0.01", "lr = 0.5")).unwrap();
    workspace.refused("run", &["--resume"], "was edited: train.lr is 0.5 there and 0.01 in the run");
    let with_notes = format!("# my notes\n{text}");
    fs::write(&config, &with_notes).unwrap();
    workspace.pretrain("run", &["--resume"]);
    assert_eq!(fs::read_to_string(&config).unwrap(), with_notes);
    // Without its last checkpoint a run cannot continue, and its other files are not replaced.
    fs::rename(workspace.path("run/checkpoints/last.safetensors"), workspace.path("last")).unwrap();
    workspace.refused("run", &[], "holds a run already");
    workspace.refused("run", &["--resume"], "last.safetensors is missing, and a new start would replace");
    fs::rename(workspace.path("last"), workspace.path("run/checkpoints/last.safetensors")).unwrap();
    // A run of an earlier version has no marker.
    fs::remove_file(workspace.path("run/.macrl.json")).unwrap();
    workspace.refused("run", &[], "holds a run already");
    workspace.pretrain("run", &["--resume"]);
    assert!(workspace.path("run/.macrl.json").exists());
    // A folder that was created for a run that did not start is removed.
    workspace.refused("none/such", &["--set", "train.batch_size=128"], "96 training images are too few: at least 128");
    assert!(!workspace.path("none").exists());
}

#[test]
fn a_run_has_one_writer_and_an_interruption_is_no_error() {
    let workspace = Workspace::new();
    let more = ["--set", "train.epochs=100000", "--set", "evaluate.every_epochs=0"];
    let mut first = Command::new(binary("macrl-train"));
    first.args(workspace.arguments("run", &more)).stderr(Stdio::piped());
    let mut first = first.spawn().unwrap();
    let metrics = workspace.path("run/metrics.jsonl");
    wait_until(&mut first, || fs::metadata(&metrics).is_ok_and(|m| m.len() > 0));
    let holder = format!("is being written by process {}", first.id());
    for resume in [&[][..], &["--resume"]] {
        workspace.refused("run", &[&more[..], resume].concat(), &holder);
    }
    assert!(Command::new("kill").args(["-INT", &first.id().to_string()]).status().unwrap().success());
    let mut said = String::new();
    first.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(1));
    let last = said.lines().last().unwrap();
    assert!(
        last.starts_with("stopped after step ")
            && last.ends_with("; the state is saved; --resume continues from there"),
        "{said}"
    );
    assert!(!said.contains("error"), "{said}");
    assert!(said.contains("stopping after this step"), "{said}");
    let step = workspace.metrics("run", "loss").last().unwrap().0;
    assert!(last.contains(&format!("step {step};")), "{last}, logged {step}");
}

#[test]
fn a_closed_pipe_does_not_end_a_command() {
    let workspace = Workspace::new();
    // The reading ends of stdout and stderr are closed before the command writes anything.
    let without_reader = |name: &str, arguments: &[String]| {
        let mut command = Command::new(binary(name));
        command.args(arguments).current_dir(root()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        child.wait().unwrap().code()
    };
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    for name in ["macrl-train", "macrl-export", "macrl-serve"] {
        assert_eq!(without_reader(name, &words(&["--help"])), Some(0), "{name} --help");
        assert_eq!(without_reader(name, &words(&["--version"])), Some(0), "{name} --version");
        assert_eq!(without_reader(name, &words(&["--no-such-thing"])), Some(2), "{name} with a mistake");
    }
    assert_eq!(without_reader("macrl-train", &workspace.arguments("run", &[])), Some(0));
    assert_eq!(workspace.metrics("run", "loss").last().unwrap().0, 12);
    let run_dir = workspace.text("run");
    for command in ["evaluate", "report"] {
        assert_eq!(without_reader("macrl-train", &words(&[command, "--run", &run_dir])), Some(0), "{command}");
    }
    assert!(workspace.path("run/evaluation.json").exists() && workspace.path("run/report.html").exists());
    let bundle = workspace.text("bundle");
    assert_eq!(without_reader("macrl-export", &words(&["bundle", &bundle, "--run", &run_dir])), Some(0));
    assert!(workspace.path("bundle/config.json").exists());
}

#[test]
fn a_run_is_extended_along_the_cosine_of_its_new_length() {
    let workspace = Workspace::new();
    workspace.pretrain("whole", &["--set", "train.epochs=5"]);
    workspace.pretrain("run", &["--set", "train.epochs=2"]);
    let said = workspace.pretrain("run", &["--resume", "--set", "train.epochs=5"]);
    let hint = "train.epochs is 5 now, 2 before: from step 12 on the learning rate follows the cosine of 5 epochs";
    assert!(said.contains(hint), "{said}");
    let (whole, extended) = (workspace.metrics("whole", "lr"), workspace.metrics("run", "lr"));
    assert_eq!((whole.len(), extended.len()), (30, 30));
    assert_eq!(extended[12..], whole[12..]);
    assert!(extended[11].1 < extended[12].1 && extended[29].1 < 0.1 * extended[12].1);
    // The new length is part of the run's configuration from now on; only --set changes it.
    workspace.pretrain("run", &["--resume", "--set", "train.epochs=5"]);
    assert!(fs::read_to_string(workspace.path("run/config.toml")).unwrap().contains("epochs = 5"));
    fs::write(workspace.path("two.toml"), fs::read_to_string(workspace.path("run.toml")).unwrap()).unwrap();
    let (config, out) = (workspace.text("two.toml"), workspace.text("run"));
    let arguments = ["pretrain", "--config", &config, "--out", &out, "--resume"];
    fail(
        "macrl-train",
        &arguments,
        2,
        "train.epochs is 5 and here 6: a run keeps its configuration; --set train.epochs=N",
    );
    workspace.refused(
        "run",
        &["--resume", "--set", "train.epochs=3"],
        "train.epochs = 3: the run has done 5.0 epochs already",
    );
    succeed("macrl-train", &[&arguments[..], &["--set", "train.epochs=7"]].concat());
    assert_eq!(workspace.metrics("run", "lr").len(), 42);
}

#[test]
fn messages_name_the_cause() {
    let workspace = Workspace::new();
    workspace.refused("out", &["--set", "epochs=5"], "unknown key `epochs` in --set; did you mean `train.epochs`");
    fail("macrl-train", &["pretrain", "--config", "none.toml"], 2, "cannot read the configuration none.toml");
    let output = run("macrl-train", &["pretrain", "--config", "none.toml"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("os error 2").count(), 1, "{said}");
    for arguments in [&["evaluate", "--run", "none"][..], &["report", "--run", "none"], &["finetune", "--run", "none"]]
    {
        let said = String::from_utf8_lossy(&run("macrl-train", arguments).stderr).into_owned();
        assert!(said.matches("os error 2").count() == 1 && said.lines().count() == 1, "{said}");
    }
    // 20 images: one tenth is held out, and the rest is smaller than a batch.
    fs::create_dir(workspace.path("photos")).unwrap();
    for i in 0..20u8 {
        let pixels: Vec<u8> = (0..16 * 16 * 3).map(|p| (p as u8).wrapping_mul(i)).collect();
        fs::write(workspace.path("photos").join(format!("{i}.ppm")), [b"P6\n16 16\n255\n", &pixels[..]].concat())
            .unwrap();
    }
    let photos = workspace.text("photos");
    let more = ["--data", &photos, "--set", "train.batch_size=32"];
    let config = workspace.text("run.toml");
    let arguments = [&["pretrain", "--config", &config, "--out", "nowhere"][..], &more].concat();
    fail("macrl-train", &arguments, 2, "20 images are too few: at least 35 are needed");
    // Each progress line shows the remaining time, except the last.
    let said = workspace.pretrain("run", &[]);
    let steps: Vec<&str> = said.lines().filter(|line| line.starts_with("step ")).collect();
    assert!(steps.len() >= 2 && steps[0].ends_with(" left"), "{said}");
    assert!(steps.last().unwrap().ends_with("images/s") && !said.contains("ns left"), "{said}");
}
