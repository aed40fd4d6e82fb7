// Attention on the matrix units, bfloat16 in and out, everything of one image's head in shared memory; head width D of
// 32 or 64, up to 272 tokens.  Sums are float32; attention weights are rounded to bfloat16 before they meet the values,
// as PyTorch's flash kernels do.
//
// Shapes as in attention_any.cuh.  `padded`: tokens rounded up to 16; rows beyond `tokens` are zeros.

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

// Rows first .. first + rows of a (tokens, D) matrix with `stride` into shared memory, zeros beyond `tokens`.
template <int D>
__device__ __forceinline__ void rows_in(bf16* to, int ld, const bf16* from, int stride, int first, int rows,
                                        int tokens) {
    for (int i = threadIdx.x; i < rows * (D / 8); i += blockDim.x) {
        int r = i / (D / 8), c = 8 * (i % (D / 8));
        uint4 v = make_uint4(0, 0, 0, 0);
        if (first + r < tokens) v = *reinterpret_cast<const uint4*>(from + (size_t)(first + r) * stride + c);
        *reinterpret_cast<uint4*>(to + r * ld + c) = v;
    }
}

// A warp writes a 16 x 16 sum to rows first .. first + 16 of a (tokens, .) matrix, by way of 256 floats.
__device__ __forceinline__ void tile_out(bf16* to, int stride, const Sum& sum, float* room, int first, int tokens) {
    int lane = threadIdx.x % 32, r = lane / 2, c = 8 * (lane % 2);
    wmma::store_matrix_sync(room, sum, 16, wmma::mem_row_major);
    __syncwarp();
    if (first + r < tokens) {
        __align__(16) bf16 v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) put(v + i, room[16 * r + c + i]);
        *reinterpret_cast<uint4*>(to + (size_t)(first + r) * stride + c) = *reinterpret_cast<const uint4*>(v);
    }
    __syncwarp();
}

#define WARPS 4
// Columns a lane holds in the softmax: 32 x 9 = 288 >= 272.
#define COLUMNS 9

// Grid (B H, ceil(T / rows)); `rows` queries a block, a multiple of 16.
// Shared: bf16 (2 padded + rows) x (D + 8), then float rows x (padded + 4), then WARPS x 256.
template <int D>
__device__ __forceinline__ void attention_forward(const bf16* qkv, bf16* out, float* lse, int tokens, int heads,
                                                  int padded, int rows) {
    const int ld = D + 8;
    int lds = padded + 4, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int image = blockIdx.x / heads, head = blockIdx.x % heads, width = heads * D, stride = 3 * width;
    int first = blockIdx.y * rows;
    bf16 *k = (bf16*)shared_quads, *v = k + padded * ld, *q = v + padded * ld;
    float *scores = (float*)(q + rows * ld), *room = scores + rows * lds + warp * 256;
    const bf16* from = qkv + (size_t)image * tokens * stride + head * D;
    rows_in<D>(q, ld, from, stride, first, rows, tokens);
    rows_in<D>(k, ld, from + width, stride, 0, padded, tokens);
    rows_in<D>(v, ld, from + 2 * width, stride, 0, padded, tokens);
    __syncthreads();
    for (int t = warp; t < (rows / 16) * (padded / 16); t += WARPS) {
        int i = 16 * (t / (padded / 16)), j = 16 * (t % (padded / 16));
        Sum sum;
        wmma::fill_fragment(sum, 0.f);
        add_abt(sum, q + i * ld, ld, k + j * ld, ld, D);
        wmma::store_matrix_sync(scores + i * lds + j, sum, lds, wmma::mem_row_major);
    }
    __syncthreads();
    float scale = rsqrtf((float)D);
    for (int r = warp; r < rows; r += WARPS) {
        // The weights take the place of the scores, row by row: every lane has read before one writes.
        float x[COLUMNS], top = -INFINITY, sum = 0.f;
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            int c = lane + 32 * i;
            x[i] = c < tokens ? scores[r * lds + c] * scale : -INFINITY;
            top = fmaxf(top, x[i]);
        }
        top = warp_max(top);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) sum += x[i] = expf(x[i] - top);
        sum = warp_sum(sum);
        __syncwarp();
        bf16* weights = (bf16*)(scores + r * lds);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            int c = lane + 32 * i;
            if (c < padded) put(weights + c, x[i] / sum);
        }
        if (lane == 0 && first + r < tokens) lse[(size_t)blockIdx.x * tokens + first + r] = top + logf(sum);
    }
    __syncthreads();
    for (int t = warp; t < (rows / 16) * (D / 16); t += WARPS) {
        int i = 16 * (t / (D / 16)), c = 16 * (t % (D / 16));
        Sum sum;
        wmma::fill_fragment(sum, 0.f);
        add_ab(sum, (const bf16*)(scores + i * lds), 2 * lds, v + c, ld, padded);
        tile_out(out + (size_t)image * tokens * width + head * D + c, width, sum, room, first + i, tokens);
    }
}

