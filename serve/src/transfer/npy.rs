//! NumPy's `.npy` format, version 1: a signature, a header that is a Python dictionary, and the numbers.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Lines, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use macrl_bundle::atomic::Temporary;
use macrl_bundle::npy::{self, HEADER, MAGIC};
use macrl_bundle::regular;
use serde::Deserialize;
use serde_json::json;

use super::row::{BLOCK, Row, RowReader, RowWriter};
use crate::index::{JsonMap, Metadata};

/// NumPy's name of f32 in little-endian order.
const FLOATS: &str = "<f4";

/// Writes both files under temporary names and renames them.
pub(super) struct Writer {
    vectors: BufWriter<File>,
    lines: BufWriter<File>,
    /// Both temporary files and their final paths.
    moves: [(Temporary, PathBuf); 2],
    rows: usize,
    dim: usize,
}

/// The paths of the array and of its ids and metadata.
fn paths(file: &Path) -> [PathBuf; 2] {
    [file.to_path_buf(), file.with_extension("jsonl")]
}

/// Whether an export wrote this file and the one beside it.  An array alone may have any origin.
pub(super) fn is_own(file: &Path) -> bool {
    let [array, lines] = paths(file);
    let mut start = [0; HEADER];
    let array = regular::open(&array).and_then(|mut array| array.read_exact(&mut start)).is_ok();
    let dictionary = start.starts_with(&[&MAGIC[..], &[1, 0, (HEADER - 10) as u8, 0], b"{'descr': '<f4'"].concat());
    let first = regular::open(&lines).ok().map(|lines| BufReader::new(lines).lines().next());
    let ours = match first {
        Some(Some(line)) => line.is_ok_and(|line| serde_json::from_str::<Line>(&line).is_ok()),
        Some(None) => true, // the index was empty
        None => false,
    };
    array && dictionary && ours
}

/// The first of both files that exists.
pub(super) fn existing(file: &Path) -> Option<PathBuf> {
    paths(file).into_iter().find(|place| place.symlink_metadata().is_ok())
}

impl Writer {
    pub(super) fn create(file: &Path, dim: usize) -> Result<Self> {
        let moves = paths(file).map(|place| (Temporary::beside(&place), place));
        let create = |(temporary, place): &(Temporary, PathBuf)| {
            temporary.create().map(BufWriter::new).with_context(|| format!("cannot write {}", place.display()))
        };
        let (mut vectors, lines) = (create(&moves[0])?, create(&moves[1])?);
        vectors.write_all(&npy::header(FLOATS, &[0, dim]))?;
        Ok(Self { vectors, lines, moves, rows: 0, dim })
    }
}

