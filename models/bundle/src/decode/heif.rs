//! Decodes HEIC (most phones' format) and AVIF with libheif, which is loaded at run time as ONNX Runtime is: no HEIC
//! decoder is free of patents.
//!
//! Searched once, in this order: the environment variable `MACRL_LIBHEIF` (the library or its folder); the program's
//! folder; `.deps/libheif` in the places of [`crate::places`] (`HEIF=1 make setup` installs it there); the system's
//! `libheif.so.1`.  Which of the two formats it reads depends on how it was built.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use image::{DynamicImage, RgbImage, RgbaImage};
use libloading::Library;

use super::{DecodeError, DecodeLimits, color, over_black};

/// HEIC or AVIF by the brands in the file's first box; `None` for other files.  Does not check that it can be decoded.
pub fn format(bytes: &[u8]) -> Option<&'static str> {
    let size = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    if bytes.get(4..8)? != b"ftyp" {
        return None;
    }
    let brands = bytes.get(8..size.clamp(12, 256).min(bytes.len()))?.chunks_exact(4);
    brands.enumerate().filter(|(i, _)| *i != 1).find_map(|(_, brand)| match brand {
        b"avif" | b"avis" => Some("AVIF"),
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" => Some("HEIC"),
        _ => None,
    })
}

/// Checks that libheif is installed and decodes `format`, HEIC or AVIF.
///
/// # Errors
/// What is missing, as a clause that continues "HEIC images need libheif, but ...".
pub fn available(format: &str) -> Result<(), String> {
    reader(format).map(|_| ())
}

fn reader(format: &str) -> Result<&'static LibHeif, String> {
    let library = libheif()?;
    let coding = if format == "AVIF" { AV1 } else { HEVC };
    // SAFETY: the function accepts any number.
    match unsafe { (library.have_decoder)(coding) } {
        0 => Err(format!("the one found was built without a decoder of {format}")),
        _ => Ok(library),
    }
}

/// Width x height from the file's header.
pub(super) fn announced(bytes: &[u8], format: &'static str, limits: &DecodeLimits) -> Result<u64, DecodeError> {
    let (width, height) = open(bytes, format, limits)?.size();
    Ok(u64::from(width) * u64::from(height))
}

/// Decodes a file and applies the rotations and crops that it specifies.
///
/// # Shapes
/// The result (height, width, 3) u8.
pub(super) fn decode(bytes: &[u8], format: &'static str, limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    let image = open(bytes, format, limits)?;
    let (width, height) = image.size();
    // Memory for the decoder's planes and for the interleaved pixels.
    if u64::from(width) * u64::from(height) * 8 > limits.max_alloc {
        return Err(DecodeError::TooMuchMemory { max_alloc: limits.max_alloc });
    }
    let pixels = image.pixels(limits).map_err(|cause| DecodeError::Broken { format, cause })?;
    Ok(over_black(color::to_srgb(pixels, &image.profile())))
}

/// Reads the header and checks the image's size.
fn open<'a>(bytes: &'a [u8], format: &'static str, limits: &DecodeLimits) -> Result<Primary<'a>, DecodeError> {
    let library = reader(format).map_err(|cause| DecodeError::NeedsLibheif { format, cause })?;
    let image = Primary::open(library, bytes).map_err(|cause| DecodeError::Broken { format, cause })?;
    let (width, height) = image.size();
    limits.check(width, height, format)?;
    Ok(image)
}

/// libheif's `heif_error`, returned by value.
#[repr(C)]
struct Status {
    code: c_int,
    subcode: c_int,
    message: *const c_char,
}

impl Status {
    fn ok(self) -> Result<(), String> {
        if self.code == 0 {
            return Ok(());
        }
        if self.message.is_null() {
            return Err(format!("libheif's error {}", self.code));
        }
        // SAFETY: libheif's messages are static, zero-terminated texts.
        let message = unsafe { CStr::from_ptr(self.message) }.to_string_lossy();
        Err(message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect())
    }
}

/// `heif_compression_HEVC` and `heif_compression_AV1`.
const HEVC: c_int = 1;
const AV1: c_int = 4;
/// `heif_colorspace_RGB`, the colour space to decode to.
const RGB: c_int = 1;
/// `heif_chroma_interleaved_RGB` and `heif_chroma_interleaved_RGBA`.
const INTERLEAVED: [c_int; 2] = [10, 11];
/// `heif_channel_interleaved`, the only plane of an interleaved image.
const CHANNEL: c_int = 10;
/// `heif_color_profile_type_nclx`: colour code points instead of an ICC profile; libheif applies them itself.
const NUMBERS: u32 = u32::from_be_bytes(*b"nclx");

