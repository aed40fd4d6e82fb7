//! One Parquet file: its columns, and the rows of one column.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;
use macrl_bundle::folder::text;
use macrl_bundle::regular;
use parquet::data_type::ByteArray;
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::{Type, TypePtr};

use super::labels::Label;

/// A file that is opened again for every read.  The crate's own reader shares one file position between its clones, so that
/// threads that read at the same time would get each other's bytes.
pub(super) struct Reopened {
    path: PathBuf,
    length: u64,
}

impl Reopened {
    fn at(&self, start: u64) -> ParquetResult<File> {
        let mut file = regular::open(&self.path)?;
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

/// A file whose footer was read.
pub(super) struct ParquetFile {
    pub(super) path: PathBuf,
    pub(super) reader: SerializedFileReader<Reopened>,
}

impl ParquetFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = text(path);
        let file = regular::open(path).with_context(|| format!("cannot read {name}"))?;
        let length = file.metadata()?.len();
        let file = Reopened { path: path.to_path_buf(), length };
        let reader = SerializedFileReader::new(file).with_context(|| format!("{name} is not a whole Parquet file"))?;
        Ok(ParquetFile { path: path.to_path_buf(), reader })
    }

    pub(super) fn name(&self) -> String {
        text(&self.path)
    }

    /// The columns at the top of the schema.
    pub(super) fn columns(&self) -> &[TypePtr] {
        self.reader.metadata().file_metadata().schema().get_fields()
    }

    pub(super) fn groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    pub(super) fn rows(&self, group: usize) -> usize {
        self.reader.metadata().row_group(group).num_rows().max(0) as usize
    }

    /// An entry of the file's key-value metadata.
    pub(super) fn entry(&self, key: &str) -> Option<&str> {
        let entries = self.reader.metadata().file_metadata().key_value_metadata()?;
        entries.iter().find(|e| e.key == key)?.value.as_deref()
    }

    /// Passes the values of one column of one row group to `take`, until it returns false.
    pub(super) fn column(&self, group: usize, column: &TypePtr, mut take: impl FnMut(Field) -> bool) -> Result<()> {
        let unreadable = || format!("cannot read the column {} of {}", column.name(), self.name());
        let reader = self.reader.get_row_group(group).with_context(unreadable)?;
        let only = Type::group_type_builder("schema").with_fields(vec![column.clone()]).build()?;
        for row in reader.get_row_iter(Some(only)).with_context(unreadable)? {
            let field = row.with_context(unreadable)?.into_columns().into_iter().next();
            if !take(field.map_or(Field::Null, |(_, field)| field)) {
                break;
            }
        }
        Ok(())
    }

    /// The first bytes in a column, among its first rows.
    pub(super) fn first(&self, column: &TypePtr) -> Result<Option<ByteArray>> {
        const ROWS: usize = 64;
        let (mut found, mut seen) = (None, 0);
        for group in 0..self.groups() {
            self.column(group, column, |field| {
                found = bytes_of(field);
                seen += 1;
                found.is_none() && seen < ROWS
            })?;
            if found.is_some() || seen >= ROWS {
                break;
            }
        }
        Ok(found)
    }
}

/// A file with its image column and its label column.
pub(super) struct ImageFile {
    pub(super) file: ParquetFile,
    pub(super) image: TypePtr,
    pub(super) label: Option<TypePtr>,
    /// The names of a ClassLabel.
    pub(super) names: Option<Vec<String>>,
}

impl ImageFile {
    /// Bytes of the encoded images.
    pub(super) fn encoded(&self) -> u64 {
        let groups = self.file.reader.metadata().row_groups();
        let columns = groups.iter().flat_map(|g| g.columns());
        let wanted = columns.filter(|c| c.column_path().parts().first().is_some_and(|n| n == self.image.name()));
        wanted.map(|c| c.uncompressed_size().max(0) as u64).sum()
    }

    /// Appends a label for each row; returns whether some row has several.
    pub(super) fn labels(&self, labels: &mut Vec<Option<Label>>) -> Result<bool> {
        let mut several = false;
        for group in 0..self.file.groups() {
            match &self.label {
                Some(column) => self.file.column(group, column, |field| {
                    let label = Label::of(field);
                    several |= label.is_err();
                    labels.push(label.unwrap_or(None));
                    true
                })?,
                None => labels.resize(labels.len() + self.file.rows(group), None),
            }
        }
        Ok(several)
    }

    pub(super) fn images(&self, group: usize, images: &mut Vec<Option<ByteArray>>) -> Result<()> {
        self.file.column(group, &self.image, |field| {
            images.push(bytes_of(field));
            true
        })
    }
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
