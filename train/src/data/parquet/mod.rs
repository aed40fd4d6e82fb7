//! Parquet as the Hugging Face hub serves image data sets: a column `image` of structs {bytes, path}, a label column,
//! class names in the file's metadata.
//!
//! What fits the memory budget is held, decoded or else encoded; larger sets are read a row group at a time (`held.rs`).

mod held;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use parquet::data_type::ByteArray;
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::{Type, TypePtr};

use super::{Dataset, Reading, Splits};
use held::{Encoded, Groups, hold};

/// Folders below the one named that are searched (`data/`, `plain_text/`, `default/train/`).
const DEPTH: usize = 2;
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
            return Ok(Arc::new(Groups::new(split, self, labels, reading.pad_to)));
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
        let unreadable = || format!("cannot read the rows of {}", self.path.display());
        let reader = self.reader.get_row_group(group).with_context(unreadable)?;
        let only = Type::group_type_builder("schema").with_fields(vec![column.clone()]).build()?;
        for row in reader.get_row_iter(Some(only)).with_context(unreadable)? {
            let field = row.with_context(unreadable)?.into_columns().into_iter().next();
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