/// The libheif functions in use.
struct LibHeif {
    have_decoder: unsafe extern "C" fn(c_int) -> c_int,
    context_alloc: unsafe extern "C" fn() -> *mut c_void,
    context_free: unsafe extern "C" fn(*mut c_void),
    set_maximum_edge: unsafe extern "C" fn(*mut c_void, c_int),
    read: unsafe extern "C" fn(*mut c_void, *const u8, usize, *const c_void) -> Status,
    primary: unsafe extern "C" fn(*mut c_void, *mut *mut c_void) -> Status,
    handle_release: unsafe extern "C" fn(*const c_void),
    handle_width: unsafe extern "C" fn(*const c_void) -> c_int,
    handle_height: unsafe extern "C" fn(*const c_void) -> c_int,
    has_alpha: unsafe extern "C" fn(*const c_void) -> c_int,
    profile_type: unsafe extern "C" fn(*const c_void) -> u32,
    profile_size: unsafe extern "C" fn(*const c_void) -> usize,
    profile: unsafe extern "C" fn(*const c_void, *mut u8) -> Status,
    decode: unsafe extern "C" fn(*const c_void, *mut *mut c_void, c_int, c_int, *const c_void) -> Status,
    image_release: unsafe extern "C" fn(*const c_void),
    image_width: unsafe extern "C" fn(*const c_void, c_int) -> c_int,
    image_height: unsafe extern "C" fn(*const c_void, c_int) -> c_int,
    plane: unsafe extern "C" fn(*const c_void, c_int, *mut c_int) -> *const u8,
    path: PathBuf,
    /// Keeps the library loaded, so that the functions stay valid.
    _library: Library,
}

impl LibHeif {
    fn load(path: &Path) -> Result<Self, libloading::Error> {
        // SAFETY: the file was named by the user or has libheif's name in a documented folder; the signatures are those
        // of libheif/heif.h, unchanged since version 1.4.
        unsafe {
            let library = Library::new(path)?;
            // Loads codec plugins, which newer versions keep in separate files; older versions lack this function.
            if let Ok(init) = library.get::<unsafe extern "C" fn(*const c_void) -> Status>(b"heif_init\0") {
                init(std::ptr::null());
            }
            Ok(Self {
                path: path.to_path_buf(),
                have_decoder: *library.get(b"heif_have_decoder_for_format\0")?,
                context_alloc: *library.get(b"heif_context_alloc\0")?,
                context_free: *library.get(b"heif_context_free\0")?,
                set_maximum_edge: *library.get(b"heif_context_set_maximum_image_size_limit\0")?,
                read: *library.get(b"heif_context_read_from_memory_without_copy\0")?,
                primary: *library.get(b"heif_context_get_primary_image_handle\0")?,
                handle_release: *library.get(b"heif_image_handle_release\0")?,
                handle_width: *library.get(b"heif_image_handle_get_width\0")?,
                handle_height: *library.get(b"heif_image_handle_get_height\0")?,
                has_alpha: *library.get(b"heif_image_handle_has_alpha_channel\0")?,
                profile_type: *library.get(b"heif_image_handle_get_color_profile_type\0")?,
                profile_size: *library.get(b"heif_image_handle_get_raw_color_profile_size\0")?,
                profile: *library.get(b"heif_image_handle_get_raw_color_profile\0")?,
                decode: *library.get(b"heif_decode_image\0")?,
                image_release: *library.get(b"heif_image_release\0")?,
                image_width: *library.get(b"heif_image_get_width\0")?,
                image_height: *library.get(b"heif_image_get_height\0")?,
                plane: *library.get(b"heif_image_get_plane_readonly\0")?,
                _library: library,
            })
        }
    }
}

static LOADED: OnceLock<Result<LibHeif, String>> = OnceLock::new();

/// Path or name of the library, if it was needed and loaded.
pub fn library_path() -> Option<PathBuf> {
    LOADED.get()?.as_ref().ok().map(|library| library.path.clone())
}

fn libheif() -> Result<&'static LibHeif, String> {
    LOADED.get_or_init(find).as_ref().map_err(Clone::clone)
}

fn find() -> Result<LibHeif, String> {
    if let Some(named) = std::env::var_os("MACRL_LIBHEIF").filter(|v| !v.is_empty()) {
        let named = PathBuf::from(named);
        let path = if named.is_dir() { library_in(&named).unwrap_or(named) } else { named };
        return LibHeif::load(&path).map_err(|e| format!("MACRL_LIBHEIF={} does not load: {e}", path.display()));
    }
    let system = PathBuf::from(if cfg!(target_os = "macos") { "libheif.1.dylib" } else { "libheif.so.1" });
    let mut damaged = None;
    for path in near_executable() {
        match LibHeif::load(&path) {
            Ok(library) => return Ok(library),
            Err(e) => damaged = Some(format!("{} does not load: {e}", path.display())),
        }
    }
    LibHeif::load(&system).map_err(|_| {
        damaged.unwrap_or_else(|| {
            "it was not found; install it (Debian: libheif1), set MACRL_LIBHEIF to it, or run `HEIF=1 make setup`"
                .into()
        })
    })
}

fn near_executable() -> Vec<PathBuf> {
    let places = crate::places::near_program();
    places.iter().filter_map(|place| library_in(place).or_else(|| library_in(&place.join("libheif")))).collect()
}

