// Attention on tensor cores: bfloat16 input and output, all data of one head of an image in shared memory; head width D
// of 32 or 64, at most 272 tokens.  Sums are float32; attention weights are rounded to bfloat16 before the product with
// the values, as in PyTorch's flash kernels.
//
// Shapes as in attention_any.cuh.  `padded` is the number of tokens rounded up to 16; rows from `tokens` on are zeros.

#ifndef CUDA_ON_HOST
using namespace nvcuda;
#endif

typedef wmma::fragment<wmma::accumulator, 16, 16, 16, float> Sum;
typedef wmma::fragment<wmma::matrix_a, 16, 16, 16, bf16, wmma::row_major> Left;
typedef wmma::fragment<wmma::matrix_a, 16, 16, 16, bf16, wmma::col_major> LeftT;
typedef wmma::fragment<wmma::matrix_b, 16, 16, 16, bf16, wmma::row_major> Right;
typedef wmma::fragment<wmma::matrix_b, 16, 16, 16, bf16, wmma::col_major> RightT;

// sum += a (16, n) b (n, 16), both row-major.
__device__ __forceinline__ void add_ab(Sum& sum, const bf16* a, int lda, const bf16* b, int ldb, int n) {
    for (int k = 0; k < n; k += 16) {
        Left x;
        Right y;
        wmma::load_matrix_sync(x, a + k, lda);
        wmma::load_matrix_sync(y, b + (size_t)k * ldb, ldb);
        wmma::mma_sync(sum, x, y, sum);
    }
}
// sum += a (16, n) b^T, b (16, n).
__device__ __forceinline__ void add_abt(Sum& sum, const bf16* a, int lda, const bf16* b, int ldb, int n) {
    for (int k = 0; k < n; k += 16) {
        Left x;
        RightT y;
        wmma::load_matrix_sync(x, a + k, lda);
        wmma::load_matrix_sync(y, b + k, ldb);
        wmma::mma_sync(sum, x, y, sum);
    }
}
// sum += a^T b, a (n, 16), b (n, 16).
__device__ __forceinline__ void add_atb(Sum& sum, const bf16* a, int lda, const bf16* b, int ldb, int n) {
    for (int k = 0; k < n; k += 16) {
        LeftT x;
        Right y;
        wmma::load_matrix_sync(x, a + (size_t)k * lda, lda);
        wmma::load_matrix_sync(y, b + (size_t)k * ldb, ldb);
        wmma::mma_sync(sum, x, y, sum);
    }
}

// Starts an asynchronous copy of rows first .. first + rows of a (tokens, D) matrix with `stride` to shared memory,
// with zeros from row `tokens` on.  The data are there after each thread waited for its copies and the block
// synchronised.
template <int D>
__device__ __forceinline__ void rows_in(bf16* to, int ld, const bf16* from, int stride, int first, int rows,
                                        int tokens) {
    for (int i = threadIdx.x; i < rows * (D / 8); i += blockDim.x) {
        int r = i / (D / 8), c = 8 * (i % (D / 8));
        bool inside = first + r < tokens;
        __pipeline_memcpy_async(to + r * ld + c, from + (size_t)(inside ? first + r : 0) * stride + c, 16,
                                inside ? 0 : 16);
    }
}

// A warp writes a 16 x 16 sum to rows first .. first + 16 of a (tokens, .) matrix, through 16 rows of `room`.
__device__ __forceinline__ void tile_out(bf16* to, int stride, const Sum& sum, float* room, int ldr, int first,
                                         int tokens) {
    int lane = threadIdx.x % 32, r = lane / 2, c = 8 * (lane % 2);
    wmma::store_matrix_sync(room, sum, ldr, wmma::mem_row_major);
    __syncwarp();
    if (first + r < tokens) {
        __align__(16) bf16 v[8];
        store4(v, load4(room + r * ldr + c));
        store4(v + 4, load4(room + r * ldr + c + 4));
        *reinterpret_cast<uint4*>(to + (size_t)(first + r) * stride + c) = *reinterpret_cast<const uint4*>(v);
    }
    __syncwarp();
}

// Reduces over the LANES lanes that share a row.
template <int LANES> __device__ __forceinline__ float lanes_sum(float v) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) v += __shfl_xor_sync(WHOLE_WARP, v, step);
    return v;
}
template <int LANES> __device__ __forceinline__ float lanes_max(float v) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(WHOLE_WARP, v, step));
    return v;
}
__device__ __forceinline__ float highest(float4 v) { return fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)); }

