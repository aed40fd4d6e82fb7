//! The format of a file by its extension.

use std::path::Path;

use crate::decode::heif;

/// A file format of images or videos, with the file extensions that belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// .jpg .jpeg .jpe .jfif
    Jpeg,
    /// .png .apng
    Png,
    /// .gif
    Gif,
    /// .webp
    WebP,
    /// .bmp .dib
    Bmp,
    /// .tif .tiff
    Tiff,
    /// .ppm .pgm .pbm .pnm .pam
    Pnm,
    /// .heic .heif .hif
    Heic,
    /// .avif
    Avif,
    /// .jxl
    JpegXl,
    /// .jp2 .j2k .jpx .jpf
    Jpeg2000,
    /// Camera raw formats: .cr2 .nef .arw .dng and others.
    Raw,
    /// .svg .svgz
    Svg,
    /// .psd .psb
    Photoshop,
    /// .ico .cur
    Icon,
    /// .tga
    Targa,
    /// .exr
    OpenExr,
    /// .hdr
    Radiance,
    /// .dds
    Dds,
    /// .dcm .dicom
    Dicom,
    /// .mp4 .mov .avi and others
    Video,
}

/// The supported formats, for messages.
pub const READ: &str = "JPEG, PNG, WebP, GIF, BMP, TIFF, PNM; HEIC and AVIF with libheif";

const ENDINGS: &[(Format, &str, &[&str])] = &[
    (Format::Jpeg, "JPEG", &["jpg", "jpeg", "jpe", "jfif"]),
    (Format::Png, "PNG", &["png", "apng"]),
    (Format::Gif, "GIF", &["gif"]),
    (Format::WebP, "WebP", &["webp"]),
    (Format::Bmp, "BMP", &["bmp", "dib"]),
    (Format::Tiff, "TIFF", &["tif", "tiff"]),
    (Format::Pnm, "PNM", &["ppm", "pgm", "pbm", "pnm", "pam"]),
    (Format::Heic, "HEIC", &["heic", "heif", "hif", "heics", "heifs"]),
    (Format::Avif, "AVIF", &["avif", "avifs"]),
    (Format::JpegXl, "JPEG XL", &["jxl"]),
    (Format::Jpeg2000, "JPEG 2000", &["jp2", "j2k", "jpx", "jpf", "jpc"]),
    (
        Format::Raw,
        "RAW",
        &[
            "3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "fff", "iiq", "kdc", "mef", "mos", "mrw", "nef",
            "nrw", "orf", "pef", "raf", "raw", "rw2", "rwl", "sr2", "srf", "srw", "x3f",
        ],
    ),
    (Format::Svg, "SVG", &["svg", "svgz"]),
    (Format::Photoshop, "Photoshop", &["psd", "psb"]),
    (Format::Icon, "icon", &["ico", "cur", "icns"]),
    (Format::Targa, "TGA", &["tga"]),
    (Format::OpenExr, "OpenEXR", &["exr"]),
    (Format::Radiance, "Radiance HDR", &["hdr"]),
    (Format::Dds, "DDS", &["dds"]),
    (Format::Dicom, "DICOM", &["dcm", "dicom"]),
    (Format::Video, "video", &["mp4", "mov", "avi", "mkv", "m4v", "webm", "mpg", "mpeg", "3gp", "mts", "wmv"]),
];

impl Format {
    /// The format that a file's extension stands for; `None` for other extensions.
    pub fn of(file: &Path) -> Option<Format> {
        let ending = file.extension()?.to_str()?.to_ascii_lowercase();
        ENDINGS.iter().find(|(_, _, endings)| endings.contains(&ending.as_str())).map(|(format, ..)| *format)
    }

    /// Usual name of the format, for messages.
    pub fn name(self) -> &'static str {
        ENDINGS.iter().find(|(format, ..)| *format == self).map_or("", |(_, name, _)| name)
    }

    /// Whether [`crate::decode`] can read this format on this machine.
    ///
    /// Add new decoders here; a format whose library is found at run time depends on that library.  Files of other
    /// formats are counted and named in messages, but not opened.
    pub fn is_read(self) -> bool {
        use Format::{Avif, Bmp, Gif, Heic, Jpeg, Png, Pnm, Tiff, WebP};
        match self {
            Jpeg | Png | Gif | WebP | Bmp | Tiff | Pnm => true,
            Heic | Avif => heif::available(self.name()).is_ok(),
            _ => false,
        }
    }
}
