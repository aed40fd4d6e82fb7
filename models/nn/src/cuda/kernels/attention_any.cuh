// Attention for any head width and length, one warp per query; the same function as ops/attention.rs.  It is used for
// float32, and for shapes that the tensor-core kernels (attention_matrix.cuh) do not support.
//
// Shapes: qkv (B, T, 3 D), out (B, T, D), lse (B, H, T): the log-sum-exp of each query's scores, for the backward pass.
// Grid: B x H.

// Shared memory: T floats per warp.
extern "C" __global__ void NAME(attention_any_fwd)(const SCALAR* qkv, SCALAR* out, float* lse, int tokens, int heads,
                                                   int d) {
    int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int image = blockIdx.x / heads, head = blockIdx.x % heads, width = heads * d, stride = 3 * width;
    float* p = (float*)shared_quads + warp * tokens;
    const SCALAR* q = qkv + (size_t)image * tokens * stride + head * d;
    const SCALAR *k = q + width, *v = q + 2 * width;
    float scale = 1.f / sqrtf((float)d);
    for (int i = warp; i < tokens; i += warps) {
        float top = -INFINITY, sum = 0.f;
        for (int j = lane; j < tokens; j += 32) {
            float s = 0.f;
            for (int c = 0; c < d; c++) s += up(q[(size_t)i * stride + c]) * up(k[(size_t)j * stride + c]);
            p[j] = s * scale;
            top = fmaxf(top, p[j]);
        }
        top = warp_max(top);
        for (int j = lane; j < tokens; j += 32) sum += p[j] = expf(p[j] - top);
        sum = warp_sum(sum);
        if (lane == 0) lse[(size_t)blockIdx.x * tokens + i] = top + logf(sum);
        __syncwarp();
        for (int c = lane; c < d; c += 32) {
            float o = 0.f;
            for (int j = 0; j < tokens; j++) o += p[j] * up(v[(size_t)j * stride + c]);
            put(out + ((size_t)image * tokens + i) * width + head * d + c, o / sum);
        }
        __syncwarp();
    }
}

// Shared memory: T floats per warp, and 2 T floats.
extern "C" __global__ void NAME(attention_any_bwd)(const SCALAR* qkv, const SCALAR* dout, const float* lse, SCALAR* dqkv,
                                                   int tokens, int heads, int d) {
    int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int image = blockIdx.x / heads, head = blockIdx.x % heads, width = heads * d, stride = 3 * width;
    float* delta = (float*)shared_quads; // for each query: the sum over the keys of p dp
    float *p = delta + tokens + 2 * warp * tokens, *ds = p + tokens;
    size_t from = (size_t)image * tokens * stride + head * d;
    const SCALAR *q = qkv + from, *k = q + width, *v = q + 2 * width;
    const SCALAR* go = dout + (size_t)image * tokens * width + head * d;
    SCALAR *dq = dqkv + from, *dk = dq + width, *dv = dq + 2 * width;
    lse += (size_t)blockIdx.x * tokens;
    float scale = 1.f / sqrtf((float)d);
    for (int i = warp; i < tokens; i += warps) { // gradient of query i
        float sum = 0.f;
        for (int j = lane; j < tokens; j += 32) {
            float s = 0.f, g = 0.f;
            for (int c = 0; c < d; c++) {
                s += up(q[(size_t)i * stride + c]) * up(k[(size_t)j * stride + c]);
                g += up(go[(size_t)i * width + c]) * up(v[(size_t)j * stride + c]);
            }
            p[j] = expf(s * scale - lse[i]);
            ds[j] = g;
            sum += p[j] * g;
        }
        sum = warp_sum(sum);
        if (lane == 0) delta[i] = sum;
        for (int j = lane; j < tokens; j += 32) ds[j] = p[j] * (ds[j] - sum) * scale;
        __syncwarp();
        for (int c = lane; c < d; c += 32) {
            float g = 0.f;
            for (int j = 0; j < tokens; j++) g += ds[j] * up(k[(size_t)j * stride + c]);
            put(dq + (size_t)i * stride + c, g);
        }
        __syncwarp();
    }
    __syncthreads();
    for (int j = warp; j < tokens; j += warps) { // gradients of key j and value j
        for (int i = lane; i < tokens; i += 32) {
            float s = 0.f, g = 0.f;
            for (int c = 0; c < d; c++) {
                s += up(q[(size_t)i * stride + c]) * up(k[(size_t)j * stride + c]);
                g += up(go[(size_t)i * width + c]) * up(v[(size_t)j * stride + c]);
            }
            p[i] = expf(s * scale - lse[i]);
            ds[i] = p[i] * (g - delta[i]) * scale;
        }
        __syncwarp();
        for (int c = lane; c < d; c += 32) {
            float gk = 0.f, gv = 0.f;
            for (int i = 0; i < tokens; i++) {
                gk += ds[i] * up(q[(size_t)i * stride + c]);
                gv += p[i] * up(go[(size_t)i * width + c]);
            }
            put(dk + (size_t)j * stride + c, gk);
            put(dv + (size_t)j * stride + c, gv);
        }
        __syncwarp();
    }
}
