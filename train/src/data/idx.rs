//! MNIST-style IDX files, plain or gzipped: big-endian header (magic 0x0801 for labels, 0x0803 for images), then bytes.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;
use image::RgbImage;
use macrl_bundle::regular;

use super::memory::{Memory, pad};
use super::names;
use super::reading::{Reading, Splits, class_names};

/// Where the files may lie below the folder that was named (torchvision's downloads put them into `raw`).
const PLACES: [&str; 4] = ["", "raw", "FashionMNIST/raw", "MNIST/raw"];
const IMAGES: u32 = 0x0803;
const LABELS: u32 = 0x0801;

/// `train-images-idx3-ubyte[.gz]`, its labels, and the same for `t10k`; grey becomes R = G = B.
///
/// Class names: `classes.txt` beside the files (one per line), else Fashion-MNIST's where the folder has that name,
/// else the digits.
///
/// # Errors
/// When a file is unreadable, truncated, or its label count differs from its image count.
pub fn read(dir: &Path, reading: &Reading) -> Result<Option<Splits>> {
    let holds = |place: &&&str| locate(&dir.join(place), "train-images", "idx3").is_some();
    let Some(place) = PLACES.iter().find(holds) else { return Ok(None) };
    let names = known(dir, place);
    let dir = dir.join(place);
    let train = split(&dir, "train", "train", reading)?.context("train-images: no such file")?;
    let test = split(&dir, "test", "t10k", reading)?;
    let highest = train.1.max(test.as_ref().map_or(0, |t| t.1));
    let classes = class_names(&dir, &["classes.txt"], names, highest);
    let test = test.map(|t| Arc::new(t.0) as _);
    Ok(Some(Splits::new(Arc::new(train.0), test, classes)))
}

/// Fashion-MNIST's names, where the folder that was named (or the data's own, or what a link leads to) says so.
fn known(dir: &Path, place: &str) -> Vec<String> {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    // torchvision's `raw` is a part of the data.
    let own = |dir: &Path| {
        if dir.ends_with("raw") { dir.parent()?.file_name()?.to_str() } else { dir.file_name()?.to_str() }
            .map(String::from)
    };
    let names = [own(dir), own(&full)].into_iter().flatten();
    let fashion = names.chain([place.to_string()]).any(|name| is_fashion(&name));
    if fashion { names::owned(&names::FASHION_MNIST) } else { Vec::new() }
}

/// `fashion-mnist`, `FashionMNIST/raw`, `fashion_mnist_28x28`, `fmnist`, `fashion`; not `old-fashioned`.
fn is_fashion(name: &str) -> bool {
    let letters: String = name.chars().filter(|c| c.is_ascii_alphabetic()).map(|c| c.to_ascii_lowercase()).collect();
    letters == "fashion" || letters == "fmnist" || letters.contains("fashionmnist")
}

/// `train-images-idx3-ubyte`, with a dot for the second dash as some mirrors have it, plain or gzipped.
fn locate(dir: &Path, stem: &str, kind: &str) -> Option<PathBuf> {
    let plain = [format!("{stem}-{kind}-ubyte"), format!("{stem}.{kind}-ubyte")];
    plain.iter().flat_map(|n| [dir.join(n), dir.join(format!("{n}.gz"))]).find(|p| p.is_file())
}

/// One split and its highest label; `None` where its image file is missing.
fn split(dir: &Path, name: &'static str, stem: &str, reading: &Reading) -> Result<Option<(Memory, u32)>> {
    let Some(file) = locate(dir, &format!("{stem}-images"), "idx3") else { return Ok(None) };
    let images = images(&file, reading)?;
    let labels = match locate(dir, &format!("{stem}-labels"), "idx1") {
        Some(file) => labels(&file, images.len())?,
        None => vec![None; images.len()],
    };
    let highest = labels.iter().flatten().copied().max().unwrap_or(0);
    Ok(Some((Memory::new(name, images, labels), highest)))
}

fn images(file: &Path, reading: &Reading) -> Result<Vec<RgbImage>> {
    let (sizes, bytes) = open(file, IMAGES, 3)?;
    let (height, width) = (sizes[1], sizes[2]);
    if height == 0 || width == 0 {
        bail!("{} is damaged: images of {width} x {height} pixels", file.display());
    }
    let grey = |pixels: &[u8]| {
        let rgb = pixels.iter().flat_map(|v| [*v; 3]).collect();
        RgbImage::from_raw(width as u32, height as u32, rgb).map(|image| pad(image, reading.pad_to))
    };
    bytes.chunks_exact(height * width).map(|p| grey(p).context("image buffer of the wrong size")).collect()
}

fn labels(file: &Path, images: usize) -> Result<Vec<Option<u32>>> {
    let (sizes, bytes) = open(file, LABELS, 1)?;
    if sizes[0] != images {
        bail!("{} does not fit its images: expected {images} labels, found {}", file.display(), sizes[0]);
    }
    Ok(bytes.into_iter().map(|b| Some(b.into())).collect())
}

/// Sizes of the `dims` dimensions and the bytes after the header, of exactly the length that the header promises.
fn open(file: &Path, magic: u32, dims: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let name = file.display();
    let raw = regular::read(file).with_context(|| format!("cannot read {name}"))?;
    let header = 4 * (1 + dims);
    let bytes = if raw.starts_with(&[0x1f, 0x8b]) {
        unpack(&raw, header).with_context(|| format!("{name} is damaged (gzip)"))?
    } else {
        raw
    };
    if bytes.len() < header {
        bail!("{name} is truncated: expected a header of {header} bytes, found {} bytes", bytes.len());
    }
    let word = |i: usize| u32::from_be_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]);
    if word(0) != magic {
        bail!("{name} is not such an IDX file: expected magic {magic:#06x}, found {:#06x}", word(0));
    }
    let sizes: Vec<usize> = (1..=dims).map(|i| word(i) as usize).collect();
    let expected = sizes.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).and_then(|n| n.checked_add(header));
    if expected != Some(bytes.len()) {
        let expected = expected.map_or("far more".into(), |n| n.to_string());
        bail!("{name} is truncated: expected {expected} bytes, found {}", bytes.len());
    }
    Ok((sizes, bytes[header..].to_vec()))
}

