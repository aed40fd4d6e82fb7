//! Which column holds the images, and which the labels.
//!
//! What the configuration names comes first, then what the Hugging Face metadata call Image and ClassLabel, then what
//! the schema and the first rows show.  Several that are equally good are refused, with the key that chooses.

use anyhow::{Result, anyhow};
use parquet::basic::{LogicalType, Type as Physical};
use parquet::schema::types::TypePtr;
use serde_json::Value;

use super::file::{ImageFile, ParquetFile};
use crate::data::reading::{Columns, Unclear};

/// Names of image columns; earlier ones are preferred.
const IMAGES: [&str; 9] = ["image", "img", "picture", "photo", "image_bytes", "jpg", "jpeg", "png", "webp"];
/// Names of label columns; the first that exists is used.
const LABELS: [&str; 17] = [
    "label",
    "fine_label",
    "labels",
    "class",
    "target",
    "coarse_label",
    "category",
    "cls",
    "class_label",
    "class_name",
    "class_id",
    "label_id",
    "label_name",
    "category_id",
    "species",
    "targets",
    "y",
];

/// A file with its chosen columns, or a file without images.
pub(super) enum Chosen {
    ImageFile(ImageFile),
    NoImages(ParquetFile),
}

/// Chooses a file's columns.
pub(super) fn choose(file: ParquetFile, wanted: &Columns) -> Result<Chosen> {
    let features = Features::of(&file);
    let Some(image) = image_column(&file, &features, &wanted.image)? else { return Ok(Chosen::NoImages(file)) };
    let label = label_column(&file, &features, &wanted.label, &image)?;
    let names = label.as_ref().and_then(|column| features.names(column.name()));
    Ok(Chosen::ImageFile(ImageFile { file, image, label, names }))
}

/// Names of the columns, for messages.
pub(super) fn listed(file: &ParquetFile) -> String {
    file.columns().iter().map(|c| c.name()).collect::<Vec<_>>().join(", ")
}

fn image_column(file: &ParquetFile, features: &Features, wanted: &str) -> Result<Option<TypePtr>> {
    if !wanted.is_empty() {
        let column = named(file, wanted, "data.image_column")?;
        return match may_hold_images(&column) {
            true => Ok(Some(column)),
            false => {
                Err(unclear(file, &format!("`data.image_column` = {wanted:?} names a column that holds no bytes")))
            }
        };
    }
    let possible = file.columns().iter().filter(|c| may_hold_images(c));
    let declared: Vec<TypePtr> = possible.clone().filter(|c| features.is(c.name(), "Image")).cloned().collect();
    if !declared.is_empty() {
        return one_of(file, declared, &IMAGES, "image", "data.image_column").map(Some);
    }
    let mut found: Vec<TypePtr> = Vec::new();
    for column in possible.filter(|c| !features.is(c.name(), "Audio")) {
        if looks_like_images(file, column)? {
            found.push(column.clone());
        }
    }
    if found.is_empty() {
        return Ok(None);
    }
    one_of(file, found, &IMAGES, "image", "data.image_column").map(Some)
}

/// Whether a column holds bytes, or structs with a field `bytes`.
fn may_hold_images(column: &TypePtr) -> bool {
    if column.is_group() {
        return column.get_fields().iter().any(|f| f.name() == "bytes" && is_bytes(f));
    }
    is_bytes(column)
}

fn is_bytes(column: &TypePtr) -> bool {
    let text = matches!(column.get_basic_info().logical_type_ref(), Some(LogicalType::String | LogicalType::Json));
    column.is_primitive() && !text && column.get_physical_type() == Physical::BYTE_ARRAY
}

/// Whether a column holds images: decided by its first value, or by its name where there is no value that can be read.
fn looks_like_images(file: &ParquetFile, column: &TypePtr) -> Result<bool> {
    let known = rank(column.name(), &IMAGES).is_some();
    let first = file.first(column)?;
    Ok(first.map_or(known, |bytes| known || image::guess_format(bytes.data()).is_ok()))
}

fn label_column(file: &ParquetFile, features: &Features, wanted: &str, image: &TypePtr) -> Result<Option<TypePtr>> {
    if !wanted.is_empty() {
        return named(file, wanted, "data.label_column").map(Some);
    }
    let others = file.columns().iter().filter(|c| c.name() != image.name());
    let declared: Vec<TypePtr> = others.clone().filter(|c| features.is(c.name(), "ClassLabel")).cloned().collect();
    if !declared.is_empty() {
        return one_of(file, declared, &LABELS, "label", "data.label_column").map(Some);
    }
    let known = others.filter_map(|c| Some((rank(c.name(), &LABELS)?, c)));
    Ok(known.min_by_key(|(rank, _)| *rank).map(|(_, column)| column.clone()))
}

fn named(file: &ParquetFile, name: &str, key: &str) -> Result<TypePtr> {
    let found = file.columns().iter().find(|c| c.name() == name).cloned();
    found.ok_or_else(|| unclear(file, &format!("`{key}` = {name:?} is not a column; there are {}", listed(file))))
}

/// Chooses the only column, or the one with the most preferred name.
fn one_of(file: &ParquetFile, columns: Vec<TypePtr>, known: &[&str], what: &str, key: &str) -> Result<TypePtr> {
    if let [one] = &columns[..] {
        return Ok(one.clone());
    }
    let best = columns.iter().filter_map(|c| Some((rank(c.name(), known)?, c))).min_by_key(|(rank, _)| *rank);
    best.map(|(_, column)| column.clone()).ok_or_else(|| {
        let names: Vec<&str> = columns.iter().map(|c| c.name()).collect();
        unclear(file, &format!("there are several {what} columns ({}): choose one with `{key}`", names.join(", ")))
    })
}

fn rank(name: &str, known: &[&str]) -> Option<usize> {
    known.iter().position(|k| name.eq_ignore_ascii_case(k))
}

fn unclear(file: &ParquetFile, what: &str) -> anyhow::Error {
    anyhow!(Unclear(format!("{}: {what}", file.name())))
}

/// `info.features` in the metadata entry `huggingface`: what each column is.
struct Features(Value);

impl Features {
    fn of(file: &ParquetFile) -> Self {
        let json: Option<Value> = file.entry("huggingface").and_then(|text| serde_json::from_str(text).ok());
        Features(json.and_then(|json| json.pointer("/info/features").cloned()).unwrap_or_default())
    }

    fn is(&self, column: &str, kind: &str) -> bool {
        self.0.get(column).and_then(|feature| feature.get("_type")).is_some_and(|found| found == kind)
    }

    /// The names of a ClassLabel or of a list of them: given as a list, or as an object whose keys are numbers.
    fn names(&self, column: &str) -> Option<Vec<String>> {
        let feature = self.0.get(column)?;
        match feature.get("names").or_else(|| feature.get("feature")?.get("names"))? {
            Value::Array(names) => names.iter().map(|n| n.as_str().map(String::from)).collect(),
            Value::Object(names) => {
                (0..names.len()).map(|i| names.get(&i.to_string())?.as_str().map(String::from)).collect()
            }
            _ => None,
        }
    }
}
