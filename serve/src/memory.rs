//! [`MemoryParts`]: what clients can make the server take in memory, as a sum; and limits that keep the sum within a budget.
//!
//! The model, ONNX Runtime's buffers, the program itself and the allocator's losses are not part of it: no client changes them.

use std::str::FromStr;

use crate::limits::Limits;

/// Bytes of the buffers of one connection: what was received and not parsed, and what was not sent yet.
const CONNECTION: u64 = 256 << 10;
/// Most bytes that hyper keeps of what a connection received; also the longest header.
pub(crate) const RECEIVE_BUFFER: usize = 128 << 10;
/// Connections beyond the limit: those that have not asked for anything yet, and those that wait.
const MORE_CONNECTIONS: u64 = 48;
/// A body, the text that its JSON was parsed to, and the images that were decoded from that.
const BODY_COPIES: u64 = 3;
/// Bytes of the smallest part for one decoder.
const LEAST_DECODER: u64 = 32 << 20;
/// Bytes of a pixel while a photograph is decoded.
const PIXEL: u64 = 6;
/// The smallest budget.
const LEAST: u64 = 256 << 20;

/// The memory that clients can cause, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryParts {
    /// Images that are being decoded.
    pub decoders: u64,
    /// Bodies, and what was parsed from them.
    pub bodies: u64,
    /// Large responses.
    pub responses: u64,
    /// Buffers of connections.
    pub connections: u64,
    /// Items of an index in this process.
    pub index: u64,
}

impl MemoryParts {
    /// The parts that these limits allow; `with_index`: whether the index is in this process.
    pub fn of(limits: &Limits, with_index: bool) -> Self {
        let (ordinary, slow) = decoders(limits);
        Self {
            decoders: (ordinary + slow) as u64 * limits.decode.max_alloc,
            bodies: BODY_COPIES * limits.buffered_bytes as u64,
            responses: limits.response_bytes as u64,
            connections: (limits.connections as u64 + MORE_CONNECTIONS) * CONNECTION,
            index: if with_index { limits.index_bytes as u64 } else { 0 },
        }
    }

    /// All parts but the index.
    pub fn requests(&self) -> u64 {
        self.decoders + self.bodies + self.responses + self.connections
    }

    /// All parts.
    pub fn sum(&self) -> u64 {
        self.requests() + self.index
    }
}

/// Numbers of threads that decode ordinary images and large images.
pub(crate) fn decoders(limits: &Limits) -> (usize, usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let ordinary = limits.decoders.unwrap_or(cores).clamp(1, cores);
    (ordinary, (ordinary / 2).max(1))
}

/// What the command line says about limits that a budget divides.
#[derive(Debug, Clone, Copy, Default)]
pub struct Given {
    /// `--max-index`.
    pub index: Option<u64>,
    /// `--max-body`.
    pub body: Option<u64>,
    /// `--max-pixels`.
    pub pixels: Option<u64>,
}

/// Sets the limits so that [`MemoryParts::sum`] is at most `budget`.  `with_index` as in [`MemoryParts::of`].
///
/// # Errors
/// A sentence, if the budget is too small, alone or for a limit that was given.
pub fn divide(limits: &mut Limits, budget: u64, given: Given, with_index: bool) -> Result<(), String> {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    if budget < LEAST {
        return Err(format!("--memory must be at least {}, found {}", mib(LEAST), mib(budget)));
    }
    let index = if with_index { given.index.unwrap_or(budget / 5) } else { 0 };
    let rest = budget.saturating_sub(index);
    if rest < LEAST / 2 {
        let (found, least) = (mib(index), mib(LEAST / 2));
        return Err(format!("--max-index must leave {least} of --memory ({}), found {found}", mib(budget)));
    }
    // Eighths: three for decoding, three for bodies, one each for responses and connections.
    let eighth = rest / 8;
    limits.memory = Some(budget);
    limits.index_bytes = if with_index { index as usize } else { limits.index_bytes };
    let connections = (eighth / CONNECTION).saturating_sub(MORE_CONNECTIONS).max(8);
    limits.connections = limits.connections.min(connections as usize);
    limits.response_bytes = limits.response_bytes.min(eighth as usize);
    limits.buffered_bytes = limits.buffered_bytes.min((3 * eighth / BODY_COPIES) as usize);
    divide_decoders(limits, 3 * eighth);
    limits.decode.max_pixels = given.pixels.unwrap_or(limits.decode.max_pixels.min(limits.decode.max_alloc / PIXEL));
    match given.body {
        Some(body) if body > limits.buffered_bytes as u64 => {
            let most = limits.buffered_bytes;
            return Err(format!("--max-body must be at most {most} with --memory {}, found {body}", mib(budget)));
        }
        // Two of the largest bodies fit.
        None => limits.body_bytes = limits.body_bytes.min(limits.buffered_bytes / 2),
        Some(_) => {}
    }
    Ok(())
}

