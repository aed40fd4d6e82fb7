//! Parquet as the Hugging Face hub serves image data sets: a column `image` of structs {bytes, path}, a label column,
//! class names in the file's metadata.
//!
//! What fits the memory budget is held, decoded or else encoded; larger sets are read a row group at a time.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use image::{ImageReader, RgbImage};
use macrl_models::decode::{DecodeLimits, decode};
use parquet::data_type::ByteArray;
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::{Type, TypePtr};
use rayon::prelude::*;

use super::memory::{Memory, pad};
use super::{Dataset, Reading, Splits};

/// Folders below the one named that are searched (`data/`, `plain_text/`, `default/train/`).
const DEPTH: usize = 2;
/// Row groups of a large set that are held at once.
const GROUPS_HELD: usize = 8;
/// Names of label columns, the first that exists counts.
const LABELS: [&str; 7] = ["label", "fine_label", "labels", "class", "target", "coarse_label", "category"];
/// Names of image columns that are plain bytes; a struct with a field `bytes` needs no name.
const IMAGES: [&str; 5] = ["image", "img", "image_bytes", "jpg", "png"];

/// Reads `*.parquet`, `train-*` as the training split, `validation-*` or else `test-*` as the other.
///
/// # Errors
/// When a file is damaged, has no image column, or no training image is readable.
pub fn read(dir: &Path, reading: &Reading) -> Result<Option<Splits>> {
    let mut files = Vec::new();
    collect(dir, DEPTH, &mut files)?;
    files.sort();
    let of = |part: Part| files.iter().filter(|f| Part::of(f, dir) == part).cloned().collect::<Vec<_>>();
    let (train, validation, test) = (of(Part::Train), of(Part::Validation), of(Part::Test));
    if train.is_empty() {
        return Ok(None);
    }
    let held = if validation.is_empty() { test } else { validation };
    let (train, held) = (Table::open(&train)?, Table::open(&held)?);
    let classes = class_names(&train, &held);
    let mut skipped = Vec::new();
    let train = train.load("train", &classes, reading, &mut skipped)?;
    if train.is_empty() {
        let why = skipped.first().map(|s| s.1.as_str()).unwrap_or("no rows");
        bail!("none of {} images is readable; the first: {why}", skipped.len());
    }
    let test = if held.rows() == 0 { None } else { Some(held.load("test", &classes, reading, &mut skipped)?) };
    Ok(Some(Splits { train, test, classes, skipped }))
}

#[derive(PartialEq)]
enum Part {
    Train,
    Validation,
    Test,
}

impl Part {
    /// From the file's name, else the nearest folder that says so, else training.
    fn of(file: &Path, root: &Path) -> Part {
        let below = file.strip_prefix(root).unwrap_or(file);
        let names: Vec<String> = below.iter().map(|c| c.to_string_lossy().to_lowercase()).collect();
        let known = |name: &String| match name {
            n if n.starts_with("train") => Some(Part::Train),
            n if n.starts_with("val") || n.starts_with("dev") => Some(Part::Validation),
            n if n.starts_with("test") => Some(Part::Test),
            _ => None,
        };
        names.iter().rev().find_map(known).unwrap_or(Part::Train)
    }
}

fn collect(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() && depth > 0 && !path.is_symlink() {
            collect(&path, depth - 1, files)?;
        } else if path.is_file() && path.extension().is_some_and(|e| e == "parquet") {
            files.push(path);
        }
    }
    Ok(())
}

/// The files of one split with the columns that matter.
struct Table {
    files: Vec<Source>,
    labels: Vec<Label>,
}

struct Source {
    path: PathBuf,
    reader: SerializedFileReader<Reopened>,
    /// Column of the image, and of the label.
    image: TypePtr,
    label: Option<TypePtr>,
}

/// A file that is opened anew for every read.  The crate's own reader of a [`File`] shares one position between all its
/// clones, so that threads reading at once would get each other's bytes.
struct Reopened {
    path: PathBuf,
    length: u64,
}

impl Reopened {
    fn at(&self, start: u64) -> ParquetResult<File> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(start))?;
        Ok(file)
    }
}

