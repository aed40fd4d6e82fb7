//! One ONNX Runtime session and the memory of its input.  On a CPU it is ordinary memory.  On a GPU it is page-locked and bound
//! to the graph's input, so that it is copied to the device directly.

use std::collections::BTreeMap;

use macrl_bundle::bundle::{Bundle, INPUT, POOLED};
use macrl_runtime::{Device, Loaded, RuntimeError, SessionOptions};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{HasSelectedOutputs, IoBinding, OutputSelector, RunOptions, Session, SessionOutputs};
use ort::value::{Tensor, TensorRef};

/// A session of a bundle's graph.
pub(crate) struct Runner {
    session: Session,
    run_options: RunOptions<HasSelectedOutputs>,
    memory: Memory,
    /// Edge of an image, S.
    edge: usize,
    /// Length of a feature, D.
    dim: usize,
    /// The device it runs on: `cpu` or `cuda`.
    pub(crate) device: &'static str,
    /// What was asked for and is not used, and why.
    pub(crate) fallback: Option<String>,
}

/// The memory of a batch's pixels, (B, 3, S, S).
enum Memory {
    /// Ordinary memory, kept between batches.
    Plain(Vec<f32>),
    /// Bound memory for each batch size.
    Bound(BTreeMap<usize, Bound>),
}

/// The input of one batch size and the binding of the graph's input and output.  A binding keeps the output's shape, so each
/// size has its own.
struct Bound {
    input: Tensor<f32>,
    binding: IoBinding,
}

impl Runner {
    /// Opens the graph that suits the device and checks its names.
    ///
    /// # Errors
    /// The outer error is ONNX Runtime's; the inner one says how the graph does not fit the bundle.
    pub(crate) fn open(bundle: &Bundle, options: &SessionOptions) -> Result<Result<Self, String>, RuntimeError> {
        let Loaded { session, device, fallback } = load(bundle, options)?;
        let run_options = match RunOptions::new() {
            Ok(options) => options.with_outputs(OutputSelector::no_default().with(POOLED)),
            Err(e) => return Ok(Err(e.to_string())),
        };
        let (edge, dim) = (bundle.preprocess.image_size, bundle.config.hidden_size);
        let runner = Self { session, run_options, memory: Memory::Plain(Vec::new()), edge, dim, device, fallback };
        Ok(runner.check_names().map(|()| runner))
    }

    fn check_names(&self) -> Result<(), String> {
        let names = |outlets: &[ort::value::Outlet]| outlets.iter().map(|o| o.name().to_string()).collect::<Vec<_>>();
        let (inputs, outputs) = (names(self.session.inputs()), names(self.session.outputs()));
        if inputs != [INPUT] {
            return Err(format!("expected the one input {INPUT}, found {inputs:?}"));
        }
        if !outputs.iter().any(|o| o == POOLED) {
            return Err(format!("expected an output {POOLED}, found {outputs:?}"));
        }
        Ok(())
    }

    /// Runs every batch size once.  On a GPU, memory is bound first, unless bound memory gives other features.
    ///
    /// # Errors
    /// A graph that fails, or whose features are not (B, D).
    pub(crate) fn warm(&mut self, sizes: &[usize]) -> Result<(), String> {
        if self.device != "cpu"
            && let Err(why) = self.bind(AllocationDevice::CUDA_PINNED, sizes)
        {
            self.memory = Memory::Plain(Vec::new());
            self.fallback = Some(format!("no page-locked memory: {why}"));
        }
        // Largest first, so that ONNX Runtime's memory arena grows once.
        for size in sizes.iter().rev().copied() {
            self.input(size)?.fill(0.0);
            let found = self.run(size)?.len();
            if found != size * self.dim {
                return Err(format!("{POOLED} has {found} values for {size} images of hidden_size {}", self.dim));
            }
        }
        Ok(())
    }

    /// Binds memory of `device` for every size, and compares the features of one pass with those from ordinary memory.
    fn bind(&mut self, device: AllocationDevice, sizes: &[usize]) -> Result<(), String> {
        let Some(largest) = sizes.iter().copied().max() else { return Ok(()) };
        let ramp =
            |input: &mut [f32]| input.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 251) as f32 / 125.0 - 1.0);
        ramp(self.input(largest)?);
        let plain = self.run(largest)?;
        self.memory = Memory::Bound(self.bound(device, sizes).map_err(|e| e.to_string())?);
        ramp(self.input(largest)?);
        let bound = self.run(largest)?;
        let most = plain.iter().fold(0f32, |m, x| m.max(x.abs()));
        let same = plain.iter().zip(&bound).all(|(a, b)| (a - b).abs() <= 1e-2 * most);
        if plain.len() == bound.len() && same { Ok(()) } else { Err("features through it differ".into()) }
    }

    fn bound(&self, device: AllocationDevice, sizes: &[usize]) -> ort::Result<BTreeMap<usize, Bound>> {
        let place = MemoryInfo::new(device, 0, AllocatorType::Device, MemoryType::CPUInput)?;
        let host = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)?;
        let allocator = Allocator::new(&self.session, place)?;
        let bound = |size: usize| -> ort::Result<Bound> {
            let mut binding = self.session.create_binding()?;
            binding.bind_output_to_device(POOLED, &host)?;
            Ok(Bound { input: Tensor::new(&allocator, [size, 3, self.edge, self.edge])?, binding })
        };
        sizes.iter().map(|&size| Ok((size, bound(size)?))).collect()
    }

    /// The memory for a batch's pixels, (B, 3, S, S), to be written before [`Runner::run`].
    ///
    /// # Errors
    /// On a GPU: a size that was not bound, or memory that the processor cannot write.
    pub(crate) fn input(&mut self, size: usize) -> Result<&mut [f32], String> {
        match &mut self.memory {
            Memory::Plain(values) => {
                values.resize(size * 3 * self.edge * self.edge, 0.0);
                Ok(values)
            }
            Memory::Bound(sizes) => {
                let bound = sizes.get_mut(&size).ok_or_else(|| not_bound(size))?;
                // The infallible method panics if the processor cannot write this memory.
                bound.input.try_extract_tensor_mut::<f32>().map(|(_, values)| values).map_err(|e| e.to_string())
            }
        }
    }

    /// The pooled features (B, D) of the pixels in [`Runner::input`].
    ///
    /// # Errors
    /// Those of ONNX Runtime.
    pub(crate) fn run(&mut self, size: usize) -> Result<Vec<f32>, String> {
        match &mut self.memory {
            Memory::Plain(values) => {
                let input = TensorRef::from_array_view(([size, 3, self.edge, self.edge], values.as_slice()));
                let input = input.map_err(|e| e.to_string())?;
                let outputs = self.session.run_with_options(ort::inputs![INPUT => input], &self.run_options);
                features(&outputs.map_err(|e| e.to_string())?)
            }
            Memory::Bound(sizes) => {
                let Bound { input, binding } = sizes.get_mut(&size).ok_or_else(|| not_bound(size))?;
                // Binding the input copies it to the device.
                binding
                    .bind_input(INPUT, input)
                    .and_then(|()| binding.synchronize_inputs())
                    .map_err(|e| e.to_string())?;
                let outputs = self.session.run_binding(binding).map_err(|e| e.to_string())?;
                binding.synchronize_outputs().map_err(|e| e.to_string())?;
                features(&outputs)
            }
        }
    }
}

