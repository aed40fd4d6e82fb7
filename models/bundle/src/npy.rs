//! The header of NumPy's `.npy` files, format 1.0: signature, version, length, and a Python dictionary.

/// First bytes of each `.npy` file.
pub const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Bytes of the whole header: a multiple of 64, as NumPy writes it, that has room for any shape of two numbers.
pub const HEADER: usize = 128;

/// The header of an array in row-major order; the little-endian values follow it.
///
/// `kind` is NumPy's name of the type (`<f4`, `<u4`), `shape` holds one or two lengths.
///
/// ```
/// let header = macrl_bundle::npy::header("<f4", &[2, 3]);
/// assert_eq!(header.len(), 128);
/// assert!(header.starts_with(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"));
/// ```
pub fn header(kind: &str, shape: &[usize]) -> Vec<u8> {
    let lengths: Vec<String> = shape.iter().map(usize::to_string).collect();
    // A tuple of one number is written with a comma.
    let comma = if shape.len() == 1 { "," } else { "" };
    let shape = lengths.join(", ");
    let mut header = MAGIC.to_vec();
    header.extend([1, 0]);
    header.extend(((HEADER - 10) as u16).to_le_bytes());
    header.extend(format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}{comma}), }}").bytes());
    header.resize(HEADER - 1, b' ');
    header.push(b'\n');
    header
}
