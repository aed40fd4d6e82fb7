//! Directory trees like those of real data sets, created by each test.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::arrange::of_paths;
use super::*;

struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn of(files: &[&str]) -> Self {
        let tree = Tree { dir: tempfile::tempdir().unwrap() };
        files.iter().for_each(|file| tree.write(Path::new(file)));
        tree
    }

    fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, file: &Path) {
        fs::create_dir_all(self.at(file).parent().unwrap()).unwrap();
        fs::write(self.at(file), b"image").unwrap();
    }

    fn walk(&self) -> Walk {
        walk(self.dir.path()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.walk().images.iter().map(|i| text(i.relative())).collect()
    }
}

#[test]
fn links_cause_neither_loops_nor_duplicates() {
    let tree = Tree::of(&["set/a/1.png", "set/b/2.png", "else/c/3.png", "else/c/4.png"]);
    let set = tree.at("set");
    let links = [
        (".", "all"),
        ("..", "up"),
        ("b", "a_first"),
        ("a/1.png", "copy.png"),
        ("gone", "broken"),
        ("../else/c", "c"),
        ("../else/c/4.png", "d.png"),
    ];
    links.iter().for_each(|(target, name)| symlink(target, set.join(name)).unwrap());
    symlink(tree.at("set/a"), tree.at("else/c/back")).unwrap();
    fs::hard_link(set.join("a/1.png"), set.join("b/hard.png")).unwrap();
    let found = walk(&set).unwrap();
    let names: Vec<String> = found.images.iter().map(|i| text(i.relative())).collect();
    assert_eq!(names, ["a/1.png", "b/2.png", "c/3.png", "c/4.png"]);
    let count = |reason| found.summary.count(reason);
    // all and up are links to ancestors; a_first, copy.png, c/back, b/hard.png and d.png are duplicates.
    assert_eq!((count(Reason::AncestorLink), count(Reason::Duplicate), count(Reason::Broken)), (2, 5, 1));
    assert_eq!(found, walk(&set).unwrap());
}

#[test]
fn every_name_is_found_and_has_a_distinct_text() {
    let tree = Tree::of(&["a/x .png", "a /x.png", "a/new\nline.png", "a/back\\x.png"]);
    for name in [&b"caf\xe9/x.png"[..], b"caf\xe8/x.png", b"caf\\xE9/x.png"] {
        tree.write(Path::new(OsStr::from_bytes(name)));
    }
    let names = tree.names();
    let expected = [
        "a/back\\\\x.png",
        "a/new\\nline.png",
        "a/x .png",
        "a /x.png",
        "caf\\\\xE9/x.png",
        "caf\\xE8/x.png",
        "caf\\xE9/x.png",
    ];
    assert_eq!(names, expected);
    for image in tree.walk().images {
        assert_eq!((fs::read(&image.path).unwrap(), tree.at(image.relative())), (b"image".to_vec(), image.path));
    }
    let layout = arrange(&tree.walk().images, LabelFrom::First);
    assert_eq!(layout.classes, ["a", "a ", "caf\\\\xE9", "caf\\xE8", "caf\\xE9"]);
}

