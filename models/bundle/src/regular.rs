//! Reads files that others may have made: only regular ones, and only up to a length.
//!
//! Opening a named pipe waits for its writer, and `/dev/zero` never ends.  Either may have the name of an image.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Most bytes of an image file.  Decoders allocate less than this.
pub const MAX_IMAGE: u64 = 1 << 30;
/// Most bytes of a JSON or TOML file.
pub const MAX_TEXT: u64 = 256 << 20;

/// Opens a file for reading, if it is a regular one.
///
/// # Errors
/// The I/O error; `InvalidInput` for what is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Before it is opened: opening a pipe would wait, and opening a device may do something.
    check(std::fs::metadata(path)?)?;
    let file = File::open(path)?;
    // Again: another file may have taken its place.
    check(file.metadata()?)?;
    Ok(file)
}

fn check(metadata: std::fs::Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(io::Error::new(io::ErrorKind::IsADirectory, "expected a file, found a folder")),
        _ => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a regular file, found a pipe, socket or device"))
        }
    }
}

/// The content of a regular file of any length.
///
/// # Errors
/// Those of [`open`] and of reading.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_up_to(path, u64::MAX)
}

/// The content of a regular file of at most `most` bytes.
///
/// # Errors
/// Those of [`open`] and of reading; `FileTooLarge` for a longer file.
pub fn read_up_to(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    let too_long = || io::Error::new(io::ErrorKind::FileTooLarge, format!("expected at most {most} bytes, found more"));
    if length > most {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX))?;
    // It may have grown meanwhile.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_long()) } else { Ok(bytes) }
}

/// As [`read_up_to`] with [`MAX_TEXT`], for text.
///
/// # Errors
/// As there; `InvalidData` if it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read_up_to(path, MAX_TEXT)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "expected UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_length_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero.png")).unwrap();
        assert!(Command::new("mkfifo").arg(at("pipe.png")).status().unwrap().success());
        assert_eq!((read(&at("file")).unwrap(), read_text(&at("link")).unwrap()), (b"text".to_vec(), "text".into()));
        for name in ["zero.png", "pipe.png"] {
            assert_eq!(read(&at(name)).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert_eq!(read(dir.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(read(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(read_up_to(&at("file"), 4).unwrap(), b"text");
        assert_eq!(read_up_to(&at("file"), 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // A sparse file: a terabyte that takes no room on the disk.
        let sparse = File::create(at("sparse.png")).unwrap();
        if sparse.set_len(1 << 40).is_ok() {
            assert_eq!(read_up_to(&at("sparse.png"), MAX_IMAGE).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        }
    }
}
