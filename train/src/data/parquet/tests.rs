//! Data sets as the hub and other programs write them.

mod written;

use std::time::{Duration, Instant};

use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use rayon::prelude::*;

use super::*;
use crate::data::{Columns, Data, Unclear, open_with};
use written::{Column, png, write, write_groups};

const SNAPPY: Compression = Compression::SNAPPY;
const CLASSES: &str = r#"{"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}"#;

fn plain() -> Reading {
    Reading::plain(None, u64::MAX)
}

/// One file whose images have the shades that are given.
fn pictures(shades: &[u8]) -> Column {
    Column::Images(shades.iter().map(|shade| Some(png(*shade))).collect())
}

/// Image bytes (`None`: null) and label.
type TestRow = (Option<Vec<u8>>, i64);

fn hub() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join("data").join(name);
    let columns = |rows: &[TestRow]| {
        let images = Column::Images(rows.iter().map(|row| row.0.clone()).collect());
        [("image", images), ("label", Column::Long(rows.iter().map(|row| row.1).collect()))]
    };
    let first = columns(&[(Some(png(1)), 0), (Some(b"broken".to_vec()), 1), (Some(png(2)), 1)]);
    let second = columns(&[(None, 0), (Some(png(3)), -1)]);
    let names = [at("train-00000-of-00002.parquet"), at("train-00001-of-00002.parquet")];
    write_groups(&names[0], SNAPPY, Some(CLASSES), &[&first, &second]);
    write(&names[1], SNAPPY, Some(CLASSES), &columns(&[(Some(png(4)), 1)]));
    write(&at("test-00000-of-00001.parquet"), SNAPPY, Some(CLASSES), &columns(&[(Some(png(5)), 1)]));
    dir
}

fn shades(split: &Arc<dyn Dataset>) -> Vec<(Option<u32>, Option<u8>)> {
    (0..split.len()).map(|i| (split.label(i), split.image(i).ok().map(|x| x.get_pixel(2, 2)[0]))).collect()
}

#[test]
fn rows_labels_and_names_come_back() {
    let dir = hub();
    let splits = read(dir.path(), &plain()).unwrap().unwrap();
    assert_eq!(splits.classes, ["cat", "dog"]);
    // Unreadable rows keep their numbers, however much memory there is.
    let expected =
        [(Some(0), Some(1)), (Some(1), None), (Some(1), Some(2)), (Some(0), None), (None, Some(3)), (Some(1), Some(4))];
    assert_eq!(shades(&splits.train), expected);
    // Too little to hold the images decoded, and too little to hold them at all.
    for budget in [200, 0] {
        let tight = read(dir.path(), &Reading::plain(None, budget)).unwrap().unwrap();
        assert_eq!(shades(&tight.train), expected, "budget {budget}");
        let names = |split: &Arc<dyn Dataset>| (0..split.len()).map(|i| split.name(i)).collect::<Vec<_>>();
        assert_eq!(names(&tight.train), names(&splits.train), "budget {budget}");
    }
    assert_eq!(shades(&splits.test.unwrap()), [(Some(1), Some(5))]);
    let skipped: Vec<&str> = splits.skipped.iter().map(|s| s.0.as_str()).collect();
    assert_eq!(skipped, ["train[1]", "train[3]"]);
    assert_eq!(splits.skipped[1].1, "the row has no image bytes");
}

#[test]
fn large_sets_are_read_a_group_at_a_time_from_many_threads() {
    let dir = hub();
    let splits = read(dir.path(), &Reading::plain(Some(4), 0)).unwrap().unwrap();
    let shades = shades(&splits.train);
    assert_eq!(shades.iter().map(|s| s.1).collect::<Vec<_>>(), [Some(1), None, Some(2), None, Some(3), Some(4)]);
    assert!(splits.train.image(6).is_err());
    (0..600usize).into_par_iter().for_each(|i| {
        let image = splits.train.image(i % 6).ok().map(|x| x.get_pixel(3, 3)[0]);
        assert_eq!(image, shades[i % 6].1);
    });
}