impl Length for Reopened {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Reopened {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(BufReader::new(self.at(start)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let mut bytes = vec![0; length];
        self.at(start)?.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

/// What a label column holds.
#[derive(Debug, Clone, PartialEq)]
enum Label {
    Number(u32),
    Text(String),
    None,
}

impl Table {
    fn open(paths: &[PathBuf]) -> Result<Self> {
        let files: Vec<Source> = paths.iter().map(|p| Source::open(p)).collect::<Result<_>>()?;
        let mut labels = Vec::new();
        for file in &files {
            file.labels(&mut labels)?;
        }
        Ok(Table { files, labels })
    }

    fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Bytes that the encoded images take in memory.
    fn encoded(&self) -> u64 {
        self.files.iter().map(Source::encoded).sum()
    }

    fn load(
        self,
        split: &'static str,
        classes: &[String],
        reading: &Reading,
        skipped: &mut Vec<(String, String)>,
    ) -> Result<Arc<dyn Dataset>> {
        let labels: Vec<Option<u32>> = self.labels.iter().map(|l| l.index(classes)).collect();
        if self.encoded() > reading.budget / 2 {
            return Ok(Arc::new(Groups::new(self, labels, reading.pad_to)));
        }
        let mut images = Vec::new();
        for file in &self.files {
            for group in 0..file.reader.num_row_groups() {
                file.images(group, &mut images)?;
            }
        }
        let rows =
            labels.into_iter().zip(images).enumerate().map(|(row, (label, bytes))| Encoded { row, label, bytes });
        hold(split, rows.collect(), reading, skipped)
    }
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let length = std::fs::metadata(path).with_context(|| format!("cannot read {name}"))?.len();
        let file = Reopened { path: path.to_path_buf(), length };
        let reader = SerializedFileReader::new(file).with_context(|| format!("{name} is not a whole Parquet file"))?;
        let columns = reader.metadata().file_metadata().schema().get_fields().to_vec();
        let Some(image) = columns.iter().find(|c| is_image(c)).cloned() else {
            let found: Vec<&str> = columns.iter().map(|c| c.name()).collect();
            bail!("{name} has no image column: looked for a struct with `bytes`, found {}", found.join(", "));
        };
        let label = LABELS.iter().find_map(|l| columns.iter().find(|c| c.name() == *l)).cloned();
        Ok(Source { path: path.to_path_buf(), reader, image, label })
    }

    fn encoded(&self) -> u64 {
        let groups = self.reader.metadata().row_groups();
        let columns = groups.iter().flat_map(|g| g.columns());
        let wanted = columns.filter(|c| c.column_path().parts().first().is_some_and(|n| n == self.image.name()));
        wanted.map(|c| c.uncompressed_size().max(0) as u64).sum()
    }

    /// One column of one row group.
    fn column(&self, group: usize, column: &TypePtr, mut take: impl FnMut(Field)) -> Result<()> {
        let damaged = || format!("{} is damaged", self.path.display());
        let reader = self.reader.get_row_group(group).with_context(damaged)?;
        let only = Type::group_type_builder("schema").with_fields(vec![column.clone()]).build()?;
        for row in reader.get_row_iter(Some(only)).with_context(damaged)? {
            let field = row.with_context(damaged)?.into_columns().into_iter().next();
            take(field.map_or(Field::Null, |(_, field)| field));
        }
        Ok(())
    }

    fn labels(&self, labels: &mut Vec<Label>) -> Result<()> {
        for group in 0..self.reader.num_row_groups() {
            match &self.label {
                Some(column) => self.column(group, column, |field| labels.push(Label::of(field)))?,
                None => {
                    let rows = self.reader.metadata().row_group(group).num_rows().max(0) as usize;
                    labels.resize(labels.len() + rows, Label::None);
                }
            }
        }
        Ok(())
    }

    fn images(&self, group: usize, images: &mut Vec<Option<ByteArray>>) -> Result<()> {
        self.column(group, &self.image, |field| images.push(bytes_of(field)))
    }
}

fn is_image(column: &TypePtr) -> bool {
    if column.is_group() {
        return column.get_fields().iter().any(|f| f.name() == "bytes" && f.is_primitive());
    }
    IMAGES.contains(&column.name()) && column.get_physical_type() == parquet::basic::Type::BYTE_ARRAY
}

fn bytes_of(field: Field) -> Option<ByteArray> {
    match field {
        Field::Bytes(bytes) => Some(bytes),
        Field::Group(row) => inner(row),
        _ => None,
    }
}

fn inner(row: Row) -> Option<ByteArray> {
    let field = row.into_columns().into_iter().find(|(name, _)| name == "bytes")?;
    bytes_of(field.1)
}

impl Label {
    fn of(field: Field) -> Label {
        let number = match field {
            Field::Byte(v) => v.into(),
            Field::Short(v) => v.into(),
            Field::Int(v) => v.into(),
            Field::Long(v) => v,
            Field::UByte(v) => v.into(),
            Field::UShort(v) => v.into(),
            Field::UInt(v) => v.into(),
            Field::Str(text) => return Label::Text(text),
            _ => return Label::None,
        };
        // The hub marks hidden test labels with -1.
        u32::try_from(number).map_or(Label::None, Label::Number)
    }

    fn index(&self, classes: &[String]) -> Option<u32> {
        match self {
            Label::Number(n) => Some(*n),
            Label::Text(text) => classes.iter().position(|c| c == text).map(|i| i as u32),
            Label::None => None,
        }
    }
}

/// The metadata's names, else the texts that occur, else numbers.
fn class_names(train: &Table, test: &Table) -> Vec<String> {
    let labels = train.labels.iter().chain(&test.labels);
    let mut texts: Vec<String> =
        labels.clone().filter_map(|l| if let Label::Text(t) = l { Some(t.clone()) } else { None }).collect();
    texts.sort();
    texts.dedup();
    if !texts.is_empty() {
        return texts;
    }
    let count = labels.filter_map(|l| if let Label::Number(n) = l { Some(*n as usize + 1) } else { None }).max();
    let mut names = train.files.first().and_then(described).unwrap_or_default();
    for label in names.len()..count.unwrap_or(0) {
        names.push(label.to_string());
    }
    names
}

/// `info.features.LABEL.names` in the metadata entry `huggingface`.
fn described(file: &Source) -> Option<Vec<String>> {
    let entries = file.reader.metadata().file_metadata().key_value_metadata()?;
    let text = entries.iter().find(|e| e.key == "huggingface")?.value.as_ref()?;
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = json.pointer(&format!("/info/features/{}/names", file.label.as_ref()?.name()))?;
    names.as_array()?.iter().map(|n| n.as_str().map(String::from)).collect()
}

/// One row whose image is in memory as it came.
struct Encoded {
    row: usize,
    label: Option<u32>,
    bytes: Option<ByteArray>,
}

impl Encoded {
    fn decode(&self, pad_to: Option<u32>) -> Result<RgbImage> {
        let bytes = self.bytes.as_ref().context("the row has no image bytes")?;
        Ok(pad(decode(bytes.data(), &DecodeLimits::default())?, pad_to))
    }

    /// Bytes that the image takes as RGB8, from its header.
    fn decoded_bytes(&self) -> Result<u64> {
        let bytes = self.bytes.as_ref().context("the row has no image bytes")?;
        let (width, height) = ImageReader::new(std::io::Cursor::new(bytes.data()))
            .with_guessed_format()?
            .into_dimensions()
            .map_err(|e| anyhow!(e.to_string()))?;
        Ok(3 * u64::from(width) * u64::from(height))
    }
}

/// Decodes all rows where they fit, else keeps them encoded; unreadable ones are listed.
fn hold(
    split: &'static str,
    rows: Vec<Encoded>,
    reading: &Reading,
    skipped: &mut Vec<(String, String)>,
) -> Result<Arc<dyn Dataset>> {
    let sizes: Vec<Result<u64>> = rows.par_iter().map(Encoded::decoded_bytes).collect();
    let name = |row: &Encoded| format!("{split}[{}]", row.row);
    if sizes.iter().flatten().sum::<u64>() > reading.budget {
        let mut kept = Vec::new();
        for (row, size) in rows.into_iter().zip(sizes) {
            match size {
                Ok(_) => kept.push(row),
                Err(why) => skipped.push((name(&row), format!("{why:#}"))),
            }
        }
        return Ok(Arc::new(Held { split, rows: kept, pad_to: reading.pad_to }));
    }
    let decoded: Vec<Result<RgbImage>> = rows.par_iter().map(|r| r.decode(reading.pad_to)).collect();
    let (mut images, mut labels, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (row, image) in rows.iter().zip(decoded) {
        match image {
            Ok(image) => {
                images.push(image);
                labels.push(row.label);
                names.push(name(row));
            }
            Err(why) => skipped.push((name(row), format!("{why:#}"))),
        }
    }
    Ok(Arc::new(Memory::named(split, images, labels, names)))
}

/// Encoded images in memory, decoded each time they are asked for.
struct Held {
    split: &'static str,
    rows: Vec<Encoded>,
    pad_to: Option<u32>,
}

impl Dataset for Held {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.rows.get(index)?.label
    }

    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
        let row = self.rows.get(index).with_context(|| format!("no image {index} in {}", self.split))?;
        row.decode(self.pad_to).with_context(|| self.name(index)).map(Cow::Owned)
    }

    fn name(&self, index: usize) -> String {
        self.rows.get(index).map(|r| format!("{}[{}]", self.split, r.row)).unwrap_or_default()
    }
}

/// Encoded images of one row group.
type Rows = Arc<Vec<Option<ByteArray>>>;

/// A set too large to hold: row groups are read as they are asked for, the last few stay.
///
/// Bounded in memory, and as slow as reading a row group per image where the order is random and groups are large.
struct Groups {
    table: Table,
    labels: Vec<Option<u32>>,
    /// First row of each (file, group).
    starts: Vec<(usize, usize, usize)>,
    held: Mutex<VecDeque<(usize, Rows)>>,
    pad_to: Option<u32>,
}

impl Groups {
    fn new(table: Table, labels: Vec<Option<u32>>, pad_to: Option<u32>) -> Self {
        let (mut starts, mut row) = (Vec::new(), 0);
        for (f, file) in table.files.iter().enumerate() {
            for (g, group) in file.reader.metadata().row_groups().iter().enumerate() {
                starts.push((row, f, g));
                row += group.num_rows().max(0) as usize;
            }
        }
        Groups { table, labels, starts, held: Mutex::new(VecDeque::new()), pad_to }
    }