// Grid (B H, ceil(T / rows)), 4 or 8 warps; a block handles `rows` queries, a multiple of 16.  COLUMNS groups of 32
// columns cover T.  Shared memory: bf16 padded x (D + 8), float rows x (padded + 4), then bf16 (padded + rows) x (D +
// 8), which is reused for 16 x 16 floats per warp.
template <int D, int COLUMNS>
__device__ __forceinline__ void attention_forward(const bf16* qkv, bf16* out, float* lse, int tokens, int heads,
                                                  int padded, int rows) {
    const int ld = D + 8;
    int lds = padded + 4, warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    int image = blockIdx.x / heads, head = blockIdx.x % heads, width = heads * D, stride = 3 * width;
    int first = blockIdx.y * rows;
    bf16* v = (bf16*)shared_quads;
    float* scores = (float*)(v + padded * ld);
    bf16 *k = (bf16*)(scores + rows * lds), *q = k + padded * ld;
    const bf16* from = qkv + (size_t)image * tokens * stride + head * D;
    rows_in<D>(q, ld, from, stride, first, rows, tokens);
    rows_in<D>(k, ld, from + width, stride, 0, padded, tokens);
    __pipeline_commit();
    rows_in<D>(v, ld, from + 2 * width, stride, 0, padded, tokens);
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    for (int t = warp; t < (rows / 16) * (padded / 16); t += warps) {
        int i = 16 * (t / (padded / 16)), j = 16 * (t % (padded / 16));
        Sum sum;
        wmma::fill_fragment(sum, 0.f);
        add_abt(sum, q + i * ld, ld, k + j * ld, ld, D);
        wmma::store_matrix_sync(scores + i * lds + j, sum, lds, wmma::mem_row_major);
    }
    __syncthreads();
    float scale = rsqrtf((float)D);
    // A warp holds four rows, eight lanes a row, four adjacent values a lane; a row's sum takes three shuffles.
    for (int r = 4 * warp + lane / 8; r < rows; r += 4 * warps) {
        // The weights overwrite the scores row by row; every lane reads before any lane writes.
        float4 x[COLUMNS];
        float high = -INFINITY, sum = 0.f;
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            int c = 4 * (lane % 8) + 32 * i;
            x[i] = c < padded ? load4(scores + r * lds + c) * scale : make_float4(0.f, 0.f, 0.f, 0.f);
            if (c >= tokens) x[i].x = -INFINITY;
            if (c + 1 >= tokens) x[i].y = -INFINITY;
            if (c + 2 >= tokens) x[i].z = -INFINITY;
            if (c + 3 >= tokens) x[i].w = -INFINITY;
            high = fmaxf(high, highest(x[i]));
        }
        high = lanes_max<8>(high);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            x[i] = make_float4(expf(x[i].x - high), expf(x[i].y - high), expf(x[i].z - high), expf(x[i].w - high));
            sum += total(x[i]);
        }
        sum = lanes_sum<8>(sum);
        float share = 1.f / sum;
        __syncwarp();
        bf16* weights = (bf16*)(scores + r * lds);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            int c = 4 * (lane % 8) + 32 * i;
            if (c < padded) store4(weights + c, x[i] * share);
        }
        if (lane % 8 == 0 && first + r < tokens) lse[(size_t)blockIdx.x * tokens + first + r] = high + logf(sum);
    }
    __pipeline_wait_prior(0);
    __syncthreads();
    float* room = (float*)k + warp * 256; // nobody reads q and k any more
    for (int t = warp; t < (rows / 16) * (D / 16); t += warps) {
        int i = 16 * (t / (D / 16)), c = 16 * (t % (D / 16));
        Sum sum;
        wmma::fill_fragment(sum, 0.f);
        add_ab(sum, (const bf16*)(scores + i * lds), 2 * lds, v + c, ld, padded);
        tile_out(out + (size_t)image * tokens * width + head * D + c, width, sum, room, 16, first + i, tokens);
    }
}

