//! Folders as people have them, made on the spot.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use image::RgbImage;
use macrl_bundle::config::Config;

use super::*;
use crate::data::{open_with, unpack};

const READING: Reading = Reading::plain(None, u64::MAX);

fn write(path: PathBuf, shade: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(5, 4, image::Rgb([shade; 3])).save(path).unwrap();
}

fn shades(split: &Arc<dyn Dataset>) -> Vec<(Option<u32>, u8)> {
    (0..split.len()).map(|i| (split.label(i), split.image(i).unwrap().get_pixel(0, 0)[0])).collect()
}

#[test]
fn class_folders_are_interleaved_and_damage_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(at("b/1.png"), 11);
    write(at("b/deep/2.bmp"), 12);
    write(at("a/1.PNG"), 1);
    std::fs::write(at("a/broken.jpg"), b"\xff\xd8\xff\xe0 no image").unwrap();
    std::fs::write(at("a/notes.txt"), b"passed over").unwrap();
    std::fs::create_dir(at("empty")).unwrap();
    for budget in [u64::MAX, 0] {
        let splits = read(dir.path(), &Reading { budget, ..READING }).unwrap().unwrap();
        assert_eq!(splits.classes, ["a", "b"]);
        assert_eq!(shades(&splits.train), [(Some(0), 1), (Some(1), 11), (Some(1), 12)], "budget {budget}");
        assert_eq!(splits.skipped.len(), 1);
        assert_eq!(splits.skipped[0].0, "a/broken.jpg");
        assert_eq!(splits.train.name(2), "b/deep/2.bmp");
    }
}

#[test]
fn free_memory_does_not_change_which_number_an_image_has() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for i in 0..12 {
        write(at(&format!("{i:02}.png")), 20 * i);
    }
    // A whole header, and then nothing.
    let whole = std::fs::read(at("03.png")).unwrap();
    std::fs::write(at("03.png"), &whole[..whole.len() - 20]).unwrap();
    let open = |budget| open_with(dir.path(), &Reading { budget, ..READING }, 0).unwrap();
    let (held, streamed) = (open(u64::MAX), open(0));
    assert_eq!(crate::data::identity::identity(&held), crate::data::identity::identity(&streamed));
    assert_eq!((held.skipped.len(), streamed.skipped.len()), (1, 0));
    let config = Config::parse("[train]\nbatch_size = 4\n[encoder]\nimage_size = 8\n", "test", &[]).unwrap();
    let batches = |data: &crate::data::Data| -> Vec<_> {
        let source = crate::batches::Batches::new(data.train.clone(), &config).unwrap();
        (0..6).map(|step| source.make(step).unwrap()).collect()
    };
    assert_eq!(batches(&held), batches(&streamed));
    let unreadable = |data: &crate::data::Data| (0..data.train.len()).filter(|i| data.train.image(*i).is_err()).count();
    assert_eq!((unreadable(&held), unreadable(&streamed)), (1, 1));
}

#[test]
fn other_images_are_another_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    (0..9).for_each(|i| write(at(&format!("{i}.png")), i));
    let identity = || crate::data::identity::identity(&open_with(dir.path(), &READING, 0).unwrap());
    let before = identity();
    assert!(before.starts_with("image folder, 8 training images, 0 classes, digest "), "{before}");
    assert_eq!(before, identity());
    std::fs::rename(at("4.png"), at("4b.png")).unwrap();
    let renamed = identity();
    std::fs::rename(at("4b.png"), at("4.png")).unwrap();
    (0..9).for_each(|i| write(at(&format!("{i}.png")), 100 + i));
    let repainted = identity();
    write(at("a/0.png"), 1);
    assert_eq!(std::collections::BTreeSet::from([before, renamed, repainted, identity()]).len(), 4);
}

#[test]
fn trees_with_splits_share_their_classes() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path().join("train/n01440764/x.png"), 1);
    write(dir.path().join("train/zebra/x.png"), 2);
    write(dir.path().join("val/zebra/y.png"), 3);
    let splits = read(dir.path(), &READING).unwrap().unwrap();
    assert_eq!(splits.classes, ["tench", "zebra"]);
    assert_eq!(shades(&splits.test.unwrap()), [(Some(1), 3)]);
    assert_eq!(splits.train.len(), 2);
}

