// Layer normalisation over D = `width` (at most 128 x QUADS, a multiple of 4), one warp per row; see ops/layer_norm.rs.

#define LN_EPS 1e-6f

// Reads one row: lane l gets the four values at 4 l, 4 (l + 32), ...
template <int QUADS> __device__ __forceinline__ void row_in(const SCALAR* x, int width, float4* v) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int c = 4 * (lane + 32 * i);
        v[i] = c < width ? load4(x + c) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
}

// Reads one row in its storage format.
template <int QUADS> __device__ __forceinline__ void raw_in(const SCALAR* x, int width, SCALAR* v) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int c = 4 * (lane + 32 * i);
        if (c < width) copy4(v + 4 * i, x + c);
    }
}

// Mean and 1 / standard deviation of a row that a warp holds.  Two passes: E[x^2] - E[x]^2 would lose precision.
template <int QUADS> __device__ __forceinline__ float2 row_statistics(const float4* v, int width, const SCALAR*) {
    int lane = threadIdx.x % 32;
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < QUADS; i++) sum += total(v[i]);
    float mean = warp_sum(sum) / width;
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        if (4 * (lane + 32 * i) < width) {
            float4 d = v[i] - mean;
            squares += total(d * d);
        }
    }
    return make_float2(mean, 1.f / sqrtf(warp_sum(squares) / width + LN_EPS));
}

template <int QUADS>
__device__ __forceinline__ void ln_forward(const SCALAR* x, const float* gamma, const float* beta, SCALAR* y, int rows,
                                           int width) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    float4 v[QUADS];
    row_in<QUADS>(x + (size_t)row * width, width, v);
    float2 s = row_statistics<QUADS>(v, width, x);
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int c = 4 * (lane + 32 * i);
        if (c < width) {
            float4 n = (v[i] - s.x) * s.y;
            store4(y + (size_t)row * width + c, n * load4(gamma + c) + load4(beta + c));
        }
    }
}

// dx = residual (if there is one) + the gradient through the normalisation.  Adds the gradients of gamma and beta to
// `grad` and, if `columns` is not null, dx's column sums to `columns`: the gradient of the bias before the residual.
// partial: (gridDim.x, 3 D); counters as in finish_columns; shared memory: 3 D floats.
template <int QUADS>
__device__ __forceinline__ void ln_backward(const SCALAR* x, const float* gamma, const SCALAR* dy, const SCALAR* residual,
                                            SCALAR* dx, float* grad, float* columns, float* partial, u32* counters,
                                            int rows, int width) {
    float* shared = (float*)shared_quads;
    int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float4 sums[3][QUADS];
#pragma unroll
    for (int i = 0; i < 3 * QUADS; i++) sums[i / QUADS][i % QUADS] = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int row = blockIdx.x * warps + warp; row < rows; row += gridDim.x * warps) {
        size_t at = (size_t)row * width;
        float4 v[QUADS], g[QUADS];
        row_in<QUADS>(x + at, width, v);
        row_in<QUADS>(dy + at, width, g);
        __align__(16) SCALAR rest[4 * QUADS]; // loaded while the row's sums are computed
        if (residual) raw_in<QUADS>(residual + at, width, rest);
        float2 s = row_statistics<QUADS>(v, width, x);
        float along = 0.f, mean = 0.f;
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            int c = 4 * (lane + 32 * i);
            if (c < width) {
                v[i] = (v[i] - s.x) * s.y;
                sums[0][i] = sums[0][i] + g[i] * v[i];
                sums[1][i] = sums[1][i] + g[i];
                g[i] = g[i] * load4(gamma + c);
                mean += total(g[i]);
                along += total(g[i] * v[i]);
            }
        }
        mean = warp_sum(mean) / width;
        along = warp_sum(along) / width;
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            int c = 4 * (lane + 32 * i);
            if (c < width) {
                float4 d = (g[i] - mean + v[i] * -along) * s.y;
                if (residual) d = d + load4(rest + 4 * i);
                store4(dx + at + c, d);
                sums[2][i] = sums[2][i] + d;
            }
        }
    }
    // One warp after the other, so that the order of the additions is fixed.
    for (int w = 0; w < warps; w++) {
        if (w == warp) {
#pragma unroll
            for (int i = 0; i < QUADS; i++) {
                int c = 4 * (lane + 32 * i);
                if (c < width) {
#pragma unroll
                    for (int k = 0; k < 3; k++) {
                        float* to = shared + k * width + c;
                        store4(to, w == 0 ? sums[k][i] : load4(to) + sums[k][i]);
                    }
                }
            }
        }
        __syncthreads();
    }
    for (int c = threadIdx.x; c < 3 * width; c += blockDim.x) partial[(size_t)blockIdx.x * 3 * width + c] = shared[c];
    finish_columns(partial, 3 * width, grad, 2 * width, columns, counters);
}

// BLOCKS: number of blocks of the backward pass that fit on a multiprocessor; rows.rs launches that many.
#define LN_KERNELS(QUADS, BLOCKS)                                                                                              \
    extern "C" __global__ void NAME(ln_fwd_##QUADS)(const SCALAR* x, const float* gamma, const float* beta, SCALAR* y,    \
                                                    int rows, int width) {                                            \
        ln_forward<QUADS>(x, gamma, beta, y, rows, width);                                                             \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) NAME(ln_bwd_##QUADS)(                                          \
        const SCALAR* x, const float* gamma, const SCALAR* dy, const SCALAR* residual, SCALAR* dx, float* grad,                \
        float* columns, float* partial, u32* counters, int rows, int width) {                                          \
        ln_backward<QUADS>(x, gamma, dy, residual, dx, grad, columns, partial, counters, rows, width);                 \
    }
LN_KERNELS(2, 3)
LN_KERNELS(4, 2)
LN_KERNELS(8, 1)
#undef LN_KERNELS
#undef LN_EPS