/// Unpacks a file, but not further than a byte beyond the length that its header promises: kilobytes may unpack to gigabytes.
fn unpack(packed: &[u8], header: usize) -> std::io::Result<Vec<u8>> {
    let (mut plain, mut decoder) = (Vec::new(), MultiGzDecoder::new(packed));
    decoder.by_ref().take(header as u64).read_to_end(&mut plain)?;
    let sizes = plain.chunks_exact(4).skip(1).map(|s| u64::from(u32::from_be_bytes([s[0], s[1], s[2], s[3]])));
    let promised = sizes.fold(1u64, u64::saturating_mul);
    decoder.take(promised.saturating_add(1)).read_to_end(&mut plain)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const READING: Reading = Reading::plain(Some(4), u64::MAX);

    fn idx(magic: u32, sizes: &[u32], body: &[u8]) -> Vec<u8> {
        let mut bytes = magic.to_be_bytes().to_vec();
        sizes.iter().for_each(|s| bytes.extend(s.to_be_bytes()));
        bytes.extend(body);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn reads_plain_and_gzipped_files_and_pads() {
        let dir = tempfile::Builder::new().prefix("digits").tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("train-images-idx3-ubyte.gz", &gzip(&idx(IMAGES, &[2, 2, 2], &[1, 2, 3, 4, 5, 6, 7, 8])));
        write("train-labels-idx1-ubyte", &idx(LABELS, &[2], &[7, 0]));
        write("t10k-images-idx3-ubyte", &idx(IMAGES, &[1, 2, 2], &[9; 4]));
        let splits = read(dir.path(), &READING).unwrap().unwrap();
        let test = splits.test.unwrap();
        assert_eq!((splits.train.len(), test.len()), (2, 1));
        assert_eq!((splits.train.label(0), splits.train.label(1), test.label(0)), (Some(7), Some(0), None));
        let image = splits.train.image(1).unwrap();
        assert_eq!(image.dimensions(), (4, 4));
        assert_eq!(
            (image.get_pixel(1, 1).0, image.get_pixel(2, 2).0, image.get_pixel(0, 0).0),
            ([5; 3], [8; 3], [0; 3])
        );
        assert_eq!(splits.classes.len(), 8);
        write("classes.txt", b"zero\none\n");
        assert_eq!(read(dir.path(), &READING).unwrap().unwrap().classes[..3], ["zero", "one", "2"]);
    }

    #[test]
    fn fashion_is_a_name_of_the_data_and_not_of_a_folder_around_it() {
        let dir = tempfile::tempdir().unwrap();
        let first_class = |folder: &str, below: &str| {
            let at = dir.path().join(folder).join(below);
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(at.join("train-images-idx3-ubyte"), idx(IMAGES, &[1, 2, 2], &[9; 4])).unwrap();
            std::fs::write(at.join("train-labels-idx1-ubyte"), idx(LABELS, &[1], &[0])).unwrap();
            read(&dir.path().join(folder), &READING).unwrap().unwrap().classes[0].clone()
        };
        let fashion = [("fashion-mnist", ""), ("data1", "FashionMNIST/raw"), ("Fashion_MNIST", "raw"), ("fmnist", "")];
        fashion.iter().for_each(|(folder, below)| assert_eq!(first_class(folder, below), "T-shirt/top", "{folder}"));
        let digits = [("old-fashioned/mnist", ""), ("fashion-week", ""), ("data2", "MNIST/raw"), ("fashion/raw2", "")];
        digits.iter().for_each(|(folder, below)| assert_eq!(first_class(folder, below), "0", "{folder}"));
    }

    #[test]
    fn a_file_unpacks_no_further_than_its_header_says() {
        let mut bytes = idx(LABELS, &[2], &[1, 2]);
        assert_eq!(unpack(&gzip(&bytes), 8).unwrap(), bytes);
        bytes.resize(100_000_000, 0);
        assert_eq!(unpack(&gzip(&bytes), 8).unwrap().len(), 8 + 2 + 1);
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("train-images-idx3-ubyte");
        let message = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            format!("{:#}", read(dir.path(), &READING).err().unwrap())
        };
        let whole = idx(IMAGES, &[2, 2, 2], &[0; 8]);
        assert!(message(&whole[..20]).ends_with("truncated: expected 24 bytes, found 20"));
        assert!(message(&whole[..7]).ends_with("expected a header of 16 bytes, found 7 bytes"));
        assert!(message(&idx(LABELS, &[2, 2, 2], &[0; 8])).ends_with("expected magic 0x0803, found 0x0801"));
        assert!(message(&idx(IMAGES, &[u32::MAX; 3], &[0; 8])).contains("expected far more bytes, found 24"));
        assert!(message(&gzip(&whole)[..20]).contains("damaged (gzip)"));
        std::fs::write(&file, &whole).unwrap();
        std::fs::write(dir.path().join("train-labels-idx1-ubyte"), idx(LABELS, &[3], &[0; 3])).unwrap();
        assert!(read(dir.path(), &READING).err().unwrap().to_string().contains("expected 2 labels, found 3"));
    }
}