#[test]
fn damage_is_named() {
    let dir = hub();
    let file = dir.path().join("data/train-00001-of-00002.parquet");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 20]).unwrap();
    let message = format!("{:#}", read(dir.path(), &plain()).err().unwrap());
    assert!(message.contains("train-00001-of-00002.parquet is not a whole Parquet file"), "{message}");
    assert_eq!(message.lines().count(), 1);
}

/// The classes and the training labels of one file with these columns.
fn labelled(features: Option<&str>, label: (&str, Column), images: usize) -> (Vec<String>, Vec<Option<u32>>) {
    let dir = tempfile::tempdir().unwrap();
    let shades: Vec<u8> = (0..images as u8).collect();
    write(&dir.path().join("train.parquet"), SNAPPY, features, &[("image", pictures(&shades)), label]);
    let splits = read(dir.path(), &plain()).unwrap().unwrap();
    (splits.classes, (0..splits.train.len()).map(|i| splits.train.label(i)).collect())
}

fn opened(dir: &Path, columns: (&str, &str)) -> Result<Data> {
    let columns = Columns { image: columns.0.into(), label: columns.1.into() };
    open_with(dir, &Reading { columns, ..plain() }, 0)
}

#[test]
fn every_codec_is_read() {
    let codecs = [
        Compression::UNCOMPRESSED,
        SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ];
    for codec in codecs {
        let dir = tempfile::tempdir().unwrap();
        let columns = [("image", pictures(&[7, 8])), ("label", Column::Long(vec![1, 0]))];
        write(&dir.path().join("train.parquet"), codec, None, &columns);
        let splits = read(dir.path(), &plain()).unwrap().unwrap();
        assert_eq!(shades(&splits.train), [(Some(1), Some(7)), (Some(0), Some(8))], "{codec:?}");
    }
}

#[test]
fn splits_are_named_by_files_and_folders_in_every_usual_way() {
    let names = [
        ["cifar10-train", "cifar10-test"],
        ["default/partial-train/0000", "default/partial-test/0000"],
        ["data/train-00000-of-00002", "data/test-00000-of-00001"],
        ["Train/a", "Test/a"],
        ["w/v/training_set", "w/v/test_set"],
        ["x_train", "x_validation"],
        ["images", "images-test"],
    ];
    for [train, test] in names {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, shades: &[u8]| {
            let labels = Column::Long((0..shades.len() as i64).collect());
            let path = dir.path().join(format!("{name}.parquet"));
            write(&path, SNAPPY, None, &[("image", pictures(shades)), ("label", labels)]);
        };
        file(train, &[1, 2, 3]);
        file(test, &[4, 5]);
        let splits = read(dir.path(), &plain()).unwrap().unwrap();
        assert_eq!((splits.train.len(), splits.test.map(|t| t.len())), (3, Some(2)), "{train}");
        assert!(splits.left_out.is_empty());
    }
}

#[test]
fn what_is_not_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, labels: Vec<i64>| {
        let shades: Vec<u8> = (0..labels.len() as u8).collect();
        write(&dir.path().join(name), SNAPPY, None, &[("image", pictures(&shades)), ("label", Column::Long(labels))]);
    };
    file("train-0.parquet", vec![0, 1]);
    file("train-1.parquet", vec![1, 0, 0]);
    file("validation.parquet", vec![0]);
    file("test.parquet", vec![1, 0]);
    file("more.parquet", vec![1]);
    write(&dir.path().join("captions.parquet"), SNAPPY, None, &[("text", Column::Text(vec!["a"]))]);
    let data = opened(dir.path(), ("", "")).unwrap();
    assert_eq!((data.train.len(), data.test.unwrap().len(), data.classes), (5, 1, vec!["0".into(), "1".into()]));
    let expected = [
        "1 image in files that name no split (more.parquet)",
        "2 images of the test split (validation is used)",
        "1 Parquet file without images (captions.parquet)",
    ];
    assert_eq!(data.left_out, expected);
    // Test images never train.
    for name in ["train-0.parquet", "train-1.parquet", "more.parquet"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    let message = format!("{:#}", opened(dir.path(), ("", "")).err().unwrap());
    let expected = "no training images: found 1 image of a validation split, 2 images of a test split";
    assert!(message.ends_with(expected), "{message}");
}

