//! Parquet, by the column readers and writers of the `parquet` crate, without Arrow.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use macrl_bundle::atomic::Temporary;
use macrl_bundle::regular;
use parquet::basic::{Compression, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, FloatType};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::row::{BLOCK, Row, RowReader, RowWriter};
use crate::index::{ContentHash, EncoderIdentity, JsonMap, Metadata};

const SCHEMA: &str = "message items {
    required binary id (UTF8);
    required group vector (LIST) { repeated group list { required float element; } }
    required binary metadata (UTF8);
    optional binary image;
    optional binary sha256;
}";
/// Key in the file's metadata of the SHA-256 of the encoder's weights.
const ENCODER: &str = "macrl.encoder";

pub(super) struct Writer {
    file: SerializedFileWriter<File>,
    temporary: Temporary,
    place: PathBuf,
}

/// Whether an export wrote this file.
pub(super) fn is_own(place: &Path) -> bool {
    let file = regular::open(place).ok().and_then(|file| SerializedFileReader::new(file).ok());
    let notes = file.as_ref().and_then(|file| file.metadata().file_metadata().key_value_metadata());
    notes.is_some_and(|notes| notes.iter().any(|note| note.key == ENCODER))
}

impl Writer {
    pub(super) fn create(place: &Path, encoder: &EncoderIdentity) -> Result<Self> {
        let temporary = Temporary::beside(place);
        let file = temporary.create().with_context(|| format!("cannot write {}", place.display()))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            // The numbers are all different: the writer would build a dictionary and then give it up.
            .set_dictionary_enabled(false)
            .set_key_value_metadata(Some(vec![KeyValue::new(ENCODER.into(), encoder.sha256.clone())]))
            .build();
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let file = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
        Ok(Self { file, temporary, place: place.to_path_buf() })
    }
}

impl RowWriter for Writer {
    fn write(&mut self, rows: Vec<Row>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let text = |texts: Vec<String>| texts.into_iter().map(|t| ByteArray::from(t.into_bytes())).collect::<Vec<_>>();
        let ids = text(rows.iter().map(|r| r.id.clone()).collect());
        let metadata = text(rows.iter().map(|r| r.metadata.as_str().to_string()).collect());
        let vectors: Vec<f32> = rows.iter().flat_map(|r| r.vector.iter().copied()).collect();
        // Definition level 1: the element exists.  Repetition level 0: it is the first of its row.
        let definition = vec![1i16; vectors.len()];
        let repetition: Vec<i16> = rows.iter().flat_map(|r| (0..r.vector.len()).map(|i| i16::from(i > 0))).collect();
        let mut group = self.file.next_row_group()?;
        column::<ByteArrayType>(&mut group, &ids, None, None)?;
        column::<FloatType>(&mut group, &vectors, Some(&definition), Some(&repetition))?;
        column::<ByteArrayType>(&mut group, &metadata, None, None)?;
        optional(&mut group, rows.iter().map(|r| r.image.as_deref()).collect())?;
        optional(&mut group, rows.iter().map(|r| r.hash.as_ref().map(<[u8; 32]>::as_slice)).collect())?;
        group.close()?;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let file = self.file.into_inner()?;
        file.sync_all()?;
        self.temporary.persist().with_context(|| format!("cannot write {}", self.place.display()))
    }
}

/// Writes a column of optional bytes.
fn optional(group: &mut SerializedRowGroupWriter<'_, File>, values: Vec<Option<&[u8]>>) -> Result<()> {
    let definition: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    let there: Vec<ByteArray> = values.into_iter().flatten().map(|value| ByteArray::from(value.to_vec())).collect();
    column::<ByteArrayType>(group, &there, Some(&definition), None)
}

fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: &[T::T],
    definition: Option<&[i16]>,
    repetition: Option<&[i16]>,
) -> Result<()> {
    let mut column = group.next_column()?.context("a column too many")?;
    column.typed::<T>().write_batch(values, definition, repetition)?;
    column.close()?;
    Ok(())
}

