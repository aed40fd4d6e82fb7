//! A NumPy array and the lines beside it as CSV: `id`, `metadata` (JSON), `v0`, `v1` and so on.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use macrl_bundle::atomic::Temporary;
use serde_json::Value;

/// Writes the rows of an export of `macrl-serve`; returns their number.
///
/// # Errors
/// A file that is not such an export, or that cannot be written.
pub(crate) fn csv(array: &Path, lines: &Path, out: &Path) -> Result<usize> {
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let mut values = BufReader::new(open(array)?);
    let dim = header(&mut values).with_context(|| format!("{} is not an array of floats", array.display()))?;
    let temporary = Temporary::beside(out);
    let cannot_write = || format!("cannot write {}", out.display());
    let mut text = BufWriter::new(temporary.create().with_context(cannot_write)?);
    let names: Vec<String> = (0..dim).map(|i| format!("v{i}")).collect();
    writeln!(text, "id,metadata,{}", names.join(",")).with_context(cannot_write)?;
    let (mut rows, mut row) = (0, vec![0u8; 4 * dim]);
    for line in BufReader::new(open(lines)?).lines() {
        let item: Value = serde_json::from_str(&line?).with_context(|| lines.display().to_string())?;
        values.read_exact(&mut row).with_context(|| format!("{} ends early", array.display()))?;
        let id = item["id"].as_str().context("a line without an id")?;
        write!(text, "{},{}", quoted(id), quoted(&item["metadata"].to_string())).with_context(cannot_write)?;
        for value in row.as_chunks::<4>().0 {
            write!(text, ",{}", f32::from_le_bytes(*value)).with_context(cannot_write)?;
        }
        writeln!(text).with_context(cannot_write)?;
        rows += 1;
    }
    text.into_inner()
        .map_err(|why| why.into_error())
        .with_context(cannot_write)?
        .sync_all()
        .with_context(cannot_write)?;
    temporary.persist().with_context(cannot_write)?;
    Ok(rows)
}

/// Reads the header of a two-dimensional array; returns the number of columns.
fn header(file: &mut impl Read) -> Result<usize> {
    let mut start = [0u8; 10];
    file.read_exact(&mut start)?;
    ensure!(start.starts_with(b"\x93NUMPY\x01"), "it does not begin as one");
    let mut text = vec![0u8; usize::from(u16::from_le_bytes([start[8], start[9]]))];
    file.read_exact(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(text.contains("'<f4'"), "found {text}");
    let shape = text.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')')).map(|(shape, _)| shape);
    let columns = shape.and_then(|shape| shape.split(',').nth(1)).and_then(|text| text.trim().parse().ok());
    columns.with_context(|| format!("found {text}"))
}

/// A field of CSV, in quotes where it must be.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // numpy.save(file, numpy.array([[0.5, -1], [2, 3.25]], "<f4"))
    const HEADER: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }\n";

    #[test]
    fn rows_and_names_meet() {
        let dir = tempfile::tempdir().unwrap();
        let [array, lines, out] = ["a.npy", "a.jsonl", "a.csv"].map(|name| dir.path().join(name));
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((HEADER.len() as u16).to_le_bytes());
        bytes.extend(HEADER.as_bytes());
        bytes.extend([0.5f32, -1.0, 2.0, 3.25].iter().flat_map(|v| v.to_le_bytes()));
        std::fs::write(&array, &bytes).unwrap();
        std::fs::write(&lines, "{\"id\":\"a,b\",\"metadata\":{\"label\":\"x\"}}\n{\"id\":\"c\",\"metadata\":{}}\n")
            .unwrap();
        assert_eq!(csv(&array, &lines, &out).unwrap(), 2);
        let text = std::fs::read_to_string(&out).unwrap();
        assert_eq!(text, "id,metadata,v0,v1\n\"a,b\",\"{\"\"label\"\":\"\"x\"\"}\",0.5,-1\nc,{},2,3.25\n");
        std::fs::write(&array, &bytes[..bytes.len() - 1]).unwrap();
        assert!(csv(&array, &lines, &out).unwrap_err().to_string().contains("ends early"));
    }
}