#[test]
fn flat_folders_are_unlabelled_and_a_tenth_is_held_out() {
    let dir = tempfile::tempdir().unwrap();
    (0..25).for_each(|i| write(dir.path().join(format!("{i:02}.png")), i));
    let data = open_with(dir.path(), &READING, 0).unwrap();
    let (train, test) = (shades(&data.train), shades(&data.test.unwrap()));
    assert_eq!((train.len(), test.len(), data.classes.len()), (23, 2, 0));
    assert_eq!(data.notes, ["no test split: 2 of 25 images are held out for evaluation"]);
    let mut all: Vec<u8> = train.iter().chain(&test).map(|s| s.1).collect();
    all.sort_unstable();
    assert_eq!(all, (0..25).collect::<Vec<u8>>());
    assert_eq!(open_with(dir.path(), &READING, 7).unwrap().train.len(), 7);
}

#[test]
fn one_image_is_a_data_set_and_none_readable_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path().join("only.png"), 5);
    assert!(open_with(dir.path(), &READING, 0).unwrap().test.is_none());
    std::fs::write(dir.path().join("only.png"), b"nothing").unwrap();
    let message = format!("{:#}", open_with(dir.path(), &READING, 0).err().unwrap());
    assert!(message.contains("none of 1 images is readable; the first, only.png:"), "{message}");
    assert_eq!(message.lines().count(), 1);
}

#[test]
fn wrong_folders_get_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &Path| open_with(path, &READING, 0).err().unwrap().to_string();
    assert!(message(dir.path()).ends_with("found nothing"));
    for name in ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt"] {
        std::fs::write(dir.path().join(name), b"x").unwrap();
    }
    let found = message(dir.path());
    assert!(found.contains("looked for data_batch_1.bin") && found.ends_with("found a.txt, b.txt, c.txt and 2 more"));
    assert!(message(&dir.path().join("a.txt")).ends_with("a.txt is a file"));
    assert!(message(&dir.path().join("gone")).ends_with("gone does not exist"));
}

#[test]
fn unpacked_images_come_back_as_they_were() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (i, class) in ["a/b", "c"].iter().enumerate() {
        (0..3).for_each(|k| write(dir.path().join(format!("{class}/{k}.png")), (10 * i + k) as u8));
    }
    let data = read(dir.path(), &READING).unwrap().unwrap();
    let classes = vec!["a/b".to_string(), "c".into()];
    assert_eq!(unpack::unpack(data.train.as_ref(), &classes, 2, out.path()).unwrap(), (4, vec![]));
    let back = read(out.path(), &READING).unwrap().unwrap();
    assert_eq!(back.classes, ["a_b", "c"]);
    assert_eq!(shades(&back.train), [(Some(0), 0), (Some(1), 10), (Some(0), 1), (Some(1), 11)]);
}

/// Trains with what `open_with` gives: training and test images, classes.
fn counts(dir: &Path) -> (usize, usize, Vec<String>) {
    let data = open_with(dir, &READING, 0).unwrap();
    (data.train.len(), data.test.map_or(0, |t| t.len()), data.classes)
}

#[test]
fn images_without_a_class_and_classes_without_training_images_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &[("train/cat", 4), ("train/dog", 4), ("train", 3), ("val/cat", 2), ("val/fox", 2)]);
    let data = open_with(dir.path(), &READING, 0).unwrap();
    assert_eq!((data.train.len(), data.test.unwrap().len(), data.classes.len()), (11, 4, 3));
    let expected =
        ["3 of 11 training images have no label", "2 of 4 test images are of classes that no training image has (fox)"];
    assert_eq!(data.notes, expected);
}

/// `count` images in each folder.
fn fill(dir: &Path, folders: &[(&str, u8)]) {
    for (folder, count) in folders {
        (0..*count).for_each(|i| write(dir.join(folder).join(format!("{i:03}.png")), i));
    }
}

fn two() -> Vec<String> {
    vec!["cat".into(), "dog".into()]
}

#[test]
fn splits_are_found_however_they_are_written() {
    for [train, test] in [["Train", "Test"], ["train_set", "test_set"], ["train", "eval"], ["w/train", "w/val"]] {
        let dir = tempfile::tempdir().unwrap();
        let at = |split: &str, class: &str| format!("{split}/{class}");
        let [a, b, c, d] = [at(train, "cat"), at(train, "dog"), at(test, "cat"), at(test, "dog")];
        fill(dir.path(), &[(&a, 4), (&b, 4), (&c, 2), (&d, 1), ("__MACOSX/w/train/cat", 1)]);
        assert_eq!(counts(dir.path()), (8, 3, two()), "{train}");
    }
}

#[test]
fn a_class_may_be_called_train() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &[("bus", 10), ("car", 10), ("train", 10)]);
    assert_eq!(counts(dir.path()), (27, 3, vec!["bus".into(), "car".into(), "train".into()]));
}

