//! Chooses between a bundle's 32-bit and 8-bit graphs on a CPU.  With `auto`, the 8-bit graph runs if its proof holds and it is
//! faster on this machine.

use std::time::{Duration, Instant};

use macrl_bundle::bundle::{Bundle, ONNX_INT8};
use macrl_bundle::device::Device;
use macrl_bundle::quantized::Quantized;
use macrl_runtime::SessionOptions;

use super::error::EngineError;
use super::options::{EngineOptions, Precision};
use super::runner::Runner;

/// The 8-bit graph is chosen if it is at least so many times as fast: a smaller gain does not justify its rounding.
const FASTER: f64 = 1.1;
/// The measurement: images of a batch, rounds, and the time after which no further round begins.
const IMAGES: usize = 2;
const ROUNDS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(1);
/// Smallest cosine of both graphs' features for the same pixels; with a smaller one, the file belongs to another network.
const ALIKE: f32 = 0.9;

/// The decision of `auto`.
struct Choice {
    /// Whether the 8-bit graph runs.
    int8: bool,
    /// The reason, in a few words.
    note: String,
}

/// The graph that the workers run.
pub(super) struct Chosen {
    pub(super) bundle: Bundle,
    pub(super) device: Device,
    /// Whether it is the 8-bit graph.
    pub(super) int8: bool,
    /// The reason for the decision of `auto`.
    pub(super) note: Option<String>,
}

impl Chosen {
    /// Chooses the graph that the options ask for.
    ///
    /// # Errors
    /// [`EngineError::Precision`] if 8 bits were asked for and are not available.
    pub(super) fn of(bundle: &Bundle, options: &EngineOptions) -> Result<Self, EngineError> {
        let full = |note| Self { bundle: bundle.clone(), device: options.device, int8: false, note };
        let int8 = |bundle, note| Self { bundle, device: Device::Cpu, int8: true, note };
        match options.precision {
            Precision::F32 => Ok(full(None)),
            Precision::Int8 => Ok(int8(required(bundle, options.device)?, None)),
            Precision::Auto if options.device == Device::Cuda => Ok(full(None)),
            Precision::Auto => {
                let Choice { int8: better, note } = choose(bundle, options.threads);
                match with_int8(bundle).filter(|_| better && runs_on_cpu(bundle, options.device)) {
                    Some(bundle) => Ok(int8(bundle, Some(note))),
                    None => Ok(full(Some(note).filter(|_| !better))),
                }
            }
        }
    }
}

/// Whether this device is the CPU, or `auto` that finds no other.
fn runs_on_cpu(bundle: &Bundle, device: Device) -> bool {
    let session = SessionOptions { device, ..SessionOptions::default() };
    device == Device::Cpu || matches!(Runner::open(bundle, &session), Ok(Ok(runner)) if runner.device == "cpu")
}

/// The bundle with the 8-bit graph in the place of the others.
fn with_int8(bundle: &Bundle) -> Option<Bundle> {
    let onnx = bundle.onnx_int8.clone()?;
    Some(Bundle { onnx, onnx_fp16: None, ..bundle.clone() })
}

/// The bundle with the 8-bit graph, which the user asked for.
///
/// # Errors
/// [`EngineError::Precision`] if the bundle has no such graph, or a GPU was asked for.
fn required(bundle: &Bundle, device: Device) -> Result<Bundle, EngineError> {
    if device == Device::Cuda {
        let cause = "--precision int8 is for a CPU: use --device cpu, or another precision";
        return Err(EngineError::Precision(cause.into()));
    }
    let missing = || {
        let dir = bundle.dir.display();
        let cause = format!(
            "--precision int8: {ONNX_INT8} is missing from the bundle {dir}; `macrl-export quantize {dir} --data FOLDER` \
             writes it, or use another precision"
        );
        EngineError::Precision(cause)
    };
    with_int8(bundle).ok_or_else(missing)
}

/// Decides between both graphs by the proof and by a short measurement.
fn choose(bundle: &Bundle, threads: usize) -> Choice {
    let f32 = |note: String| Choice { int8: false, note };
    let Some(int8) = with_int8(bundle) else { return f32(format!("the bundle has no {ONNX_INT8}")) };
    match bundle.parity.as_ref().and_then(|parity| parity.int8.as_ref()) {
        None => return f32(format!("parity.json has no proof of {ONNX_INT8}")),
        Some(proof) if !Quantized::holds(proof) => return f32(format!("{ONNX_INT8} costs too much by parity.json")),
        Some(_) => {}
    }
    match faster(bundle, &int8, threads) {
        Ok(times) if times >= FASTER => Choice { int8: true, note: format!("{times:.2} times as fast as f32 here") },
        Ok(times) => f32(format!("int8 is {times:.2} times as fast as f32 here: not worth its rounding")),
        Err(cause) => f32(format!("{} cannot be used: {cause}", int8.onnx.display())),
    }
}