#[test]
fn other_files_are_counted_and_named() {
    let files = [
        "a/1.PNG",
        "a/1.jxl",
        "a/2.JXL",
        "a/3.jxl",
        "a/4.jxl",
        "a/1.NEF",
        "a/1.svg",
        "a/1.mp4",
        "a/notes.txt",
        "a/noending",
        "a/.DS_Store",
        "a/._1.png",
        ".git/x.png",
        "@eaDir/x.png",
        ".thumbnails/x.png",
        "lost+found/x.png",
        "__MACOSX/a/x.png",
        "a/@eaDir/y.png",
    ];
    let tree = Tree::of(&files);
    fs::write(tree.at("a/zero.png"), b"").unwrap();
    fs::create_dir(tree.at("fox")).unwrap();
    let _listener = UnixListener::bind(tree.at("a/socket.png")).unwrap();
    assert!(Command::new("mkfifo").arg(tree.at("a/pipe.png")).status().unwrap().success());
    let found = tree.walk();
    assert_eq!(tree.names(), ["a/1.PNG"]);
    let said = found.summary.to_string();
    let expected = "4 JPEG XL files (not read: a/1.jxl, a/2.JXL, a/3.jxl, ...), 1 RAW file (not read: a/1.NEF), \
                    1 SVG file (not read: a/1.svg), 1 video file (not read: a/1.mp4), \
                    2 empty files or folders (a/zero.png, fox), 2 sockets, pipes or devices \
                    (a/pipe.png, a/socket.png), 7 hidden (.git, .thumbnails, @eaDir, ...), 2 other files (a/noending, \
                    a/notes.txt)";
    assert_eq!(said, expected);
    assert_eq!(found.summary.count(Reason::NotRead(Format::JpegXl)), 4);
}

#[test]
fn a_folder_that_cannot_be_listed_is_named_and_skipped() {
    // The length of a path is limited.  One long tree, moved to the end of another, makes a folder beyond the limit.
    let tree = Tree::of(&["a/1.png"]);
    let long = |top: &str| (0..19).fold(PathBuf::from(top), |path, _| path.join("d".repeat(120)));
    let (outer, inner) = (tree.at(long("outer")), tree.at(long("inner")));
    fs::create_dir_all(&outer).unwrap();
    fs::create_dir_all(&inner).unwrap();
    fs::rename(tree.at("inner"), outer.join("inner")).unwrap();
    let found = tree.walk();
    assert_eq!((found.images.len(), found.summary.count(Reason::Unreadable)), (1, 1));
    let said = found.summary.to_string();
    assert!(said.starts_with("1 folder or file that cannot be read (...ddd"), "{said}");
    assert!(said.ends_with(": file name too long)") && said.len() < 200, "{said}");
}

#[test]
fn a_root_that_cannot_be_listed_is_an_error() {
    let tree = Tree::of(&["x.png"]);
    assert!(walk(&tree.at("gone")).is_err());
    assert!(walk(&tree.at("x.png")).is_err());
}

#[test]
fn paths_are_relative_however_the_root_is_written() {
    let tree = Tree::of(&["a/1.png"]);
    for end in ["", "/", "//", "/.", "/a/.."] {
        let root = format!("{}{end}", tree.dir.path().display());
        let found = walk(Path::new(&root)).unwrap();
        assert_eq!(found.images[0].relative(), Path::new("a/1.png"), "{root}");
        assert!(found.images[0].path.is_file());
    }
}

/// `split:class` of each path; `-` without a class, `excluded` for an excluded image.
fn places(paths: &[&str]) -> Vec<String> {
    let layout = of_paths(&paths.iter().map(Path::new).collect::<Vec<_>>(), LabelFrom::First);
    let place = |i: usize| match layout.assignments[i] {
        Assignment { excluded: true, .. } => "excluded".to_string(),
        Assignment { split, .. } => {
            let split = match split {
                None => "",
                Some(Split::Train) => "train",
                Some(Split::Validation) => "val",
                Some(Split::Test) => "test",
            };
            format!("{split}:{}", layout.label(i).unwrap_or("-"))
        }
    };
    (0..paths.len()).map(place).collect()
}

fn check(cases: &[(&str, &str)]) {
    let (paths, expected): (Vec<&str>, Vec<&str>) = cases.iter().copied().unzip();
    assert_eq!(places(&paths), expected, "{paths:?}");
}