    fn group(&self, which: usize) -> Result<Rows> {
        let lock = || self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, rows)) = lock().iter().find(|(w, _)| *w == which) {
            return Ok(rows.clone());
        }
        let (_, file, group) = self.starts[which];
        let mut rows = Vec::new();
        self.table.files[file].images(group, &mut rows)?;
        let rows = Arc::new(rows);
        let mut held = lock();
        held.push_back((which, rows.clone()));
        if held.len() > GROUPS_HELD {
            held.pop_front();
        }
        Ok(rows)
    }
}

impl Dataset for Groups {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied().flatten()
    }

    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
        let which = self.starts.partition_point(|(first, _, _)| *first <= index).checked_sub(1);
        let which = which.filter(|_| index < self.len()).with_context(|| format!("no image {index}"))?;
        let group = self.group(which)?;
        let bytes = group.get(index - self.starts[which].0).cloned().flatten();
        let row = Encoded { row: index, label: None, bytes };
        row.decode(self.pad_to).with_context(|| self.name(index)).map(Cow::Owned)
    }

    fn name(&self, index: usize) -> String {
        format!("row {index}")
    }
}

#[cfg(test)]
mod tests {
    use parquet::basic::Compression;
    use parquet::data_type::{ByteArrayType, Int64Type};
    use parquet::file::metadata::KeyValue;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

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
        let expected = [(Some(0), Some(1)), (Some(1), Some(2)), (None, Some(3)), (Some(1), Some(4))];
        assert_eq!(shades(&splits.train), expected);
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
}