/// How many times as fast `int8` is.
fn faster(full: &Bundle, int8: &Bundle, threads: usize) -> Result<f64, String> {
    let session = SessionOptions { device: Device::Cpu, threads, ..SessionOptions::default() };
    let open = |bundle: &Bundle| {
        let runner = Runner::open(bundle, &session).map_err(|e| e.to_string())??;
        Ok::<_, String>(runner)
    };
    let mut runners = [open(full)?, open(int8)?];
    let mut features = Vec::new();
    for runner in &mut runners {
        let ramp = |(i, x): (usize, &mut f32)| *x = (i * 31 % 251) as f32 / 125.0 - 1.0;
        runner.input(IMAGES)?.iter_mut().enumerate().for_each(ramp);
        features.push(runner.run(IMAGES)?);
    }
    let alike = cosine(&features[0], &features[1]) >= ALIKE;
    if !alike {
        return Err("it gives other features than onnx/model.onnx".into());
    }
    let (since, mut best) = (Instant::now(), [f64::INFINITY; 2]);
    for round in 0..ROUNDS {
        if round > 0 && since.elapsed() > PATIENCE {
            break;
        }
        // In turns, so that other work on the machine affects both graphs.
        for (runner, best) in runners.iter_mut().zip(&mut best) {
            let started = Instant::now();
            runner.run(IMAGES)?;
            *best = best.min(started.elapsed().as_secs_f64());
        }
    }
    Ok(best[0] / best[1].max(f64::MIN_POSITIVE))
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    if a.len() == b.len() { dot(a, b) / (dot(a, a) * dot(b, b)).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn pretrained() -> Bundle {
        Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pretrained/cifar10")).unwrap()
    }

    fn options(precision: Precision) -> EngineOptions {
        EngineOptions { device: Device::Cpu, precision, ..EngineOptions::default() }
    }

    #[test]
    fn both_graphs_of_a_bundle_give_nearly_the_same() {
        let bundle = pretrained();
        let int8 = with_int8(&bundle).unwrap();
        let session = SessionOptions { device: Device::Cpu, threads: 1, ..SessionOptions::default() };
        let features = [&bundle, &int8].map(|bundle| {
            let mut runner = Runner::open(bundle, &session).unwrap().unwrap();
            let ramp = |(i, x): (usize, &mut f32)| *x = (i * 7 % 101) as f32 / 50.0 - 1.0;
            runner.input(2).unwrap().iter_mut().enumerate().for_each(ramp);
            runner.run(2).unwrap()
        });
        let cosine = cosine(&features[0], &features[1]);
        assert!(cosine > 0.999 && features[0] != features[1], "{cosine}");
        assert!(faster(&bundle, &int8, 1).unwrap() > 0.0);
        // A graph that cannot be opened is an error.
        let other = Bundle { onnx: Path::new("/nowhere/model.onnx").into(), ..int8 };
        assert!(faster(&bundle, &other, 1).is_err());
    }

    #[test]
    fn auto_says_why_it_stays_at_32_bits() {
        let note = |bundle: &Bundle| {
            let chosen = Chosen::of(bundle, &options(Precision::Auto)).unwrap();
            assert!(!chosen.int8 && chosen.bundle.onnx == bundle.onnx);
            chosen.note.unwrap()
        };
        let bundle = pretrained();
        let without = Bundle { onnx_int8: None, ..bundle.clone() };
        assert_eq!(note(&without), "the bundle has no onnx/model_quantized.onnx");
        let unproven = Bundle { parity: None, ..bundle.clone() };
        assert_eq!(note(&unproven), "parity.json has no proof of onnx/model_quantized.onnx");
        let mut poor = bundle.clone();
        poor.parity.as_mut().unwrap().int8.as_mut().unwrap().features.min_cosine = 0.9;
        assert_eq!(note(&poor), "onnx/model_quantized.onnx costs too much by parity.json");
        let broken = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(broken.path(), b"no model").unwrap();
        let damaged = Bundle { onnx_int8: Some(broken.path().into()), ..bundle };
        let said = note(&damaged);
        assert!(said.starts_with(&format!("{} cannot be used: ", broken.path().display())), "{said}");
    }

    #[test]
    fn int8_without_its_graph_is_an_error() {
        let bundle = pretrained();
        let refused = |bundle: &Bundle, device| {
            let options = EngineOptions { device, ..options(Precision::Int8) };
            Chosen::of(bundle, &options).err().unwrap().to_string()
        };
        let without = Bundle { onnx_int8: None, ..bundle.clone() };
        let said = refused(&without, Device::Auto);
        assert!(said.contains("model_quantized.onnx is missing") && said.contains("macrl-export quantize"), "{said}");
        assert!(refused(&bundle, Device::Cuda).contains("use --device cpu"));
        let chosen = Chosen::of(&bundle, &options(Precision::Int8)).unwrap();
        assert!(chosen.int8 && chosen.note.is_none() && chosen.bundle.onnx == bundle.onnx_int8.unwrap());
        assert!("int4".parse::<Precision>().unwrap_err().contains("auto, f32 or int8"));
    }
}