// One block an image's head: for each tile of KEYS keys, over tiles of 32 queries (as FlashAttention-2 goes, arXiv
// 2307.08691, algorithm 2); dk and dv of a tile stay in registers, dq gathers in shared memory.
// Shared: bf16 (2 padded + 2 KEYS) x (D + 8), then float padded x (D + 4), 2 x 32 x (KEYS + 4), 2 padded.
template <int D, int KEYS>
__device__ __forceinline__ void attention_backward(const bf16* qkv, const bf16* out, const bf16* dout,
                                                   const float* lse, bf16* dqkv, int tokens, int heads, int padded) {
    const int ld = D + 8, ldq = D + 4, lds = KEYS + 4, QUERIES = 32;
    const int MINE = (KEYS / 16) * (D / 16) / WARPS; // tiles of dk, and of dv, that a warp holds
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int image = blockIdx.x / heads, head = blockIdx.x % heads, width = heads * D, stride = 3 * width;
    bf16 *q = (bf16*)shared_quads, *go = q + padded * ld, *k = go + padded * ld, *v = k + KEYS * ld;
    float *dq = (float*)(v + KEYS * ld), *s = dq + padded * ldq, *g = s + QUERIES * lds;
    float *top = g + QUERIES * lds, *delta = top + padded;
    float* room = s + warp * 256;
    size_t at = (size_t)image * tokens * stride + head * D, row0 = (size_t)image * tokens * width + head * D;
    float scale = rsqrtf((float)D);

    rows_in<D>(q, ld, qkv + at, stride, 0, padded, tokens);
    rows_in<D>(go, ld, dout + row0, width, 0, padded, tokens);
    __syncthreads();
    for (int r = warp; r < padded; r += WARPS) { // delta = dout . out, row by row
        float sum = 0.f;
        if (r < tokens)
            for (int c = lane; c < D; c += 32) sum += up(go[r * ld + c]) * up(out[row0 + (size_t)r * width + c]);
        sum = warp_sum(sum);
        if (lane == 0) {
            delta[r] = sum;
            top[r] = r < tokens ? lse[(size_t)blockIdx.x * tokens + r] : 0.f;
        }
    }
    for (int j = 0; j < padded; j += KEYS) {
        int keys = min(KEYS, padded - j);
        __syncthreads();
        rows_in<D>(k, ld, qkv + at + width, stride, j, keys, tokens);
        rows_in<D>(v, ld, qkv + at + 2 * width, stride, j, keys, tokens);
        Sum dk[MINE], dv[MINE];
#pragma unroll
        for (int m = 0; m < MINE; m++) {
            wmma::fill_fragment(dk[m], 0.f);
            wmma::fill_fragment(dv[m], 0.f);
        }
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
            for (int r = warp; r < queries; r += WARPS) { // s becomes the weights p, g becomes dscores, both bf16 in place
                float p[KEYS / 32], d[KEYS / 32];
#pragma unroll
                for (int m = 0; m < KEYS / 32; m++) {
                    int c = lane + 32 * m;
                    bool inside = i + r < tokens && j + c < tokens && c < keys;
                    p[m] = inside ? expf(s[r * lds + c] * scale - top[i + r]) : 0.f;
                    d[m] = inside ? p[m] * (g[r * lds + c] - delta[i + r]) * scale : 0.f;
                }
                __syncwarp();
#pragma unroll
                for (int m = 0; m < KEYS / 32; m++) {
                    int c = lane + 32 * m;
                    put((bf16*)(s + r * lds) + c, p[m]);
                    put((bf16*)(g + r * lds) + c, d[m]);
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
                float* place = dq + (i + a) * ldq + c;
                Sum sum;
                if (j == 0) wmma::fill_fragment(sum, 0.f);
                else wmma::load_matrix_sync(sum, place, ldq, wmma::mem_row_major);
                add_ab(sum, d + a * 2 * lds, 2 * lds, k + c, ld, keys);
                wmma::store_matrix_sync(place, sum, ldq, wmma::mem_row_major);
            }
        }
        __syncthreads();
#pragma unroll
        for (int m = 0; m < MINE; m++) {
            int t = warp + WARPS * m, b = 16 * (t / (D / 16)), c = 16 * (t % (D / 16));
            if (b < keys) {
                tile_out(dqkv + at + width + c, stride, dk[m], room, j + b, tokens);
                tile_out(dqkv + at + 2 * width + c, stride, dv[m], room, j + b, tokens);
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < tokens * (D / 4); i += blockDim.x) {
        int r = i / (D / 4), c = 4 * (i % (D / 4));
        store4(dqkv + at + (size_t)r * stride + c, load4(dq + r * ldq + c));
    }
}

#define ATTENTION_KERNELS(D)                                                                                           \
    extern "C" __global__ void __launch_bounds__(128) attention_fwd_##D(const bf16* qkv, bf16* out, float* lse,        \
                                                                        int tokens, int heads, int padded, int rows) { \
        attention_forward<D>(qkv, out, lse, tokens, heads, padded, rows);                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        attention_bwd_##D##_32(const bf16* qkv, const bf16* out, const bf16* dout, const float* lse, bf16* dqkv,       \
                               int tokens, int heads, int padded) {                                                    \
        attention_backward<D, 32>(qkv, out, dout, lse, dqkv, tokens, heads, padded);                                   \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        attention_bwd_##D##_64(const bf16* qkv, const bf16* out, const bf16* dout, const float* lse, bf16* dqkv,       \
                               int tokens, int heads, int padded) {                                                    \
        attention_backward<D, 64>(qkv, out, dout, lse, dqkv, tokens, heads, padded);                                   \
    }
ATTENTION_KERNELS(32)
ATTENTION_KERNELS(64)
#undef ATTENTION_KERNELS