/// Loads the half-precision graph if the bundle has one and it loads on CUDA, otherwise the full-precision one.
fn load(bundle: &Bundle, options: &SessionOptions) -> Result<Loaded, RuntimeError> {
    let mut full_because = None;
    if options.device != Device::Cpu
        && let Some(fp16) = &bundle.onnx_fp16
    {
        let cuda = SessionOptions { device: Device::Cuda, ..options.clone() };
        match macrl_runtime::session(fp16, &cuda) {
            Ok(loaded) => return Ok(loaded),
            Err(why) => full_because = Some(format!("not in half precision: {why}")),
        }
    }
    let loaded = macrl_runtime::session(&bundle.onnx, options)?;
    let not_on_cuda = loaded.fallback.map(|why| format!("not on CUDA: {why}"));
    let fallback = if loaded.device == "cpu" { not_on_cuda } else { full_because };
    Ok(Loaded { fallback, ..loaded })
}

fn features(outputs: &SessionOutputs) -> Result<Vec<f32>, String> {
    let pooled = outputs.get(POOLED).ok_or_else(|| format!("no output {POOLED}"))?;
    pooled.try_extract_tensor::<f32>().map(|(_, values)| values.to_vec()).map_err(|e| e.to_string())
}

fn not_bound(size: usize) -> String {
    format!("no memory is bound for a batch of {size}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use macrl_runtime::SharedWeights;

    use super::*;

    fn pretrained() -> Bundle {
        Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pretrained/cifar10")).unwrap()
    }

    #[test]
    fn shared_weights_give_the_same_features() {
        let bundle = pretrained();
        let weights = SharedWeights::read(&bundle.onnx).unwrap();
        let options =
            |weights| SessionOptions { device: Device::Cpu, threads: 1, weights, ..SessionOptions::default() };
        let features = |weights| {
            let mut runner = Runner::open(&bundle, &options(weights)).unwrap().unwrap();
            runner.input(2).unwrap().iter_mut().enumerate().for_each(|(i, x)| *x = (i % 97) as f32 / 48.0 - 1.0);
            runner.run(2).unwrap()
        };
        let alone = features(None);
        assert!(alone.iter().any(|x| x.abs() > 0.1));
        let together = std::thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(|| features(Some(&weights))));
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(together.iter().all(|features| *features == alone));
        let broken = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(broken.path(), b"no model").unwrap();
        assert!(matches!(SharedWeights::read(broken.path()), Err(RuntimeError::Model { .. })));
    }

    #[test]
    fn bound_memory_gives_the_features_of_its_current_pixels() {
        let bundle = pretrained();
        let options = SessionOptions { device: Device::Cpu, threads: 1, ..SessionOptions::default() };
        let open = || Runner::open(&bundle, &options).unwrap().unwrap();
        let (mut plain, mut bound) = (open(), open());
        plain.warm(&[1, 4]).unwrap();
        bound.bind(AllocationDevice::CPU, &[1, 4]).unwrap();
        bound.warm(&[1, 4]).unwrap();
        assert!(matches!(bound.memory, Memory::Bound(_)));
        let mut seen = Vec::new();
        for (size, scale) in [(4, 1.0), (1, 0.5), (4, -0.7), (4, 0.2)] {
            let run = |runner: &mut Runner| {
                let write = |(i, x): (usize, &mut f32)| *x = scale * ((i * i % 97) as f32 / 48.0 - 1.0);
                runner.input(size).unwrap().iter_mut().enumerate().for_each(write);
                runner.run(size).unwrap()
            };
            let (a, b) = (run(&mut plain), run(&mut bound));
            assert_eq!(a.len(), size * bundle.config.hidden_size);
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
            assert!(!seen.contains(&a), "other pixels have other features");
            seen.push(a);
        }
        assert!(bound.input(2).is_err(), "memory for 2 images was not bound");
    }
}
