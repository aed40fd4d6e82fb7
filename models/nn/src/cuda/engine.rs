//! One GPU: its stream, kernels, cuBLASLt handle and working memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::cuda::cudarc::driver::sys::{
    CUdevice_attribute, CUfunction_attribute, CUgraphMem_attribute, CUmemPool_attribute, CUresult,
    cuDeviceGetDefaultMemPool, cuDeviceGetGraphMemAttribute, cuMemPoolGetAttribute, cuMemPoolSetAttribute,
};
use candle_core::cuda::cudarc::driver::{CudaFunction, CudaModule, CudaSlice, CudaStream};
use candle_core::cuda::cudarc::nvrtc::Ptx;
use candle_core::cuda::{DeviceId, WrapErr};
use candle_core::{CudaDevice, Device, Result, bail};

use super::address::slice_address;
use super::gemm::Gemm;
use super::real::Real;

/// This crate's kernels.
pub static KERNELS: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));

/// Machine code of a crate's kernels; a device loads it when the first of them is asked for.
#[derive(Debug)]
pub struct Kernels(&'static [u8]);

impl Kernels {
    /// Of a fatbin's bytes.
    pub const fn new(fatbin: &'static [u8]) -> Self {
        Kernels(fatbin)
    }
}

/// What all operators on one device share.
pub struct Engine {
    /// Candle's handle.
    pub device: CudaDevice,
    /// The one stream.
    pub stream: Arc<CudaStream>,
    /// Matrix products.
    pub gemm: Gemm,
    pub(super) pool: Pool,
    /// Shared memory a block may have, in bytes.
    pub shared_limit: usize,
    /// Multiprocessors.
    pub processors: usize,
    /// What was loaded of each [`Kernels`], by where its bytes lie.
    modules: Mutex<HashMap<usize, Module>>,
    counters: CudaSlice<u32>,
    capturing: Arc<AtomicBool>,
}

/// A crate's kernels on the device.
struct Module {
    module: Arc<CudaModule>,
    functions: HashMap<String, Loaded>,
}

impl Module {
    fn load(stream: &CudaStream, kernels: &Kernels) -> Result<Self> {
        let module = stream.context().load_module(Ptx::from_binary(kernels.0.to_vec())).w()?;
        Ok(Module { module, functions: HashMap::new() })
    }
}

/// A kernel, and the most shared memory that any launch has asked for.  The driver's attribute is never lowered: a node
/// of a captured step keeps the size that it was recorded with, and fails where the attribute is below it by then.
struct Loaded {
    function: CudaFunction,
    shared: usize,
}

/// Working memory that is free, by its size in bytes; [`super::memory::Scratch`] takes from it and gives back.
pub(super) type Pool = Mutex<HashMap<usize, Vec<CudaSlice<u8>>>>;

type Engines = HashMap<DeviceId, Arc<Engine>>;

fn engines() -> MutexGuard<'static, Engines> {
    static ENGINES: OnceLock<Mutex<Engines>> = OnceLock::new();
    ENGINES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Opens a GPU with a stream of its own.
    ///
    /// # Errors
    /// No driver, no device, or one that the kernels do not run on.
    pub fn open(ordinal: usize) -> Result<Device> {
        // The driver's stand-in for "no driver" is an error code; a missing one ends the process before main.
        let device = CudaDevice::new_with_stream(ordinal)?;
        // SAFETY: everything runs on this one stream, so there is nothing between streams to order.
        unsafe { device.disable_event_tracking() };
        keep_memory(&device)?;
        let engine = Self::load(&device)?;
        engines().insert(device.id(), Arc::new(engine));
        Ok(Device::Cuda(device))
    }

    /// The engine of a device that [`Engine::open`] gave.
    ///
    /// # Errors
    /// Another device.
    pub fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        match engines().get(&device.id()) {
            Some(engine) => Ok(engine.clone()),
            None => bail!("this CUDA device was not opened by Engine::open"),
        }
    }

    /// The engine of a tensor's device.
    ///
    /// # Errors
    /// A device that is not a GPU, or was not opened here.
    pub fn at(device: &Device) -> Result<Arc<Self>> {
        Self::of(device.as_cuda_device()?)
    }

    fn load(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let own = Module::load(&stream, &KERNELS)?;
        let attribute = |a| context.attribute(a).w().map(|v| v.max(0) as usize);
        let capturing = Arc::new(AtomicBool::new(false));
        let bias_rows = [Real::F32, Real::Bf16].map(|real| own.module.load_function(&real.kernel("bias_rows")).w());
        let [f32_rows, bf16_rows] = bias_rows;
        Ok(Engine {
            gemm: Gemm::new(&stream, capturing.clone(), [f32_rows?, bf16_rows?])?,
            pool: Pool::default(),
            shared_limit: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            processors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1),
            counters: stream.alloc_zeros(COUNTERS).w()?,
            modules: Mutex::new(HashMap::from([(KERNELS.0.as_ptr() as usize, own)])),
            capturing,
            stream,
            device: device.clone(),
        })
    }

    /// The GPU's name.
    pub fn name(&self) -> String {
        self.stream.context().name().unwrap_or_else(|_| "a CUDA device".into())
    }

    /// A kernel by name, allowed `shared` bytes of shared memory.
    ///
    /// # Errors
    /// An unknown name, or more shared memory than the device has.
    pub fn function(&self, kernels: &Kernels, name: &str, shared: usize) -> Result<CudaFunction> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let Module { module, functions } = match modules.entry(kernels.0.as_ptr() as usize) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => place.insert(Module::load(&self.stream, kernels)?),
        };
        if !functions.contains_key(name) {
            let function = module.load_function(name).w()?;
            functions.insert(name.to_string(), Loaded { function, shared: DEFAULT_SHARED });
        }
        let Some(loaded) = functions.get_mut(name) else { bail!("kernel {name} was not loaded") };
        if shared > loaded.shared {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            loaded.function.set_attribute(attribute, shared as i32).w()?;
            loaded.shared = shared;
        }
        Ok(loaded.function.clone())
    }

    /// Address of the counters that a grid's last block is found with: one of the whole grid, and one for every
    /// [`TREE`] blocks.
    pub fn counters(&self) -> u64 {
        slice_address(&self.counters, &self.stream)
    }

    /// Blocks of a kernel that adds up its blocks' sums, where `wanted` would do and `each` run on a multiprocessor.
    pub(super) fn summing_blocks(&self, wanted: usize, each: usize) -> usize {
        wanted.clamp(1, (each * self.processors).min(TREE * (COUNTERS - 1)))
    }

    /// Runs `f` while the stream is captured: no working memory is allocated then.
    pub(super) fn while_capturing<R>(&self, f: impl FnOnce() -> R) -> R {
        self.capturing.store(true, Ordering::SeqCst);
        let result = f();
        self.capturing.store(false, Ordering::SeqCst);
        result
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.capturing.load(Ordering::SeqCst)
    }

    /// The most memory that was reserved so far for tensors, working memory and captured steps, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        let device = self.stream.context().cu_device();
        let (mut pool, mut plain, mut graphs) = (std::ptr::null_mut(), 0u64, 0u64);
        let high = CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH;
        let graph_high = CUgraphMem_attribute::CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
        // SAFETY: valid pointers to 64-bit numbers, as both attributes are; what fails leaves 0.
        unsafe {
            if cuDeviceGetDefaultMemPool(&mut pool, device) == CUresult::CUDA_SUCCESS {
                let _ = cuMemPoolGetAttribute(pool, high, std::ptr::from_mut(&mut plain).cast());
            }
            let _ = cuDeviceGetGraphMemAttribute(device, graph_high, std::ptr::from_mut(&mut graphs).cast());
        }
        plain + graphs
    }

    /// Waits until everything queued is done.
    ///
    /// # Errors
    /// What a kernel that ran before did wrong.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().w()
    }
}