impl RowWriter for Writer {
    fn write(&mut self, rows: Vec<Row>) -> Result<()> {
        for row in rows {
            let bytes: Vec<u8> = row.vector.iter().flat_map(|v| v.to_le_bytes()).collect();
            self.vectors.write_all(&bytes)?;
            writeln!(self.lines, "{}", json!({ "id": row.id, "metadata": row.metadata }))?;
            self.rows += 1;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.vectors.seek(SeekFrom::Start(0))?;
        self.vectors.write_all(&npy::header(FLOATS, &[self.rows, self.dim]))?;
        for (writer, (temporary, place)) in [&mut self.vectors, &mut self.lines].into_iter().zip(self.moves) {
            writer.flush()?;
            writer.get_ref().sync_all()?;
            temporary.persist().with_context(|| format!("cannot write {}", place.display()))?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    #[serde(default)]
    metadata: JsonMap,
}

pub(super) struct Reader {
    vectors: BufReader<File>,
    lines: Option<Lines<BufReader<File>>>,
    file: PathBuf,
    rows: usize,
    dim: usize,
    /// Bytes of a number: 4 or 8.
    width: usize,
    done: usize,
}

impl Reader {
    pub(super) fn open(file: &Path) -> Result<Self> {
        let opened = regular::open(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut vectors = BufReader::new(opened);
        let dictionary = read_header(&mut vectors).with_context(|| format!("{} is not a .npy file", file.display()))?;
        let (rows, dim, width) = parse_header(&dictionary)
            .with_context(|| format!("{} must hold (n, D) floats in C order, found {dictionary}", file.display()))?;
        let beside = file.with_extension("jsonl");
        let lines = match regular::open(&beside) {
            Ok(opened) => Some(BufReader::new(opened).lines()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", beside.display())),
        };
        Ok(Self { vectors, lines, file: file.to_path_buf(), rows, dim, width, done: 0 })
    }

    fn row(&mut self) -> Result<Row> {
        let mut bytes = vec![0; self.dim * self.width];
        self.vectors.read_exact(&mut bytes).with_context(|| format!("{} ends too early", self.file.display()))?;
        let vector = match self.width {
            4 => bytes.chunks_exact(4).filter_map(|b| Some(f32::from_le_bytes(b.try_into().ok()?))).collect(),
            _ => bytes.chunks_exact(8).filter_map(|b| Some(f64::from_le_bytes(b.try_into().ok()?) as f32)).collect(),
        };
        let number = self.done;
        self.done += 1;
        let Some(lines) = &mut self.lines else {
            return Ok(row(number.to_string(), vector, Metadata::default()));
        };
        let beside = self.file.with_extension("jsonl");
        let line = lines.next().with_context(|| format!("{} ends before row {number}", beside.display()))??;
        let line: Line = serde_json::from_str(&line).with_context(|| format!("{}, row {number}", beside.display()))?;
        Ok(row(line.id, vector, line.metadata.into()))
    }
}

impl RowReader for Reader {
    fn next(&mut self) -> Result<Vec<Row>> {
        let count = BLOCK.min(self.rows - self.done);
        (0..count).map(|_| self.row()).collect()
    }

    fn encoder(&self) -> Option<String> {
        None
    }
}

fn row(id: String, vector: Vec<f32>, metadata: Metadata) -> Row {
    Row { id, vector, metadata, image: None, hash: None }
}

fn read_header(file: &mut impl Read) -> Result<String> {
    let mut start = [0; 8];
    file.read_exact(&mut start)?;
    ensure!(start[..6] == *MAGIC, "it does not begin as one");
    let length = match start[6] {
        1 => {
            let mut length = [0; 2];
            file.read_exact(&mut length)?;
            usize::from(u16::from_le_bytes(length))
        }
        2 | 3 => {
            let mut length = [0; 4];
            file.read_exact(&mut length)?;
            u32::from_le_bytes(length) as usize
        }
        other => bail!("its version is {other}"),
    };
    ensure!(length <= 1 << 16, "its header has {length} bytes");
    let mut dictionary = vec![0; length];
    file.read_exact(&mut dictionary)?;
    Ok(String::from_utf8_lossy(&dictionary).trim().to_string())
}

/// Number of rows, number of columns, and bytes of a number.
fn parse_header(dictionary: &str) -> Option<(usize, usize, usize)> {
    let after = |key: &str| dictionary.split_once(key).map(|(_, rest)| rest.trim_start());
    let width = match after("'descr':")?.split('\'').nth(1)? {
        "<f4" => 4,
        "<f8" => 8,
        _ => return None,
    };
    if !after("'fortran_order':")?.starts_with("False") {
        return None;
    }
    let shape = after("'shape':")?.strip_prefix('(')?.split_once(')')?.0;
    let numbers: Vec<usize> = shape.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    match numbers[..] {
        [rows, dim] if dim > 0 && dim <= 1 << 20 => Some((rows, dim, width)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    // a = np.array([[1, 2, 3], [4, 5, 6]], "<f8"); np.save("a.npy", a); open("a.npy", "rb").read()[:128]
    const NUMPY: &[u8] = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }                                                          \n";

    #[test]
    fn files_of_numpy_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.npy");
        let mut bytes = NUMPY.to_vec();
        (1..=6).for_each(|v| bytes.extend(f64::from(v).to_le_bytes()));
        fs::write(&file, &bytes).unwrap();
        let rows = Reader::open(&file).unwrap().next().unwrap();
        assert_eq!(rows[1], row("1".into(), vec![4.0, 5.0, 6.0], Metadata::default()));
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        assert!(Reader::open(&file).unwrap().next().is_err());
    }

    #[test]
    fn the_header_equals_that_of_numpy() {
        let ours = String::from_utf8_lossy(&npy::header(FLOATS, &[2, 3])).replace("<f4", "<f8");
        assert_eq!(ours, String::from_utf8_lossy(NUMPY));
        assert_eq!(parse_header("{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3), }"), None);
        assert_eq!(parse_header("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }"), None);
        assert_eq!(parse_header("{'descr': '<f4', 'fortran_order': False, 'shape': (6,), }"), None);
    }
}