#[test]
fn a_test_split_without_labels_gives_way_to_held_out_training_images() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, labels: Vec<i64>| {
        let shades: Vec<u8> = (0..labels.len() as u8).collect();
        write(&dir.path().join(name), SNAPPY, None, &[("image", pictures(&shades)), ("label", Column::Long(labels))]);
    };
    file("train.parquet", [0, 1].repeat(10));
    file("test.parquet", vec![-1; 4]);
    let data = opened(dir.path(), ("", "")).unwrap();
    assert_eq!((data.train.len(), data.test.unwrap().len(), data.classes.len()), (18, 2, 2));
    assert_eq!(data.left_out, ["4 images of the test split (no labels)"]);
    let expected = [
        "the test split (4 images) has no label that occurs in training, and is not used",
        "2 of 20 images are held out for evaluation",
    ];
    assert_eq!(data.notes, expected);
}

#[test]
fn labels_of_any_kind_are_dense_classes() {
    let since = Instant::now();
    let two = |column| labelled(None, ("label", column), 3);
    let expected = |names: [&str; 2]| (names.map(String::from).to_vec(), vec![Some(1), Some(0), Some(1)]);
    assert_eq!(two(Column::Truth(vec![true, false, true])), expected(["false", "true"]));
    assert_eq!(two(Column::Long(vec![200_000, 7, 200_000])), expected(["7", "200000"]));
    let huge = u32::MAX - 1;
    assert_eq!(two(Column::Unsigned(vec![huge, 5, huge])), expected(["5", "4294967294"]));
    assert_eq!(two(Column::Long(vec![i64::MAX, i64::MIN, i64::MAX])), {
        expected(["-9223372036854775808", "9223372036854775807"])
    });
    assert_eq!(two(Column::Real(vec![2.5, -1.0, 2.5])), expected(["-1", "2.5"]));
    assert_eq!(two(Column::Text(vec!["dog", "cat", "dog"])), expected(["cat", "dog"]));
    assert_eq!(two(Column::Lists(vec![vec![9], vec![4], vec![9]])), expected(["4", "9"]));
    // Numbers beyond the names that the metadata give do not make room for all between.
    let (names, labels) = labelled(Some(CLASSES), ("label", Column::Long(vec![1, 4_294_967_294, 0])), 3);
    assert_eq!((names.len(), labels), (3, vec![Some(1), Some(2), Some(0)]));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[test]
fn several_labels_an_image_count_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let lists = Column::Lists(vec![vec![1, 2], vec![], vec![1]]);
    write(&dir.path().join("train.parquet"), SNAPPY, None, &[("image", pictures(&[1, 2, 3])), ("labels", lists)]);
    let splits = read(dir.path(), &plain()).unwrap().unwrap();
    assert_eq!((splits.classes.len(), splits.train.len()), (0, 3));
    assert!(splits.notes[0].starts_with("the column labels holds several labels an image"), "{:?}", splits.notes);
}

