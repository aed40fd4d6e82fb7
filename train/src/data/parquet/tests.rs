//! Small hub-like data sets, written with the same crate.

use parquet::basic::Compression;
use parquet::data_type::{ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use image::RgbImage;
use rayon::prelude::*;

use super::*;

const SCHEMA: &str = "message schema {
    optional group image { optional binary bytes; optional binary path (STRING); }
    optional int64 label;
}";
const FEATURES: &str = r#"{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}"#;

fn png(shade: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = RgbImage::from_pixel(3, 3, image::Rgb([shade; 3]));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Image bytes (`None`: null) and label.
type TestRow = (Option<Vec<u8>>, i64);

fn write(path: &Path, groups: &[Vec<TestRow>]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let entry = KeyValue::new("huggingface".to_string(), FEATURES.to_string());
    let properties =
        WriterProperties::builder().set_compression(Compression::SNAPPY).set_key_value_metadata(Some(vec![entry]));
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties.build())).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows.iter().flat_map(|r| r.0.clone()).map(ByteArray::from).collect();
        // Definition level 2: bytes are there; 1: the struct is, its bytes are null.
        let levels: Vec<i16> = rows.iter().map(|r| 1 + i16::from(r.0.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[], Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let labels: Vec<i64> = rows.iter().map(|r| r.1).collect();
        column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn hub() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join("data").join(name);
    let first = vec![(Some(png(1)), 0), (Some(b"broken".to_vec()), 1), (Some(png(2)), 1)];
    write(&at("train-00000-of-00002.parquet"), &[first, vec![(None, 0), (Some(png(3)), -1)]]);
    write(&at("train-00001-of-00002.parquet"), &[vec![(Some(png(4)), 1)]]);
    write(&at("test-00000-of-00001.parquet"), &[vec![(Some(png(5)), 1)]]);
    dir
}

fn shades(split: &Arc<dyn Dataset>) -> Vec<(Option<u32>, Option<u8>)> {
    (0..split.len()).map(|i| (split.label(i), split.image(i).ok().map(|x| x.get_pixel(2, 2)[0]))).collect()
}

#[test]
fn rows_labels_and_names_come_back() {
    let dir = hub();
    let splits = read(dir.path(), &Reading { pad_to: None, budget: u64::MAX }).unwrap().unwrap();
    assert_eq!(splits.classes, ["cat", "dog"]);
    // Unreadable rows keep their numbers, however much memory there is.
    let expected =
        [(Some(0), Some(1)), (Some(1), None), (Some(1), Some(2)), (Some(0), None), (None, Some(3)), (Some(1), Some(4))];
    assert_eq!(shades(&splits.train), expected);
    // Too little to hold the images decoded, and too little to hold them at all.
    for budget in [200, 0] {
        let tight = read(dir.path(), &Reading { pad_to: None, budget }).unwrap().unwrap();
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
    let splits = read(dir.path(), &Reading { pad_to: Some(4), budget: 0 }).unwrap().unwrap();
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
    let message = format!("{:#}", read(dir.path(), &Reading { pad_to: None, budget: u64::MAX }).err().unwrap());
    assert!(message.contains("train-00001-of-00002.parquet is not a whole Parquet file"), "{message}");
    assert_eq!(message.lines().count(), 1);
}