// One block per head of an image: for each tile of KEYS keys, a loop over tiles of 32 queries (FlashAttention-2, arXiv
// 2307.08691, algorithm 2).  dk and dv of a tile stay in registers.  ONE: one tile contains all keys, and dq is written
// directly from registers; otherwise dq is accumulated in shared memory.
// Shared memory: bf16 (2 padded + 2 KEYS) x (D + 8), then float 2 x 32 x (KEYS + 4), 2 padded and, unless ONE,
// padded x (D + 4).
template <int D, int KEYS, bool ONE, int WARPS>
__device__ __forceinline__ void attention_backward(const bf16* qkv, const bf16* out, const bf16* dout,
                                                   const float* lse, bf16* dqkv, int tokens, int heads, int padded) {
    const int ld = D + 8, ldq = D + 4, lds = KEYS + 4, QUERIES = 32;
    const int TILES = (KEYS / 16) * (D / 16), MINE = (TILES + WARPS - 1) / WARPS; // of dk, and of dv, that a warp holds
    const int LANES = D / 8;                                                      // that share a row of D values
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int image = blockIdx.x / heads, head = blockIdx.x % heads, width = heads * D, stride = 3 * width;
    bf16 *q = (bf16*)shared_quads, *go = q + padded * ld, *k = go + padded * ld, *v = k + KEYS * ld;
    float *s = (float*)(v + KEYS * ld), *g = s + QUERIES * lds, *top = g + QUERIES * lds, *delta = top + padded;
    float* dq = delta + padded;
    // Weights and dscores use one half of each row of s and g; the other half of 16 rows is a warp's temporary memory.
    static_assert(WARPS == 4 || KEYS >= 64, "room for 16 x 16 floats a warp");
    float* room = (warp % 4 < 2 ? s : g) + (warp % 2) * 16 * lds + KEYS / 2 + warp / 4 * 16;
    size_t at = (size_t)image * tokens * stride + head * D, row0 = (size_t)image * tokens * width + head * D;
    float scale = rsqrtf((float)D);

    rows_in<D>(q, ld, qkv + at, stride, 0, padded, tokens);
    rows_in<D>(go, ld, dout + row0, width, 0, padded, tokens);
    for (int r = threadIdx.x / LANES; r < padded; r += blockDim.x / LANES) { // delta = dout . out, row by row
        float sum = 0.f;
        if (r < tokens) {
            size_t place = row0 + (size_t)r * width + 8 * (threadIdx.x % LANES);
            __align__(16) bf16 a[8], b[8];
            *reinterpret_cast<uint4*>(a) = *reinterpret_cast<const uint4*>(out + place);
            *reinterpret_cast<uint4*>(b) = *reinterpret_cast<const uint4*>(dout + place);
            sum = total(load4(a) * load4(b)) + total(load4(a + 4) * load4(b + 4));
        }
        sum = lanes_sum<LANES>(sum);
        if (threadIdx.x % LANES == 0) {
            delta[r] = sum;
            top[r] = r < tokens ? lse[(size_t)blockIdx.x * tokens + r] : 0.f;
        }
    }
    for (int j = 0; j < (ONE ? 1 : padded); j += KEYS) {
        int keys = ONE ? padded : min(KEYS, padded - j);
        if (j > 0) __syncthreads();
        rows_in<D>(k, ld, qkv + at + width, stride, j, keys, tokens);
        rows_in<D>(v, ld, qkv + at + 2 * width, stride, j, keys, tokens);
        __pipeline_commit();
        Sum dk[MINE], dv[MINE];
#pragma unroll
        for (int m = 0; m < MINE; m++) {
            wmma::fill_fragment(dk[m], 0.f);
            wmma::fill_fragment(dv[m], 0.f);
        }
        __pipeline_wait_prior(0);
        for (int i = 0; i < padded; i += QUERIES) {
            int queries = min(QUERIES, padded - i);
            __syncthreads();
            for (int t = warp; t < (queries / 16) * (keys / 16); t += WARPS) {
                int a = 16 * (t / (keys / 16)), b = 16 * (t % (keys / 16));
                Sum sum;
                wmma::fill_fragment(sum, 0.f);
                add_abt(sum, q + (i + a) * ld, ld, k + b * ld, ld, D);
                wmma::store_matrix_sync(s + a * lds + b, sum, lds, wmma::mem_row_major);
                wmma::fill_fragment(sum, 0.f);
                add_abt(sum, go + (i + a) * ld, ld, v + b * ld, ld, D);
                wmma::store_matrix_sync(g + a * lds + b, sum, lds, wmma::mem_row_major);
            }
            __syncthreads();
            // s becomes the weights p, g becomes dscores, both as bf16 in place; four rows per warp, as in the forward
            // pass.
            for (int r = 4 * warp + lane / 8; r < queries; r += 4 * WARPS) {
                const int QUADS = (KEYS + 31) / 32;
                float4 p[QUADS], d[QUADS];
                float high = top[i + r], mean = delta[i + r];
#pragma unroll
                for (int m = 0; m < QUADS; m++) {
                    int c = 4 * (lane % 8) + 32 * m;
                    p[m] = d[m] = make_float4(0.f, 0.f, 0.f, 0.f);
                    if (c < keys && i + r < tokens) {
                        float4 x = load4(s + r * lds + c) * scale - high;
                        p[m] = make_float4(expf(x.x), expf(x.y), expf(x.z), expf(x.w));
                        if (j + c >= tokens) p[m].x = 0.f;
                        if (j + c + 1 >= tokens) p[m].y = 0.f;
                        if (j + c + 2 >= tokens) p[m].z = 0.f;
                        if (j + c + 3 >= tokens) p[m].w = 0.f;
                        d[m] = p[m] * (load4(g + r * lds + c) - mean) * scale;
                    }
                }
                __syncwarp();
#pragma unroll
                for (int m = 0; m < QUADS; m++) {
                    int c = 4 * (lane % 8) + 32 * m;
                    if (c < keys) {
                        store4((bf16*)(s + r * lds) + c, p[m]);
                        store4((bf16*)(g + r * lds) + c, d[m]);
                    }
                }
            }
            __syncthreads();
            const bf16 *p = (const bf16*)s, *d = (const bf16*)g;
#pragma unroll
            for (int m = 0; m < MINE; m++) {
                int t = warp + WARPS * m, b = 16 * (t / (D / 16)), c = 16 * (t % (D / 16));
                if (b < keys) {
                    add_atb(dv[m], p + b, 2 * lds, go + i * ld + c, ld, queries);
                    add_atb(dk[m], d + b, 2 * lds, q + i * ld + c, ld, queries);
                }
            }
            for (int t = warp; t < (queries / 16) * (D / 16); t += WARPS) {
                int a = 16 * (t / (D / 16)), c = 16 * (t % (D / 16));
                Sum sum;
                if (ONE) {
                    wmma::fill_fragment(sum, 0.f);
                    add_ab(sum, d + a * 2 * lds, 2 * lds, k + c, ld, keys);
                    tile_out(dqkv + at + c, stride, sum, room, lds, i + a, tokens);
                } else {
                    float* place = dq + (i + a) * ldq + c;
                    if (j == 0) wmma::fill_fragment(sum, 0.f);
                    else wmma::load_matrix_sync(sum, place, ldq, wmma::mem_row_major);
                    add_ab(sum, d + a * 2 * lds, 2 * lds, k + c, ld, keys);
                    wmma::store_matrix_sync(place, sum, ldq, wmma::mem_row_major);
                }
            }
        }
#pragma unroll
        for (int m = 0; m < MINE; m++) {
            int t = warp + WARPS * m, b = 16 * (t / (D / 16)), c = 16 * (t % (D / 16));
            if (b < keys) {
                tile_out(dqkv + at + width + c, stride, dk[m], room, lds, j + b, tokens);
                tile_out(dqkv + at + 2 * width + c, stride, dv[m], room, lds, j + b, tokens);
            }
        }
    }
    if (ONE) return;
    __syncthreads();
    for (int i = threadIdx.x; i < tokens * (D / 4); i += blockDim.x) {
        int r = i / (D / 4), c = 4 * (i % (D / 4));
        store4(dqkv + at + (size_t)r * stride + c, load4(dq + r * ldq + c));
    }
}