#[test]
fn splits_in_every_usual_spelling() {
    let spellings = [
        ["train", "val", "test"],
        ["Train", "Validation", "Test"],
        ["TRAIN", "VAL", "TEST"],
        ["training", "valid", "testing"],
        ["train_set", "val_set", "test_set"],
        ["train-images", "dev", "test-images"],
        ["TrainImages", "EvalImages", "TestImages"],
        ["trainset", "valset", "testset"],
        ["train2017", "val2017", "test2017"],
        ["Training Data", "evaluation", "Test Data"],
        ["seg_train", "seg_val", "seg_test"],
        ["trainval", "eval", "test1"],
        ["train_val", "eval", "holdout"],
    ];
    for [train, val, test] in spellings {
        let path = |split: &str, class: &str| format!("{split}/{class}/x.png");
        let paths = [path(train, "cat"), path(train, "dog"), path(val, "cat"), path(test, "dog")];
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        assert_eq!(places(&paths), ["train:cat", "train:dog", "val:cat", "test:dog"], "{train}");
    }
}

#[test]
fn a_file_may_mention_its_split() {
    let of = |name: &str| Split::mentioned(name);
    for name in ["cifar10-train", "partial-train-00000-of-00002", "x.Train.y", "trainset_0", "a_val2017"] {
        assert!(of(name).is_some(), "{name}");
    }
    assert_eq!(
        [of("mnist_test"), of("test-train"), of("x-dev-1")],
        [Some(Split::Test), Some(Split::Test), Some(Split::Validation)]
    );
    for name in ["0000", "latest", "a3dev4f", "contest-2", "trainer", "data-00000-of-00001"] {
        assert_eq!(of(name), None, "{name}");
    }
}

#[test]
fn a_class_may_have_the_name_of_a_split() {
    check(&[("bus/x.png", ":bus"), ("car/x.png", ":car"), ("train/x.png", ":train")]);
    check(&[("cat/x.png", ":cat"), ("test/x.png", ":test"), ("dog/x.png", ":dog")]);
    check(&[("valid/x.png", ":valid"), ("invalid/x.png", ":invalid")]);
    check(&[("bullet_train/x.png", ":bullet_train"), ("test tube/x.png", ":test tube")]);
    check(&[
        ("train/bus/x.png", "train:bus"),
        ("train/train/x.png", "train:train"),
        ("test/bus/x.png", "test:bus"),
        ("test/train/x.png", "test:train"),
    ]);
    // The only test images belong to the class "train".
    check(&[
        ("train/bus/x.png", "train:bus"),
        ("train/train/x.png", "train:train"),
        ("test/train/x.png", "test:train"),
    ]);
}

#[test]
fn wrapper_folders_are_skipped() {
    check(&[("w/train/cat/x.png", "train:cat"), ("w/val/cat/x.png", "val:cat")]);
    check(&[("v/w/cat/x.png", ":cat"), ("v/w/dog/x.png", ":dog"), ("v/w/dog/deep/y.png", ":dog")]);
    check(&[("w/preview.png", "excluded"), ("w/s/train/cat/x.png", "train:cat"), ("w/s/test/cat/x.png", "test:cat")]);
    check(&[("data/train/train/cat/x.png", "train:cat"), ("data/train/val/dog/x.png", "val:dog")]);
    check(&[
        ("seg_train/seg_train/sea/x.png", "train:sea"),
        ("seg_train/seg_train/ice/x.png", "train:ice"),
        ("seg_test/seg_test/sea/x.png", "test:sea"),
        ("seg_pred/seg_pred/x.png", "excluded"),
    ]);
    check(&[("train/s/cat/x.png", "train:cat"), ("train/s/dog/x.png", "train:dog"), ("test/s/x.png", "test:s")]);
    // A single class folder is not a wrapper.
    check(&[("cat/x.png", ":cat")]);
    check(&[("cat/best/x.png", ":cat"), ("cat/y.png", ":cat")]);
    check(&[("images/x.png", ":-"), ("images/y.png", ":-")]);
}

