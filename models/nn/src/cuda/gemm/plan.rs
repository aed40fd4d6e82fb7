//! cuBLASLt descriptors of a product, and the algorithms that cuBLASLt suggests for it.

use std::mem::MaybeUninit;

use candle_core::cuda::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda::cudarc::cublaslt::sys;

use crate::cuda::scalar::ScalarType;

/// Size of cuBLASLt's workspace in bytes: NVIDIA's recommendation for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;
/// Largest alignment in bytes that the choice of algorithm depends on.
pub(super) const ALIGNMENT: u64 = 256;

/// Number of algorithms to request; cuBLASLt lists them by estimated speed.
const ALGORITHMS: usize = 8;

/// Everything that the choice of an algorithm depends on; column-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) transposed: [bool; 2],
    pub(super) mnk: [usize; 3],
    pub(super) strides: [usize; 3],
    /// Number formats of the operands and of the result.
    pub(super) values: [ScalarType; 2],
    /// Alignment of the bias in bytes, if there is one.
    pub(super) bias: Option<u64>,
    pub(super) accumulate: bool,
    /// Whether the result itself is added.
    pub(super) in_place: bool,
    /// Alignments of A, B, C and D in bytes.
    pub(super) alignments: [u64; 4],
}

/// Descriptors and algorithms for the products of one shape.
pub(super) struct Plan {
    pub(super) matmul: sys::cublasLtMatmulDesc_t,
    pub(super) layouts: [sys::cublasLtMatrixLayout_t; 3],
    /// Candidates; the first one is used.
    pub(super) algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
    pub(super) uses: u64,
}

impl Plan {
    /// Creates descriptors and requests algorithms; `bias` is an address with the shape's alignment.
    pub(super) unsafe fn new(
        handle: sys::cublasLtHandle_t,
        shape: &Shape,
        bias: Option<u64>,
    ) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let [m, n, k] = shape.mnk;
        let [scalar, out] = shape.values.map(data_type);
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let matmul = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?;
        let sides = [Attribute::CUBLASLT_MATMUL_DESC_TRANSA, Attribute::CUBLASLT_MATMUL_DESC_TRANSB];
        for (transposed, side) in shape.transposed.into_iter().zip(sides) {
            unsafe { set(matmul, side, i32::from(transposed))? };
        }
        let stored = |transposed: bool, rows: usize, columns: usize, stride: usize| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            result::create_matrix_layout(scalar, rows as u64, columns as u64, stride as i64)
        };
        let layouts = [
            stored(shape.transposed[0], m, k, shape.strides[0])?,
            stored(shape.transposed[1], k, n, shape.strides[1])?,
            result::create_matrix_layout(out, m as u64, n as u64, shape.strides[2] as i64)?,
        ];
        let mut plan = Plan { matmul, layouts, algorithms: Vec::new(), uses: 0 };
        if let Some(bias) = bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            unsafe {
                set(matmul, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
                // Must precede the request for algorithms, which depends on the epilogue.
                plan.set_bias(bias)?;
            }
        }
        plan.algorithms = unsafe { plan.named(handle, shape)? };
        Ok(plan)
    }

    pub(super) unsafe fn set_bias(&self, bias: u64) -> Result<(), CublasError> {
        unsafe { set(self.matmul, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias) }
    }

    /// Algorithms for operands with the shape's alignments.
    unsafe fn named(
        &self,
        handle: sys::cublasLtHandle_t,
        shape: &Shape,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CublasError> {
        let wishes = result::create_matmul_pref()?;
        let mut found = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; ALGORITHMS];
        let mut count = 0;
        let [a, b, d] = self.layouts;
        // SAFETY: cuBLASLt writes `count` results, at most as many as the array can hold.
        unsafe {
            let asked = prefer(wishes, shape).and_then(|()| {
                let results = found.as_mut_ptr().cast();
                let most = ALGORITHMS as i32;
                sys::cublasLtMatmulAlgoGetHeuristic(handle, self.matmul, a, b, d, d, wishes, most, results, &mut count)
                    .result()
            });
            result::destroy_matmul_pref(wishes)?;
            asked?;
            let count = usize::try_from(count).unwrap_or(0).min(ALGORITHMS);
            let found = found[..count].iter().map(|one| one.assume_init_ref());
            let fit = found.filter(|one| one.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
            let algorithms: Vec<_> = fit.map(|one| one.algo).collect();
            match algorithms.is_empty() {
                true => Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)),
                false => Ok(algorithms),
            }
        }
    }
}

unsafe fn prefer(wishes: sys::cublasLtMatmulPreference_t, shape: &Shape) -> Result<(), CublasError> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let bytes = WORKSPACE;
    let [a, b, c, d] = shape.alignments;
    // There is no attribute for the bias's alignment: as in PyTorch, the smaller of it and the result's is used.
    let d = d.min(shape.bias.unwrap_or(d));
    let sides = [
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
    ];
    // SAFETY: the pointers are to values of the attributes' sizes.
    unsafe {
        let attribute = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        result::set_matmul_pref_attribute(wishes, attribute, std::ptr::from_ref(&bytes).cast(), size_of::<usize>())?;
        for (side, alignment) in sides {
            let alignment = alignment as u32;
            let value = std::ptr::from_ref(&alignment).cast();
            result::set_matmul_pref_attribute(wishes, side, value, size_of::<u32>())?;
        }
    }
    Ok(())
}

unsafe fn set<V>(
    matmul: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: V,
) -> Result<(), CublasError> {
    unsafe { result::set_matmul_desc_attribute(matmul, attribute, std::ptr::from_ref(&value).cast(), size_of::<V>()) }
}

fn data_type(scalar: ScalarType) -> sys::cudaDataType {
    match scalar {
        ScalarType::F32 => sys::cudaDataType::CUDA_R_32F,
        ScalarType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}