#[test]
fn columns_are_found_by_metadata_then_by_what_they_hold() {
    let first = |features: Option<&str>, columns: &[(&str, Column)]| {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("train.parquet"), SNAPPY, features, columns);
        opened(dir.path(), ("", "")).map(|data| (shades(&data.train), data.classes, data.notes))
    };
    let one = |shade: u8| pictures(&[shade]);
    let label = || ("label", Column::Long(vec![3]));
    // Labels and shades, classes, notes.
    type Opened = (Vec<(Option<u32>, Option<u8>)>, Vec<String>, Vec<String>);
    let shade = |found: Result<Opened>| found.unwrap().0[0].1;
    // Two columns of images, the better name second; sound that is declared or that is none of ours.
    assert_eq!(shade(first(None, &[("annotation", one(9)), ("image", one(1)), label()])), Some(1));
    let sound = || ("audio", Column::Images(vec![Some(b"RIFF....WAVE".to_vec())]));
    assert_eq!(shade(first(None, &[sound(), ("image", one(1)), label()])), Some(1));
    assert_eq!(shade(first(None, &[sound(), ("scan", one(1)), label()])), Some(1));
    let declared =
        r#"{"a": {"_type": "Audio"}, "b": {"_type": "Image"}, "cls": {"_type": "ClassLabel", "names": ["x", "y"]}}"#;
    let columns = [("a", one(9)), ("b", one(1)), ("cls", Column::Long(vec![1])), ("label", Column::Long(vec![0]))];
    let (found, classes, _) = first(Some(declared), &columns).unwrap();
    assert_eq!((found, classes), (vec![(Some(1), Some(1))], vec!["x".into(), "y".into()]));
    assert_eq!(shade(first(None, &[("content", Column::Bytes(vec![png(4)])), label()])), Some(4));
    // A label column that nobody would guess is named.
    let (found, classes, notes) = first(None, &[("image", one(1)), ("kind", Column::Long(vec![3]))]).unwrap();
    assert_eq!((found[0].0, classes.len()), (None, 0));
    assert_eq!(notes[0], "no label column among kind; `data.label_column` names one");
}

#[test]
fn unclear_columns_are_refused_with_the_key_that_chooses() {
    let dir = tempfile::tempdir().unwrap();
    let numbers = |n| Column::Long(vec![n]);
    let columns = [("left", pictures(&[1])), ("right", pictures(&[2])), ("kind", numbers(5)), ("label", numbers(6))];
    write(&dir.path().join("train.parquet"), SNAPPY, None, &columns);
    let message = |columns| {
        let error = opened(dir.path(), columns).err().unwrap();
        assert!(error.chain().any(|e| e.is::<Unclear>()));
        format!("{error:#}")
    };
    let found = message(("", ""));
    assert!(
        found.ends_with("there are several image columns (left, right): choose one with `data.image_column`"),
        "{found}"
    );
    let found = message(("middle", ""));
    let expected = "`data.image_column` = \"middle\" is not a column; there are left, right, kind, label";
    assert!(found.ends_with(expected), "{found}");
    assert!(message(("kind", "")).ends_with("`data.image_column` = \"kind\" names a column that holds no bytes"));
    assert!(message(("left", "gone")).contains("`data.label_column` = \"gone\" is not a column"));
    let data = opened(dir.path(), ("right", "kind")).unwrap();
    assert_eq!((shades(&data.train), data.classes), (vec![(Some(0), Some(2))], vec!["5".into()]));
}

#[test]
fn class_folders_with_metadata_in_parquet_are_folders() {
    let dir = tempfile::tempdir().unwrap();
    for (class, shade) in [("cat", 1), ("dog", 2)] {
        std::fs::create_dir(dir.path().join(class)).unwrap();
        (0..3).for_each(|i| std::fs::write(dir.path().join(format!("{class}/{i}.png")), png(shade)).unwrap());
    }
    let file = dir.path().join("metadata.parquet");
    write(&file, SNAPPY, None, &[("file_name", Column::Text(vec!["cat/0.png"])), ("caption", Column::Text(vec!["a"]))]);
    let data = opened(dir.path(), ("", "")).unwrap();
    assert_eq!((data.train.len() + data.test.unwrap().len(), data.classes), (6, vec!["cat".into(), "dog".into()]));
    assert_eq!(data.left_out, ["1 other file (metadata.parquet)"]);
    let message = format!("{:#}", opened(dir.path(), ("", "caption")).err().unwrap());
    let expected = "`data.image_column` and `data.label_column` are for Parquet, and ";
    assert!(message.starts_with(expected) && message.ends_with(" holds: image folder"), "{message}");
    // Without images beside it, what it lacks is said.
    for class in ["cat", "dog"] {
        std::fs::remove_dir_all(dir.path().join(class)).unwrap();
    }
    let message = format!("{:#}", opened(dir.path(), ("", "")).err().unwrap());
    assert!(message.contains("metadata.parquet has no image column: looked for"), "{message}");
    assert!(message.ends_with("found file_name, caption"), "{message}");
}