pub(super) struct Reader {
    file: SerializedFileReader<File>,
    /// Numbers of the leaf columns.
    id: usize,
    vector: usize,
    metadata: Option<usize>,
    image: Option<usize>,
    hash: Option<usize>,
    group: usize,
    /// Rows of the current row group that were not returned yet.
    rows: std::vec::IntoIter<Row>,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let opened = regular::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file =
            SerializedFileReader::new(opened).with_context(|| format!("{} is not a Parquet file", path.display()))?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let names: Vec<String> = schema.columns().iter().map(|c| c.path().parts()[0].clone()).collect();
        let find = |name: &str| names.iter().position(|n| n == name);
        let wanted = |name: &str| {
            find(name).with_context(|| format!("{}: expected a column `{name}`, found {names:?}", path.display()))
        };
        let (id, vector, metadata) = (wanted("id")?, wanted("vector")?, find("metadata"));
        let kind = |column: usize, expected: &[Physical]| {
            let found = schema.column(column).physical_type();
            let message = || format!("{}: column `{}` has values of type {found}", path.display(), names[column]);
            ensure!(expected.contains(&found), "{}, expected {expected:?}", message());
            Ok(())
        };
        kind(id, &[Physical::BYTE_ARRAY])?;
        kind(vector, &[Physical::FLOAT, Physical::DOUBLE])?;
        // In files of other programs, these columns may hold anything.
        let ours = encoder(&file).is_some();
        let (image, hash) = (find("image").filter(|_| ours), find("sha256").filter(|_| ours));
        for column in [metadata, image, hash].into_iter().flatten() {
            kind(column, &[Physical::BYTE_ARRAY])?;
            ensure!(
                schema.column(column).max_rep_level() == 0 && schema.column(column).path().parts().len() == 1,
                "{}: column `{}` must hold one value a row",
                path.display(),
                names[column]
            );
        }
        ensure!(schema.column(vector).max_rep_level() == 1, "{}: column `vector` must be a list", path.display());
        Ok(Self { file, id, vector, metadata, image, hash, group: 0, rows: Vec::new().into_iter() })
    }

    fn read_group(&self) -> Result<Vec<Row>> {
        let group = self.file.get_row_group(self.group)?;
        let n = group.metadata().num_rows() as usize;
        let ids = texts(group.as_ref(), self.id, n)?;
        let vectors = match group.get_column_reader(self.vector)? {
            ColumnReader::FloatColumnReader(reader) => lists(reader, self.max_definition(self.vector), n, |v| v)?,
            ColumnReader::DoubleColumnReader(reader) => {
                lists::<DoubleType>(reader, self.max_definition(self.vector), n, |v| v as f32)?
            }
            _ => bail!("column `vector` holds no floats"),
        };
        let blobs = |column: Option<usize>| match column {
            Some(column) => blobs(group.as_ref(), column, n),
            None => Ok(vec![None; n]),
        };
        let (metadata, images, hashes) = (blobs(self.metadata)?, blobs(self.image)?, blobs(self.hash)?);
        let (mut vectors, mut metadata) = (vectors.into_iter(), metadata.into_iter());
        let (mut images, mut hashes) = (images.into_iter(), hashes.into_iter());
        let mut rows = Vec::with_capacity(n);
        for (i, id) in ids.into_iter().enumerate() {
            let row = || format!("row {i} of row group {}", self.group);
            let metadata = metadata.next().flatten();
            let metadata = metadata.map(|text| serde_json::from_slice::<JsonMap>(text.data())).transpose();
            let hash = hashes.next().flatten().map(|bytes| ContentHash::try_from(bytes.data())).transpose();
            rows.push(Row {
                id: id.with_context(|| format!("{} has no id", row()))?,
                vector: vectors.next().unwrap_or_default(),
                metadata: metadata
                    .with_context(|| format!("{}: metadata must be a JSON object", row()))?
                    .map(Metadata::from)
                    .unwrap_or_default(),
                image: images.next().flatten().map(|bytes| Arc::from(bytes.data())),
                hash: hash.with_context(|| format!("{}: sha256 must be 32 bytes", row()))?,
            });
        }
        Ok(rows)
    }

    /// The definition level of a value that is not null.
    fn max_definition(&self, column: usize) -> i16 {
        self.file.metadata().file_metadata().schema_descr().column(column).max_def_level()
    }
}

