//! One GPU: its stream, kernels, cuBLASLt handle and working memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::cuda::cudarc::driver::sys::{
    CUdevice_attribute, CUfunction_attribute, CUgraphMem_attribute, CUmemPool_attribute, CUresult,
    cuDeviceGetDefaultMemPool, cuDeviceGetGraphMemAttribute, cuMemPoolGetAttribute, cuMemPoolSetAttribute,
};
use candle_core::cuda::cudarc::driver::{CudaFunction, CudaModule, CudaSlice, CudaStream};
use candle_core::cuda::cudarc::nvrtc::Ptx;
use candle_core::cuda::{DeviceId, WrapErr};
use candle_core::{CudaDevice, DType, Device, Result, bail};

use super::gemm::Gemm;
use super::memory::Pool;

static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Storage of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Real {
    /// float32.
    F32,
    /// bfloat16.
    Bf16,
}

impl Real {
    /// Of a tensor.
    ///
    /// # Errors
    /// Another dtype.
    pub fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Real::F32),
            DType::BF16 => Ok(Real::Bf16),
            other => bail!("the CUDA operators compute in f32 or bf16, found {other:?}"),
        }
    }

    /// Candle's name for it.
    pub fn dtype(self) -> DType {
        match self {
            Real::F32 => DType::F32,
            Real::Bf16 => DType::BF16,
        }
    }

    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Real::F32 => 4,
            Real::Bf16 => 2,
        }
    }

    /// `NAME_f32` or `NAME_bf16`.
    pub fn kernel(self, name: &str) -> String {
        match self {
            Real::F32 => format!("{name}_f32"),
            Real::Bf16 => format!("{name}_bf16"),
        }
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
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<String, Loaded>>,
    counters: CudaSlice<u32>,
    capturing: Arc<AtomicBool>,
}

/// A kernel, and the most shared memory that any launch has asked for.  The driver's attribute is never lowered: a node
/// of a captured step keeps the size that it was recorded with, and fails where the attribute is below it by then.
struct Loaded {
    function: CudaFunction,
    shared: usize,
}

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
        let module = context.load_module(Ptx::from_binary(KERNELS.to_vec())).w()?;
        let attribute = |a| context.attribute(a).w().map(|v| v.max(0) as usize);
        let capturing = Arc::new(AtomicBool::new(false));
        let bias_rows = [Real::F32, Real::Bf16].map(|real| module.load_function(&real.kernel("bias_rows")).w());
        let [f32_rows, bf16_rows] = bias_rows;
        Ok(Engine {
            gemm: Gemm::new(&stream, capturing.clone(), [f32_rows?, bf16_rows?])?,
            pool: Pool::default(),
            shared_limit: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            processors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1),
            counters: stream.alloc_zeros(COUNTERS).w()?,
            functions: Mutex::default(),
            capturing,
            module,
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
    pub fn function(&self, name: &str, shared: usize) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if !functions.contains_key(name) {
            let function = self.module.load_function(name).w()?;
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
        super::memory::slice_address(&self.counters, &self.stream)
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

/// Queues a kernel: `launch!(engine, name, grid, block, shared_bytes; arguments)`.  Arguments must have exactly the
/// kernel's types: addresses u64, int i32, unsigned u32, size_t u64, float f32.  Callers have candle_core among their
/// dependencies.
#[macro_export]
macro_rules! launch {
    ($engine:expr, $name:expr, $grid:expr, $block:expr, $shared:expr; $($argument:expr),* $(,)?) => {{
        use candle_core::cuda::WrapErr;
        use candle_core::cuda::cudarc::driver::{LaunchConfig, PushKernelArg};
        let (grid, block, shared): ((u32, u32), u32, usize) = ($grid, $block, $shared);
        let function = $engine.function(&$name, shared)?;
        let mut builder = $engine.stream.launch_builder(&function);
        candle_core::builder_arg!(builder, $($argument),*);
        let shape = LaunchConfig {
            grid_dim: (grid.0, grid.1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared as u32
        };
        // SAFETY: the arguments have the kernel's types, and addresses of memory that lives until the stream has
        // passed this point (memory is reused in stream order only).
        unsafe { builder.launch(shape) }.w().map(|_| ())
    }};
}
pub use launch;

/// (blocks, 1) of `threads` for `count` elements.
pub fn blocks(count: usize, threads: usize) -> (u32, u32) {
    (count.div_ceil(threads).max(1) as u32, 1)
}