#[test]
fn held_out_images_without_labels_give_way_to_training_images() {
    for test in ["test/unknown", "test", "val", "val/other"] {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &[("train/cat", 10), ("train/dog", 10), (test, 6)]);
        let data = open_with(dir.path(), &READING, 0).unwrap();
        assert_eq!((data.train.len(), data.test.unwrap().len(), data.classes), (18, 2, two()), "{test}");
        let name = if test.starts_with("val") { "validation" } else { "test" };
        let expected = [
            format!("the {name} split (6 images) has no label that occurs in training, and is not used"),
            "2 of 20 images are held out for evaluation".into(),
        ];
        assert_eq!(data.notes, expected);
        assert_eq!(data.left_out, [format!("6 images of the {name} split (no labels)")]);
    }
    // Where nothing is labelled, the split is what it says.
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &[("train", 10), ("test", 4)]);
    assert_eq!(counts(dir.path()), (10, 4, vec![]));
}

#[test]
fn the_validation_split_is_used_before_the_test_split_if_it_has_labels() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &[("train/cat", 5), ("train/dog", 5), ("val/cat", 2), ("test/dog", 3), ("extra", 4)]);
    let data = open_with(dir.path(), &READING, 0).unwrap();
    assert_eq!((data.train.len(), data.test.unwrap().len()), (10, 2));
    assert_eq!(
        data.left_out,
        ["3 images of the test split (validation is used)", "4 images in extra (neither a split nor a class)"]
    );
    std::fs::rename(dir.path().join("val/cat"), dir.path().join("val/unknown")).unwrap();
    let data = open_with(dir.path(), &READING, 0).unwrap();
    assert_eq!((data.train.len(), data.test.unwrap().len(), data.classes), (10, 3, two()));
}

#[test]
fn test_images_alone_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &[("val/cat", 2), ("Test/cat", 1)]);
    let message = format!("{:#}", open_with(dir.path(), &READING, 0).err().unwrap());
    let expected = "no training images: found 2 images of a validation split, 1 image of a test split; to train on them, \
                    give that split's folder";
    assert!(message.ends_with(expected), "{message}");
    assert_eq!(counts(&dir.path().join("val")).2, ["cat"]);
    std::fs::write(dir.path().join("x.jxl"), b"JXL").unwrap();
    let message = format!("{:#}", open_with(dir.path(), &READING, 0).err().unwrap());
    assert!(message.ends_with("; left out: 1 JPEG XL file (not read: x.jxl)"), "{message}");
}

#[test]
fn every_name_and_no_image_twice() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("trail space ");
    fill(&at, &[("tea", 6)]);
    let odd = at.join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    (0..6).for_each(|i| write(odd.join(format!("{i}\n.png")), i));
    symlink(".", at.join("all")).unwrap();
    symlink("tea", at.join("latest")).unwrap();
    let data = open_with(&at, &READING, 0).unwrap();
    assert_eq!(
        (data.train.len() + data.test.unwrap().len(), data.classes),
        (12, vec!["caf\\xE9".into(), "tea".into()])
    );
    let expected = "1 link to files or folders read already (latest), 1 link to a parent folder (all)";
    assert_eq!(data.left_out, [expected]);
    let names: std::collections::BTreeSet<String> = (0..data.train.len()).map(|i| data.train.name(i)).collect();
    assert_eq!(names.len(), data.train.len());
    assert!(names.iter().all(|name| name.lines().count() == 1));
}

#[test]
fn formats_that_are_not_read_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    (0..3).for_each(|i| std::fs::write(dir.path().join(format!("{i}.JXL")), b"JXL").unwrap());
    std::fs::write(dir.path().join("x.svg"), b"<svg/>").unwrap();
    let message = format!("{:#}", open_with(dir.path(), &READING, 0).err().unwrap());
    let expected = "found 3 JPEG XL files, 1 SVG file; the formats that are read are JPEG, PNG, WebP, GIF, BMP, TIFF, PNM; \
                    HEIC and AVIF with libheif";
    assert!(message.starts_with("no images that are read in ") && message.ends_with(expected), "{message}");
    fill(dir.path(), &[("", 10)]);
    let data = open_with(dir.path(), &READING, 0).unwrap();
    assert_eq!(data.train.len(), 9);
    let expected = "3 JPEG XL files (not read: 0.JXL, 1.JXL, 2.JXL), 1 SVG file (not read: x.svg)";
    assert_eq!(data.left_out, [expected]);
}

#[test]
fn a_folder_around_another_format_is_passed_through() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("download/tiny-imagenet-200");
    fill(&at, &[("train/n1/images", 3), ("val/n1", 2)]);
    std::fs::write(at.join("wnids.txt"), "n1\n").unwrap();
    let data = open_with(dir.path(), &READING, 0).unwrap();
    assert_eq!((data.format, data.train.len(), data.test.unwrap().len()), ("Tiny-ImageNet", 3, 2));
}