impl RowReader for Reader {
    fn next(&mut self) -> Result<Vec<Row>> {
        while self.rows.len() == 0 && self.group < self.file.num_row_groups() {
            self.rows = self.read_group()?.into_iter();
            self.group += 1;
        }
        Ok(self.rows.by_ref().take(BLOCK).collect())
    }

    fn encoder(&self) -> Option<String> {
        encoder(&self.file)
    }
}

fn encoder(file: &SerializedFileReader<File>) -> Option<String> {
    let pairs = file.metadata().file_metadata().key_value_metadata()?;
    pairs.iter().find(|pair| pair.key == ENCODER)?.value.clone()
}

/// The texts of `n` rows; null is `None`.
fn texts(group: &dyn RowGroupReader, column: usize, n: usize) -> Result<Vec<Option<String>>> {
    let text = |bytes: ByteArray| String::from_utf8(bytes.data().to_vec());
    let texts = blobs(group, column, n)?.into_iter().map(|bytes| bytes.map(text).transpose());
    texts.collect::<Result<_, _>>().context("a text is not UTF-8")
}

/// The bytes of `n` rows; null is `None`.
fn blobs(group: &dyn RowGroupReader, column: usize, n: usize) -> Result<Vec<Option<ByteArray>>> {
    let ColumnReader::ByteArrayColumnReader(mut reader) = group.get_column_reader(column)? else {
        bail!("column {column} holds no text");
    };
    let full = group.metadata().schema_descr().column(column).max_def_level();
    let (mut values, mut definition) = (Vec::new(), Vec::new());
    let levels = (full > 0).then_some(&mut definition);
    reader.read_records(n, levels, None, &mut values)?;
    let mut values = values.into_iter();
    let there = (0..n).map(|i| definition.get(i).is_none_or(|d| *d == full));
    Ok(there.map(|there| if there { values.next() } else { None }).collect())
}

/// The lists of numbers of `n` rows.  Null elements are left out, which makes the list too short.
fn lists<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    full: i16,
    n: usize,
    number: impl Fn(T::T) -> f32,
) -> Result<Vec<Vec<f32>>> {
    let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    reader.read_records(n, Some(&mut definition), Some(&mut repetition), &mut values)?;
    let mut values = values.into_iter();
    let mut lists: Vec<Vec<f32>> = Vec::with_capacity(n);
    for (defined, repeated) in definition.iter().zip(&repetition) {
        if *repeated == 0 {
            lists.push(Vec::new());
        }
        if let (true, Some(list)) = (*defined == full, lists.last_mut()) {
            list.extend(values.next().map(&number));
        }
    }
    ensure!(lists.len() == n, "expected {n} rows, found {}", lists.len());
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use std::fs;

    use super::*;

    #[test]
    fn a_written_file_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.parquet");
        let encoder = EncoderIdentity { sha256: "abc".into(), dim: 3 };
        let rows: Vec<Row> = (0..2 * BLOCK + 5)
            .map(|i| {
                let serde_json::Value::Object(metadata) = json!({ "n": i }) else { panic!() };
                let image = (i % 3 == 0).then(|| Arc::from(format!("picture {i}").into_bytes()));
                let hash = (i % 2 == 0).then_some([i as u8; 32]);
                Row {
                    id: format!("item {i}"),
                    vector: vec![i as f32, 1.0, -0.5],
                    metadata: metadata.into(),
                    image,
                    hash,
                }
            })
            .collect();
        let mut writer = Box::new(Writer::create(&path, &encoder).unwrap());
        rows.chunks(1000).for_each(|rows| writer.write(rows.to_vec()).unwrap());
        assert!(!path.exists());
        writer.finish().unwrap();
        let mut reader = Reader::open(&path).unwrap();
        assert_eq!(reader.encoder().as_deref(), Some("abc"));
        let mut found = Vec::new();
        loop {
            let block = reader.next().unwrap();
            if block.is_empty() {
                break;
            }
            found.extend(block);
        }
        assert_eq!(found, rows);
        fs::write(&path, "PAR1").unwrap();
        assert!(Reader::open(&path).is_err());
    }
}
