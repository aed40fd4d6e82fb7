// Over all parameters at once, in flat vectors: gradient norm, AdamW, moving average, bfloat16 copies; as ops/update.rs.

// What changes from step to step, read from memory so that a captured step can be launched again.
struct StepNumbers {
    float lr, momentum;
    float correction1, correction2; // 1 - beta^t
    u32 bank_next;                  // where the next key goes
    u32 slot;                       // where this step's numbers go
    float muon_lr;
    u32 unused;
};
// What does not.
struct UpdateNumbers {
    float beta1, beta2, eps, weight_decay, clip, share;
    u32 first_projector, first_decoder; // the flat vectors hold encoder, projector, decoder
    u32 total, keys;                    // parameters, and how many of the first of them the key branch has
};
// A step's numbers as the host fetches them: loss, gradient norms of encoder, projector and decoder, whether the step was
// applied (1) or not (0), and the numbers of each term of the loss, one term after the other.
#define SLOT 32
#define TERMS 8
// Where the numbers of each term are, and how many.
struct TermNumbers {
    const float* at[TERMS];
    u32 count[TERMS];
};
// In `decay`, besides 0 and 1: parameters that Muon has updated already.
#define MUONS 2

__device__ __forceinline__ double shuffle_down(double v, int step) { return __shfl_down_sync(WHOLE_WARP, v, step); }

// partial (gridDim.x, 4): sums of squares of the parts, the fourth unused.
extern "C" __global__ void __launch_bounds__(256) gradient_squares(const float* grad, double* partial,
                                                                   UpdateNumbers n) {
    __shared__ double room[8][3];
    double sums[3] = {0.0, 0.0, 0.0};
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n.total; i += gridDim.x * blockDim.x) {
        double square = (double)grad[i] * grad[i];
        if (i < n.first_projector) sums[0] += square;
        else if (i < n.first_decoder) sums[1] += square;
        else sums[2] += square;
    }
    for (int k = 0; k < 3; k++) {
        for (int step = 16; step > 0; step /= 2) sums[k] += shuffle_down(sums[k], step);
        if (threadIdx.x % 32 == 0) room[threadIdx.x / 32][k] = sums[k];
    }
    __syncthreads();
    if (threadIdx.x < 3) {
        double sum = 0.0;
        for (int w = 0; w < 8; w++) sum += room[w][threadIdx.x];
        partial[4 * blockIdx.x + threadIdx.x] = sum;
    }
}

// One AdamW step on all parameters, their bfloat16 copy (where `half` is not null), the key branch's moving average and
// its copy.  Block 0 notes the step's numbers.  Where the gradient or the loss is not finite nothing changes, and
// *stopped becomes 1: it is 1 for all steps behind, which change nothing either until the host sets it to 0.
// partial: of gradient_squares, `parts` blocks; decay: 1 where weight decay applies, MUONS where only copies are left to do.
extern "C" __global__ void __launch_bounds__(256)
    adamw_all(float* params, const float* grad, float* first, float* second, const unsigned char* decay, bf16* half,
              float* keys, bf16* keys_half, const double* partial, int parts, const StepNumbers* step,
              const float* loss, TermNumbers terms, float* ring, u32* stopped, UpdateNumbers n) {
    __shared__ double sums[3];
    if (threadIdx.x < 32) {
        double mine[3] = {0.0, 0.0, 0.0};
        for (int p = threadIdx.x; p < parts; p += 32)
            for (int k = 0; k < 3; k++) mine[k] += partial[4 * p + k];
        for (int k = 0; k < 3; k++) {
            for (int s = 16; s > 0; s /= 2) mine[k] += shuffle_down(mine[k], s);
            if (threadIdx.x == 0) sums[k] = mine[k];
        }
    }
    __syncthreads();
    float norm = (float)sqrt(sums[0] + sums[1] + sums[2]) * n.share;
    // Block 0 writes *stopped only where this step is not finite, which every block finds by itself.
    bool apply = isfinite(norm) && isfinite(*loss) && *stopped == 0;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        float* to = ring + SLOT * step->slot;
        to[0] = *loss;
        for (int k = 0; k < 3; k++) to[1 + k] = (float)sqrt(sums[k]) * n.share;
        to[4] = apply ? 1.f : 0.f;
        float* next = to + 5;
        for (int t = 0; t < TERMS; t++)
            for (u32 k = 0; k < terms.count[t]; k++) *next++ = terms.at[t][k];
        if (!apply) *stopped = 1;
    }
    if (!apply) return;
    float scale = n.share * (n.clip > 0.f && norm > n.clip ? n.clip / norm : 1.f);
    float rate = step->lr / step->correction1, root = 1.f / sqrtf(step->correction2), momentum = step->momentum;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n.total; i += gridDim.x * blockDim.x) {
        float p = params[i];
        if (decay[i] != MUONS) {
            float g = grad[i] * scale;
            float m = n.beta1 * first[i] + (1.f - n.beta1) * g;
            float v = n.beta2 * second[i] + (1.f - n.beta2) * g * g;
            float keep = decay[i] ? 1.f - step->lr * n.weight_decay : 1.f;
            p = p * keep - rate * m / (sqrtf(v) * root + n.eps);
            first[i] = m;
            second[i] = v;
            params[i] = p;
        }
        if (half) put(half + i, p);
        if (i < n.keys) {
            float k = momentum * (keys[i] - p) + p;
            keys[i] = k;
            if (keys_half) put(keys_half + i, k);
        }
    }
}

// *out = factor x the sum of `count` numbers.
extern "C" __global__ void weigh(const float* x, int count, float factor, float* out) {
    float sum = 0.f;
    for (int i = 0; i < count; i++) sum += x[i];
    *out = sum * factor;
}
