//! Small Parquet files for the tests, written with the same crate.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use image::RgbImage;
use parquet::basic::Compression;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

/// A column's values.
pub(super) enum Column {
    /// Structs {bytes, path}.
    Images(Vec<Option<Vec<u8>>>),
    Bytes(Vec<Vec<u8>>),
    Long(Vec<i64>),
    Unsigned(Vec<u32>),
    Truth(Vec<bool>),
    Real(Vec<f64>),
    Text(Vec<&'static str>),
    /// Lists of numbers.
    Lists(Vec<Vec<i64>>),
}

impl Column {
    fn schema(&self, name: &str) -> String {
        match self {
            Column::Images(_) => {
                format!("optional group {name} {{ optional binary bytes; optional binary path (STRING); }}")
            }
            Column::Bytes(_) => format!("required binary {name};"),
            Column::Long(_) => format!("required int64 {name};"),
            Column::Unsigned(_) => format!("required int32 {name} (INTEGER(32,false));"),
            Column::Truth(_) => format!("required boolean {name};"),
            Column::Real(_) => format!("required double {name};"),
            Column::Text(_) => format!("required binary {name} (STRING);"),
            Column::Lists(_) => {
                format!("required group {name} (LIST) {{ repeated group list {{ required int64 element; }} }}")
            }
        }
    }

    fn write(&self, group: &mut SerializedRowGroupWriter<File>) {
        match self {
            Column::Images(images) => {
                let values: Vec<ByteArray> = images.iter().flatten().cloned().map(ByteArray::from).collect();
                // Definition level 2: bytes are there; 1: the struct is, its bytes are null.
                let levels: Vec<i16> = images.iter().map(|i| 1 + i16::from(i.is_some())).collect();
                put::<ByteArrayType>(group, &values, Some(&levels), None);
                put::<ByteArrayType>(group, &[], Some(&vec![1; images.len()]), None);
            }
            Column::Bytes(values) => {
                let values: Vec<ByteArray> = values.iter().cloned().map(ByteArray::from).collect();
                put::<ByteArrayType>(group, &values, None, None);
            }
            Column::Long(values) => put::<Int64Type>(group, values, None, None),
            Column::Unsigned(values) => {
                put::<Int32Type>(group, &values.iter().map(|v| v.cast_signed()).collect::<Vec<_>>(), None, None);
            }
            Column::Truth(values) => put::<BoolType>(group, values, None, None),
            Column::Real(values) => put::<DoubleType>(group, values, None, None),
            Column::Text(values) => {
                let values: Vec<ByteArray> = values.iter().map(|v| ByteArray::from(*v)).collect();
                put::<ByteArrayType>(group, &values, None, None);
            }
            Column::Lists(lists) => {
                let values: Vec<i64> = lists.iter().flatten().copied().collect();
                // An empty list is one entry of level 0.
                let entries = |list: &Vec<i64>| list.len().max(1);
                let defined = lists.iter().flat_map(|l| vec![i16::from(!l.is_empty()); entries(l)]).collect::<Vec<_>>();
                let repeated = lists.iter().flat_map(|l| (0..entries(l)).map(|i| i16::from(i > 0))).collect::<Vec<_>>();
                put::<Int64Type>(group, &values, Some(&defined), Some(&repeated));
            }
        }
    }
}

fn put<T: DataType>(
    group: &mut SerializedRowGroupWriter<File>,
    values: &[T::T],
    defined: Option<&[i16]>,
    repeated: Option<&[i16]>,
) {
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<T>().write_batch(values, defined, repeated).unwrap();
    column.close().unwrap();
}

/// Writes one row group; `features` is the `huggingface` entry's `info.features`.
pub(super) fn write(path: &Path, compression: Compression, features: Option<&str>, columns: &[(&str, Column)]) {
    write_groups(path, compression, features, &[columns]);
}

/// Writes several row groups of the same schema.
pub(super) fn write_groups(
    path: &Path,
    compression: Compression,
    features: Option<&str>,
    groups: &[&[(&str, Column)]],
) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text = |features: &str| format!(r#"{{"info": {{"features": {features}}}}}"#);
    let entry = features.map(|features| vec![KeyValue::new("huggingface".to_string(), text(features))]);
    let properties = WriterProperties::builder().set_compression(compression).set_key_value_metadata(entry).build();
    let fields: Vec<String> = groups[0].iter().map(|(name, column)| column.schema(name)).collect();
    let schema = Arc::new(parse_message_type(&format!("message schema {{ {} }}", fields.join(" "))).unwrap());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for columns in groups {
        let mut group = writer.next_row_group().unwrap();
        columns.iter().for_each(|(_, column)| column.write(&mut group));
        group.close().unwrap();
    }
    writer.close().unwrap();
}

/// A grey PNG of 3 x 3.
pub(super) fn png(shade: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = RgbImage::from_pixel(3, 3, image::Rgb([shade; 3]));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}
