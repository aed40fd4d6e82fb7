//! A GPU with its stream, kernels, cuBLASLt handle and memory pool.

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
use super::scalar::ScalarType;

/// The kernels of this crate.
pub static KERNELS: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));

/// The compiled kernels of a crate; a device loads them when one of them is first launched.
#[derive(Debug)]
pub struct Kernels(&'static [u8]);

impl Kernels {
    /// Wraps the bytes of a fatbin.
    pub const fn new(fatbin: &'static [u8]) -> Self {
        Kernels(fatbin)
    }
}

/// The state that all operators on one device share.
pub struct Engine {
    /// Candle's handle of the GPU.
    pub device: CudaDevice,
    /// The stream that all work is queued on.
    pub stream: Arc<CudaStream>,
    /// Matrix products on this device.
    pub gemm: Gemm,
    pub(super) pool: Pool,
    /// Largest amount of shared memory of a block in bytes.
    pub shared_limit: usize,
    /// Number of streaming multiprocessors.
    pub processors: usize,
    /// The loaded kernels, by the address of their [`Kernels`] bytes.
    modules: Mutex<HashMap<usize, Module>>,
    counters: CudaSlice<u32>,
    capturing: Arc<AtomicBool>,
}

/// A crate's kernels, loaded on the device.
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

/// A kernel and the largest amount of shared memory that any launch requested.  The driver's limit for the kernel is
/// never lowered: a node of a captured step keeps the size that it was recorded with, and fails if the limit is below
/// it.
struct Loaded {
    function: CudaFunction,
    shared: usize,
}

/// Unused working memory by size in bytes; [`super::memory::Scratch`] takes buffers from it and returns them.
pub(super) type Pool = Mutex<HashMap<usize, Vec<CudaSlice<u8>>>>;

type Engines = HashMap<DeviceId, Arc<Engine>>;

fn engines() -> MutexGuard<'static, Engines> {
    static ENGINES: OnceLock<Mutex<Engines>> = OnceLock::new();
    ENGINES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Opens a GPU with its own stream.
    ///
    /// # Errors
    /// There is no driver or no device, or the kernels do not support the device.
    pub fn open(ordinal: usize) -> Result<Device> {
        // Without a driver, the stub library returns an error code; without any library the process ends before main.
        let device = CudaDevice::new_with_stream(ordinal)?;
        // SAFETY: all work is queued on this one stream, so there are no other streams to synchronise with.
        unsafe { device.disable_event_tracking() };
        keep_memory(&device)?;
        let engine = Self::load(&device)?;
        engines().insert(device.id(), Arc::new(engine));
        Ok(Device::Cuda(device))
    }

    /// The engine of a device that [`Engine::open`] opened.
    ///
    /// # Errors
    /// The device was not opened by [`Engine::open`].
    pub fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        match engines().get(&device.id()) {
            Some(engine) => Ok(engine.clone()),
            None => bail!("this CUDA device was not opened by Engine::open"),
        }
    }

    /// The engine of a tensor's device.
    ///
    /// # Errors
    /// The device is not a GPU, or was not opened by [`Engine::open`].
    pub fn at(device: &Device) -> Result<Arc<Self>> {
        Self::of(device.as_cuda_device()?)
    }

    fn load(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let own = Module::load(&stream, &KERNELS)?;
        let attribute = |a| context.attribute(a).w().map(|v| v.max(0) as usize);
        let capturing = Arc::new(AtomicBool::new(false));
        let bias_rows =
            [ScalarType::F32, ScalarType::Bf16].map(|scalar| own.module.load_function(&scalar.kernel("bias_rows")).w());
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

    /// The GPU's name, as the driver reports it.
    pub fn name(&self) -> String {
        self.stream.context().name().unwrap_or_else(|_| "a CUDA device".into())
    }

    /// Looks up a kernel by name and allows it `shared` bytes of shared memory.
    ///
    /// # Errors
    /// The name is unknown, or the device has less shared memory.
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

    /// Address of the counters by which a kernel detects its last block: one for the whole grid and one for every
    /// [`TREE`] blocks.
    pub fn counters(&self) -> u64 {
        slice_address(&self.counters, &self.stream)
    }

    /// Number of blocks for a kernel that sums over its blocks: at most `wanted`, and at most `each` per
    /// multiprocessor.
    pub(super) fn summing_blocks(&self, wanted: usize, each: usize) -> usize {
        wanted.clamp(1, (each * self.processors).min(TREE * (COUNTERS - 1)))
    }

    /// Runs `f` while the stream is being captured; allocating working memory is an error then.
    pub(super) fn while_capturing<R>(&self, f: impl FnOnce() -> R) -> R {
        self.capturing.store(true, Ordering::SeqCst);
        let result = f();
        self.capturing.store(false, Ordering::SeqCst);
        result
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.capturing.load(Ordering::SeqCst)
    }

    /// Largest amount of memory reserved so far, in bytes: tensors, working memory and captured steps.
    pub fn peak_bytes(&self) -> u64 {
        let device = self.stream.context().cu_device();
        let (mut pool, mut plain, mut graphs) = (std::ptr::null_mut(), 0u64, 0u64);
        let high = CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH;
        let graph_high = CUgraphMem_attribute::CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
        // SAFETY: both attributes are 64-bit numbers and the pointers are valid; a failed query leaves 0.
        unsafe {
            if cuDeviceGetDefaultMemPool(&mut pool, device) == CUresult::CUDA_SUCCESS {
                let _ = cuMemPoolGetAttribute(pool, high, std::ptr::from_mut(&mut plain).cast());
            }
            let _ = cuDeviceGetGraphMemAttribute(device, graph_high, std::ptr::from_mut(&mut graphs).cast());
        }
        plain + graphs
    }

    /// Waits until all queued work is done.
    ///
    /// # Errors
    /// The error of an earlier kernel.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().w()
    }
}

/// Shared memory in bytes that a kernel may use without a request.
const DEFAULT_SHARED: usize = 48 * 1024;
/// Number of blocks whose sums are added in the first step; equal to `TREE` in `common.cuh`.
const TREE: usize = 16;
/// One counter for the grid, and one for every [`TREE`] blocks.
const COUNTERS: usize = 1 + 256;

/// Keeps freed memory in the process: by default every synchronisation returns it to the driver.
fn keep_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: the pointers are valid, and the driver copies what they point to.
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

/// Queues a kernel of a crate: `launch_from!(kernels; engine, name, grid, block, shared_bytes; arguments)`.  This is an
/// unsafe operation.  The calling crate must depend on candle_core.
///
/// # Safety
/// The arguments have exactly the kernel's types (addresses u64, int i32, unsigned u32, size_t u64, float f32).  Every
/// address points to as many values as the kernel reads or writes, in memory that stays allocated until the stream has
/// passed this point: a tensor's, or a [`Scratch`](crate::cuda::memory::Scratch)'s, which is reused in stream order
/// only.
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

/// [`launch_from!`] for this crate's kernels.
macro_rules! launch {
    ($($all:tt)*) => { $crate::launch_from!($crate::cuda::engine::KERNELS; $($all)*) };
}
pub(super) use launch;

/// The grid (blocks, 1) that covers `count` elements with blocks of `threads`.
pub fn blocks(count: usize, threads: usize) -> (u32, u32) {
    (count.div_ceil(threads).max(1) as u32, 1)
}