// BLOCKS: number of blocks that should fit on a multiprocessor.
#define ATTENTION_FORWARD(D, COLUMNS, BLOCKS)                                                                          \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) attention_fwd_##D##_##COLUMNS(                           \
        const bf16* qkv, bf16* out, float* lse, int tokens, int heads, int padded, int rows) {                         \
        attention_forward<D, COLUMNS>(qkv, out, lse, tokens, heads, padded, rows);                                     \
    }
#define ATTENTION_BACKWARD(D, NAME, KEYS, ONE, WARPS, BLOCKS)                                                          \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) attention_bwd_##D##_##NAME(                       \
        const bf16* qkv, const bf16* out, const bf16* dout, const float* lse, bf16* dqkv, int tokens, int heads,       \
        int padded) {                                                                                                  \
        attention_backward<D, KEYS, ONE, WARPS>(qkv, out, dout, lse, dqkv, tokens, heads, padded);                     \
    }
ATTENTION_FORWARD(32, 2, 5)
ATTENTION_FORWARD(32, 3, 4)
ATTENTION_FORWARD(32, 9, 2)
ATTENTION_FORWARD(64, 2, 5)
ATTENTION_FORWARD(64, 3, 3)
ATTENTION_FORWARD(64, 9, 2)
ATTENTION_BACKWARD(32, 32, 32, true, 4, 6)
ATTENTION_BACKWARD(32, 64, 64, true, 8, 3)
ATTENTION_BACKWARD(32, 80, 80, true, 5, 4)
ATTENTION_BACKWARD(32, long, 64, false, 8, 2)
ATTENTION_BACKWARD(64, 32, 32, true, 4, 6)
ATTENTION_BACKWARD(64, 64, 64, true, 8, 2)
ATTENTION_BACKWARD(64, 80, 80, true, 5, 3)
ATTENTION_BACKWARD(64, long, 64, false, 8, 1)
#undef ATTENTION_FORWARD
#undef ATTENTION_BACKWARD