/// Fewer decoders, if each would otherwise have too little.
fn divide_decoders(limits: &mut Limits, bytes: u64) {
    let (mut ordinary, mut slow) = decoders(limits);
    while ordinary > 1 && (ordinary + slow) as u64 * LEAST_DECODER > bytes {
        limits.decoders = Some(ordinary - 1);
        (ordinary, slow) = decoders(limits);
    }
    limits.decoders = Some(ordinary);
    limits.decode.max_alloc = limits.decode.max_alloc.min(bytes / (ordinary + slow) as u64);
}

/// A number of bytes: `1073741824`, `1GiB`, `1.5G` or `800MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected bytes like 1GiB, 800MB or 1073741824, found {text}");
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        let bytes = number * factor as f64;
        if bytes.is_finite() && bytes < 2f64.powi(53) { Ok(Self(bytes as u64)) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_add_up_to_no_more_than_the_budget() {
        for budget in [256 << 20, 300_000_000, 1 << 30, 4 << 30, 64 << 30] {
            for with_index in [false, true] {
                for cores in [None, Some(1)] {
                    let mut limits = Limits { decoders: cores, ..Limits::default() };
                    divide(&mut limits, budget, Given::default(), with_index).unwrap();
                    let parts = MemoryParts::of(&limits, with_index);
                    assert!(parts.sum() <= budget, "{budget}: {parts:?}");
                    assert!(
                        limits.body_bytes >= 4 << 20
                            && limits.connections >= 8
                            && limits.decode.max_pixels >= 4_000_000
                    );
                }
            }
        }
        // A large budget changes nothing but the index.
        let mut limits = Limits::default();
        divide(&mut limits, 1 << 40, Given::default(), true).unwrap();
        let usual = Limits {
            index_bytes: limits.index_bytes,
            memory: Some(1 << 40),
            decoders: limits.decoders,
            ..Limits::default()
        };
        assert_eq!(limits, usual);
    }

    #[test]
    fn limits_that_were_given_stay_or_are_refused() {
        let divided = |given: Given| {
            let mut limits = Limits { body_bytes: 8 << 20, ..Limits::default() };
            divide(&mut limits, 1 << 30, given, true).map(|()| limits)
        };
        let limits = divided(Given { index: Some(600 << 20), pixels: Some(1_000), body: Some(8 << 20) }).unwrap();
        assert_eq!((limits.index_bytes, limits.decode.max_pixels, limits.body_bytes), (600 << 20, 1_000, 8 << 20));
        assert!(MemoryParts::of(&limits, true).sum() <= 1 << 30);
        for given in
            [Given { index: Some(1 << 30), ..Given::default() }, Given { body: Some(1 << 29), ..Given::default() }]
        {
            assert!(divided(given).is_err(), "{given:?}");
        }
        assert!(divide(&mut Limits::default(), 1 << 20, Given::default(), true).is_err());
    }

    #[test]
    fn bytes_have_units() {
        let bytes = |text: &str| text.parse::<Bytes>().map(|b| b.0);
        assert_eq!((bytes("1GiB"), bytes("1.5g"), bytes("800 MB")), (Ok(1 << 30), Ok(3 << 29), Ok(800_000_000)));
        assert_eq!((bytes("123"), bytes("2kib")), (Ok(123), Ok(2048)));
        for wrong in ["", "GiB", "1 parsec", "-1", "1e9", "99999999TiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