#[test]
fn images_beside_splits_and_classes_are_excluded() {
    check(&[
        ("train/cat/x.png", "train:cat"),
        ("val/cat/x.png", "val:cat"),
        ("extra/cat/x.png", "excluded"),
        ("x.png", "excluded"),
        ("train/y.png", "train:-"),
    ]);
    check(&[("train/cat/x.png", "train:cat"), ("train/dog/x.png", "train:dog"), ("unsorted/x.png", "excluded")]);
    check(&[("images/x.png", ":-"), ("masks/x.png", "excluded")]);
    check(&[("cat/x.png", ":cat"), ("dog/x.png", ":dog"), ("x.png", ":-")]);
    let paths = ["train/a/x.png", "test/a/x.png", "extra/x.png", "extra/y.png", "z.png"].map(Path::new);
    let excluded = of_paths(&paths, LabelFrom::First).excluded;
    let entry = |folder: Option<&str>, images| Excluded { folder: folder.map(String::from), images };
    assert_eq!(excluded, [entry(Some("extra"), 2), entry(None, 1)]);
}

#[test]
fn held_out_images_are_never_used_for_training() {
    check(&[("val/cat/x.png", "val:cat"), ("test/cat/x.png", "test:cat")]);
    check(&[("test/cat/x.png", "test:cat"), ("test/dog/x.png", "test:dog")]);
    // A class folder can contain the splits.
    check(&[
        ("cat/train/x.png", "train:cat"),
        ("cat/test/x.png", "test:cat"),
        ("dog/train/x.png", "train:dog"),
        ("dog/test/x.png", "test:dog"),
        ("fox/x.png", "train:fox"),
    ]);
    check(&[("bus/x.png", "excluded"), ("train/x.png", "train:-"), ("test/x.png", "test:-")]);
}

#[test]
fn unlabelled_held_out_folders_have_no_class() {
    for folder in ["", "unknown/", "images/", "test/"] {
        let test = format!("test/{folder}x.png");
        check(&[("train/cat/x.png", "train:cat"), ("train/dog/x.png", "train:dog"), (&test, "test:-")]);
    }
}

#[test]
fn capitals_do_not_make_another_class_of_held_out_images() {
    check(&[
        ("train/Cat/x.png", "train:Cat"),
        ("train/ÄFFIN/x.png", "train:ÄFFIN"),
        ("val/cat/x.png", "val:Cat"),
        ("val/äffin/x.png", "val:ÄFFIN"),
        ("val/owl/x.png", "val:owl"),
    ]);
    // Two training classes differ only in capitals, so the held-out class stays separate.
    check(&[("train/Cat/x.png", "train:Cat"), ("train/CAT/x.png", "train:CAT"), ("val/cat/x.png", "val:cat")]);
}

#[test]
fn labels_may_come_from_the_parent() {
    let paths = ["2019/Rome trip/x.jpg", "2019/y.jpg", "2020/n01440764/images/x.jpg", "z.jpg"].map(Path::new);
    let labels = |from| {
        let layout = of_paths(&paths, from);
        (0..paths.len()).map(|i| layout.label(i).unwrap_or("-").to_string()).collect::<Vec<_>>()
    };
    assert_eq!(labels(LabelFrom::First), ["2019", "2019", "2020", "-"]);
    assert_eq!(labels(LabelFrom::Parent), ["Rome trip", "2019", "tench", "-"]);
    assert_eq!(labels(LabelFrom::Nothing), ["-"; 4]);
    let paths = ["w/train/cat/x.jpg", "w/train/y.jpg", "w/val/cat/deep/x.jpg"].map(Path::new);
    let layout = of_paths(&paths, LabelFrom::Parent);
    assert_eq!([0, 1, 2].map(|i| layout.label(i)), [Some("cat"), None, Some("deep")]);
}

#[test]
fn no_images_give_no_classes() {
    assert_eq!(of_paths(&[], LabelFrom::First), Arrangement { assignments: vec![], classes: vec![], excluded: vec![] });
}
