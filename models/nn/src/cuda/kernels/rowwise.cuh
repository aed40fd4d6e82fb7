// Element-wise kernels over (rows, width), and sums over rows.  Column kernels have blockDim.x = a multiple of width /
// 4 (at most 1024): thread t handles the quad t % (width / 4) of the rows t / (width / 4), + groups, ...

// out = gelu(h); n is a multiple of 4.  A thread loads QUADS_EACH quads, one block width apart, before it uses them.
#define QUADS_EACH 4
extern "C" __global__ void __launch_bounds__(256) NAME(gelu_fwd)(const SCALAR* h, SCALAR* out, size_t n) {
    size_t first = 4 * ((size_t)blockIdx.x * QUADS_EACH * blockDim.x + threadIdx.x), step = 4 * blockDim.x;
    __align__(16) SCALAR raw[4 * QUADS_EACH];
#pragma unroll
    for (int k = 0; k < QUADS_EACH; k++)
        if (first + k * step < n) copy4(raw + 4 * k, h + first + k * step);
#pragma unroll
    for (int k = 0; k < QUADS_EACH; k++) {
        if (first + k * step >= n) break;
        float4 v = load4(raw + 4 * k);
        v.x *= normal_cdf(v.x);
        v.y *= normal_cdf(v.y);
        v.z *= normal_cdf(v.z);
        v.w *= normal_cdf(v.w);
        store4(out + first + k * step, v);
    }
}
#undef QUADS_EACH

// out (rows, width), rows `stride` values apart, = bias, + add if it is not null; any width and alignment.
extern "C" __global__ void NAME(bias_rows)(const SCALAR* bias, const SCALAR* add, SCALAR* out, int width, int stride,
                                           size_t count) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    size_t column = i % width, at = i / width * stride + column;
    put(out + at, up(bias[column]) + (add ? up(add[at]) : 0.f));
}

// The threads of a block add their quads over the groups in order; the block's sum is in `mine` of group 0.
static __device__ inline void NAME(sum_groups)(float4 mine, int quads, float* partial, int width) {
    int quad = threadIdx.x % quads, group = threadIdx.x / quads, groups = blockDim.x / quads;
    shared_quads[threadIdx.x] = mine;
    __syncthreads();
    if (group == 0) {
        for (int g = 1; g < groups; g++) mine = mine + shared_quads[g * quads + quad];
        store4(partial + (size_t)blockIdx.x * width + 4 * quad, mine);
    }
}

// Rows that a thread of a column kernel loads before it uses them.
#define ROWS_EACH 2
// `d` is the gradient of gelu(h) and is replaced by the gradient of h; gelu(h) is written to `active` if that is not
// null; d's column sums are added to `bias`.
extern "C" __global__ void __launch_bounds__(1024) NAME(gelu_bwd)(const SCALAR* h, SCALAR* d, SCALAR* active, float* bias,
                                                                  float* partial, u32* counters, int rows, int width) {
    int quads = width / 4, quad = threadIdx.x % quads, group = threadIdx.x / quads, groups = blockDim.x / quads;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    int step = gridDim.x * groups;
    for (int row = blockIdx.x * groups + group; row < rows; row += ROWS_EACH * step) {
        __align__(16) SCALAR values[4 * ROWS_EACH], given[4 * ROWS_EACH];
#pragma unroll
        for (int k = 0; k < ROWS_EACH; k++) {
            if (row + k * step >= rows) break;
            size_t at = (size_t)(row + k * step) * width + 4 * quad;
            copy4(values + 4 * k, h + at);
            copy4(given + 4 * k, d + at);
        }
#pragma unroll
        for (int k = 0; k < ROWS_EACH; k++) {
            if (row + k * step >= rows) break;
            size_t at = (size_t)(row + k * step) * width + 4 * quad;
            float4 v = load4(values + 4 * k), g = load4(given + 4 * k), a;
            float p;
            p = normal_cdf(v.x), a.x = v.x * p, g.x *= p + v.x * normal_density(v.x);
            p = normal_cdf(v.y), a.y = v.y * p, g.y *= p + v.y * normal_density(v.y);
            p = normal_cdf(v.z), a.z = v.z * p, g.z *= p + v.z * normal_density(v.z);
            p = normal_cdf(v.w), a.w = v.w * p, g.w *= p + v.w * normal_density(v.w);
            if (active) store4(active + at, a);
            store4(d + at, g);
            sum = sum + g;
        }
    }
    NAME(sum_groups)(sum, quads, partial, width);
    finish_columns(partial, width, bias, width, (float*)0, counters);
}

// Adds the column sums of `rows` rows (first, first + stride, ...) to `out`; if `sources` is not null, only of rows
// whose source is REMOVED.
extern "C" __global__ void __launch_bounds__(1024) NAME(column_sums)(const SCALAR* x, const u32* sources, float* out,
                                                                     float* partial, u32* counters, int rows,
                                                                     int stride, int width) {
    int quads = width / 4, quad = threadIdx.x % quads, group = threadIdx.x / quads, groups = blockDim.x / quads;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    int step = gridDim.x * groups;
    for (int row = blockIdx.x * groups + group; row < rows; row += 2 * ROWS_EACH * step) {
        __align__(16) SCALAR values[8 * ROWS_EACH];
        bool counts[2 * ROWS_EACH];
#pragma unroll
        for (int k = 0; k < 2 * ROWS_EACH; k++) {
            int r = row + k * step;
            counts[k] = r < rows && (!sources || sources[r] == REMOVED);
            if (counts[k]) copy4(values + 4 * k, x + (size_t)r * stride * width + 4 * quad);
        }
#pragma unroll
        for (int k = 0; k < 2 * ROWS_EACH; k++)
            if (counts[k]) sum = sum + load4(values + 4 * k);
    }
    NAME(sum_groups)(sum, quads, partial, width);
    finish_columns(partial, width, out, width, (float*)0, counters);
}
#undef ROWS_EACH

// The same for any width: one thread per column.
extern "C" __global__ void NAME(column_sums_any)(const SCALAR* x, float* out, int rows, int width) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= width) return;
    float sum = 0.f;
    for (int row = 0; row < rows; row++) sum += up(x[(size_t)row * width + c]);
    out[c] += sum;
}

// y = x / |x|, one warp per row; rows of zeros stay zeros.
extern "C" __global__ void NAME(unit_fwd)(const SCALAR* x, SCALAR* y, int rows, int width) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += (size_t)row * width, y += (size_t)row * width;
    float sum = 0.f;
    for (int c = lane; c < width; c += 32) sum += up(x[c]) * up(x[c]);
    float scale = 1.f / fmaxf(sqrtf(warp_sum(sum)), 1e-12f);
    for (int c = lane; c < width; c += 32) put(y + c, up(x[c]) * scale);
}

// dx = (dy - (dy . y) y) / |x|
extern "C" __global__ void NAME(unit_bwd)(const SCALAR* x, const SCALAR* dy, SCALAR* dx, int rows, int width) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    size_t at = (size_t)row * width;
    x += at, dy += at, dx += at;
    float squares = 0.f, dot = 0.f;
    for (int c = lane; c < width; c += 32) {
        squares += up(x[c]) * up(x[c]);
        dot += up(x[c]) * up(dy[c]);
    }
    float scale = 1.f / fmaxf(sqrtf(warp_sum(squares)), 1e-12f);
    float along = warp_sum(dot) * scale * scale;
    for (int c = lane; c < width; c += 32) put(dx + c, (up(dy[c]) - along * up(x[c])) * scale);
}