/// Shared memory that needs no asking for.
const DEFAULT_SHARED: usize = 48 * 1024;
/// Blocks whose sums are added up together; `TREE` in `common.cuh`.
const TREE: usize = 16;
/// One, and one for every [`TREE`] blocks.
const COUNTERS: usize = 1 + 256;

/// Freed memory stays with the process: without this every synchronisation gives it back.
fn keep_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: plain calls with valid pointers; the driver copies what they point to.
    let code = unsafe {
        match cuDeviceGetDefaultMemPool(&mut pool, stream.context().cu_device()) {
            CUresult::CUDA_SUCCESS => {
                let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
                cuMemPoolSetAttribute(pool, attribute, std::ptr::from_mut(&mut threshold).cast())
            }
            code => code,
        }
    };
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => bail!("cannot set the memory pool's release threshold: {code:?}"),
    }
}

/// Queues a kernel of a crate: `launch_from!(kernels; engine, name, grid, block, shared_bytes; arguments)`, an unsafe
/// operation.  Callers have candle_core among their dependencies.
///
/// # Safety
/// The arguments have exactly the kernel's types (addresses u64, int i32, unsigned u32, size_t u64, float f32), and every
/// address is that of as many values as the kernel reads or writes, in memory that lives until the stream has passed
/// this point: a tensor's, or that of a [`Scratch`](crate::cuda::memory::Scratch), which is used again in stream order only.
#[macro_export]
macro_rules! launch_from {
    ($kernels:expr; $engine:expr, $name:expr, $grid:expr, $block:expr, $shared:expr; $($argument:expr),* $(,)?) => {{
        use candle_core::cuda::WrapErr;
        use candle_core::cuda::cudarc::driver::{LaunchConfig, PushKernelArg};
        let (grid, block, shared): ((u32, u32), u32, usize) = ($grid, $block, $shared);
        let function = $engine.function(&$kernels, &$name, shared)?;
        let mut builder = $engine.stream.launch_builder(&function);
        candle_core::builder_arg!(builder, $($argument),*);
        let shape = LaunchConfig {
            grid_dim: (grid.0, grid.1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared as u32
        };
        builder.launch(shape).w().map(|_| ())
    }};
}

/// [`launch_from!`] with this crate's kernels.
macro_rules! launch {
    ($($all:tt)*) => { $crate::launch_from!($crate::cuda::engine::KERNELS; $($all)*) };
}
pub(super) use launch;

/// (blocks, 1) of `threads` for `count` elements.
pub fn blocks(count: usize, threads: usize) -> (u32, u32) {
    (count.div_ceil(threads).max(1) as u32, 1)
}