/// The library in `dir` or in a folder directly below.
fn library_in(dir: &Path) -> Option<PathBuf> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default()
    };
    let is_library = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libheif") && (name.contains(".so") || name.ends_with(".dylib")) && path.is_file()
    };
    let entries = list(dir);
    let below = entries.iter().filter(|p| dir.ends_with("libheif") && p.is_dir()).flat_map(|p| list(p));
    entries.iter().cloned().chain(below).find(is_library)
}

/// The primary image of a file; libheif borrows the file's bytes.
struct Primary<'a> {
    library: &'static LibHeif,
    context: *mut c_void,
    handle: *mut c_void,
    _bytes: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> Primary<'a> {
    fn open(library: &'static LibHeif, bytes: &'a [u8]) -> Result<Self, String> {
        // SAFETY: the bytes outlive the context; a null context or handle is only passed to functions that take it.
        unsafe {
            let context = (library.context_alloc)();
            let mut image = Self { library, context, handle: std::ptr::null_mut(), _bytes: std::marker::PhantomData };
            if context.is_null() {
                return Err("libheif has no memory".into());
            }
            (library.read)(context, bytes.as_ptr(), bytes.len(), std::ptr::null()).ok()?;
            (library.primary)(context, &mut image.handle).ok()?;
            Ok(image)
        }
    }

    fn size(&self) -> (u32, u32) {
        // SAFETY: `open` made the handle.
        let (width, height) =
            unsafe { ((self.library.handle_width)(self.handle), (self.library.handle_height)(self.handle)) };
        (width.try_into().unwrap_or(0), height.try_into().unwrap_or(0))
    }

    /// The embedded ICC profile; empty if there is none.
    fn profile(&self) -> Vec<u8> {
        // SAFETY: `open` made the handle; the buffer is as long as libheif says.
        unsafe {
            if matches!((self.library.profile_type)(self.handle), 0 | NUMBERS) {
                return Vec::new();
            }
            let mut bytes = vec![0; (self.library.profile_size)(self.handle)];
            match (self.library.profile)(self.handle, bytes.as_mut_ptr()).ok() {
                Ok(()) => bytes,
                Err(_) => Vec::new(),
            }
        }
    }

    fn pixels(&self, limits: &DecodeLimits) -> Result<DynamicImage, String> {
        // Largest edge of the coded image, whatever the header says; coded images are padded to blocks of 64.
        let edge = ((limits.max_pixels as f64).sqrt().ceil() + 64.0).min(32_768.0);
        // SAFETY: `open` made the context and the handle.
        let alpha = unsafe {
            (self.library.set_maximum_edge)(self.context, edge as c_int);
            (self.library.has_alpha)(self.handle) != 0
        };
        let mut image = std::ptr::null_mut();
        let chroma = INTERLEAVED[usize::from(alpha)];
        // SAFETY: as above; the result is released below, after it was copied.
        unsafe { (self.library.decode)(self.handle, &mut image, RGB, chroma, std::ptr::null()) }.ok()?;
        let copied = self.copy(image, if alpha { 4 } else { 3 }, limits);
        // SAFETY: `decode` created it, and nothing refers to it any more.
        unsafe { (self.library.image_release)(image) };
        let (width, height, samples) = copied?;
        let made = match alpha {
            true => RgbaImage::from_raw(width, height, samples).map(DynamicImage::ImageRgba8),
            false => RgbImage::from_raw(width, height, samples).map(DynamicImage::ImageRgb8),
        };
        made.ok_or_else(|| "libheif returned fewer pixels than the header says".into())
    }

    /// Copies a decoded image: (width, height, samples without padding between rows).
    fn copy(
        &self,
        image: *const c_void,
        channels: usize,
        limits: &DecodeLimits,
    ) -> Result<(u32, u32, Vec<u8>), String> {
        let mut stride: c_int = 0;
        // SAFETY: `image` is a decoded image with one interleaved plane.
        let (width, height, plane) = unsafe {
            let size =
                |f: unsafe extern "C" fn(*const c_void, c_int) -> c_int| u32::try_from(f(image, CHANNEL)).unwrap_or(0);
            let (width, height) = (size(self.library.image_width), size(self.library.image_height));
            (width, height, (self.library.plane)(image, CHANNEL, &mut stride))
        };
        let row = width as usize * channels;
        let stride = usize::try_from(stride).unwrap_or(0);
        if plane.is_null() || row == 0 || height == 0 || stride < row {
            return Err("libheif returned no pixels".into());
        }
        if u64::from(width) * u64::from(height) > limits.max_pixels {
            return Err(format!("its image has {width} x {height} pixels, more than the header says"));
        }
        let mut samples = Vec::with_capacity(row * height as usize);
        for y in 0..height as usize {
            // SAFETY: the plane has `height` rows of `stride` bytes, of which the first `row` are pixels.
            samples.extend_from_slice(unsafe { std::slice::from_raw_parts(plane.add(y * stride), row) });
        }
        Ok((width, height, samples))
    }
}

impl Drop for Primary<'_> {
    fn drop(&mut self) {
        // SAFETY: libheif created both, and each is released once.
        unsafe {
            if !self.handle.is_null() {
                (self.library.handle_release)(self.handle);
            }
            if !self.context.is_null() {
                (self.library.context_free)(self.context);
            }
        }
    }
}
