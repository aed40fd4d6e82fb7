// Both views of a batch from a resident data set of equally large u8 images; as train's views/.  A block makes one view:
// its planes stay in shared memory from the crop to the patches.

#ifndef VIEWS_HELPERS
#define VIEWS_HELPERS
// What is done to one image in one view; 64 bytes.
struct Draw {
    u32 image, top, left, height, width;
    u32 flags;       // 1: mirrored, 2: grey, 4: solarised
    u32 steps;       // count, then a hexadecimal digit a jitter step: 0 brightness, 1 contrast, 2 saturation, 3 hue
    u32 radius;      // of the blur, 0: none
    float factor[4]; // of each step
    float sigma;     // of the blur
    float unused[3];
};
// The data set and what all views share.
struct ViewsOf {
    const unsigned char* pixels; // (n, height, width, 3)
    int height, width, size, patch;
    float scale[3], shift[3];
};

// Weights of one output position as ATen's antialiased bilinear resize has them: `count` taps from `first` on, each
// max(0, 1 - |distance| / support), to be divided by `total`.
struct Taps {
    int first, count;
    float center, support, total;
};
__device__ inline float tap_weight(const Taps& t, int j) {
    return fmaxf(0.f, 1.f - fabsf((t.first + j - t.center + 0.5f) / t.support));
}
__device__ inline Taps taps_of(int input, int output, int position) {
    Taps t;
    float scale = (float)input / output;
    t.support = fmaxf(scale, 1.f);
    t.center = scale * (position + 0.5f);
    t.first = (int)fmaxf(t.center - t.support + 0.5f, 0.f);
    t.count = min((int)(t.center + t.support + 0.5f), input) - t.first;
    t.total = 0.f;
    for (int j = 0; j < t.count; j++) t.total += tap_weight(t, j);
    return t;
}
__device__ inline float into_unit(float v) { return fminf(fmaxf(v, 0.f), 1.f); }
__device__ inline float gray_of(float r, float g, float b) { return 0.2989f * r + 0.587f * g + 0.114f * b; }
__device__ inline float wrap(float s) { return s >= 6.f ? s - 6.f : s; }
__device__ inline float ramp(float k) { return into_unit(fminf(k, 4.f - k)); }
__device__ inline int reflected(int i, int size) {
    i = i < 0 ? -i : i;
    return i > size - 1 ? 2 * (size - 1) - i : i;
}
__device__ inline void hue_of(float* r, float* g, float* b, float rotation) {
    float high = fmaxf(fmaxf(*r, *g), *b), low = fminf(fminf(*r, *g), *b), range = high - low;
    float inverse = 1.f / (range == 0.f ? 1.f : range);
    float sextant = high == *r ? (*g - *b) * inverse
                    : high == *g ? (*b - *r) * inverse + 2.f
                                 : (*r - *g) * inverse + 4.f;
    if (sextant < 0.f) sextant += 6.f;
    float turned = wrap(sextant + rotation);
    *r = high - range * ramp(wrap(turned + 5.f));
    *g = high - range * ramp(wrap(turned + 3.f));
    *b = high - range * ramp(wrap(turned + 1.f));
}
// Crop, resize, mirror: planes (3, S, S) in [0, 1].
__device__ inline void crop_in(const unsigned char* pixels, int stride, const Draw& d, int size, float* planes) {
    for (int i = threadIdx.x; i < size * size; i += blockDim.x) {
        int x = i % size;
        Taps rows = taps_of(d.height, size, i / size), columns = taps_of(d.width, size, d.flags & 1 ? size - 1 - x : x);
        float r = 0.f, g = 0.f, b = 0.f;
        for (int tx = 0; tx < columns.count; tx++) {
            float cr = 0.f, cg = 0.f, cb = 0.f;
            for (int ty = 0; ty < rows.count; ty++) {
                const unsigned char* p =
                    pixels + 3 * ((size_t)(d.top + rows.first + ty) * stride + d.left + columns.first + tx);
                float w = tap_weight(rows, ty);
                cr += p[0] * w;
                cg += p[1] * w;
                cb += p[2] * w;
            }
            float w = tap_weight(columns, tx);
            r += cr * w;
            g += cg * w;
            b += cb * w;
        }
        float scale = 1.f / (255.f * rows.total * columns.total);
        planes[i] = r * scale;
        planes[size * size + i] = g * scale;
        planes[2 * size * size + i] = b * scale;
    }
}
// One step of the colour jitter.
__device__ inline void adjust(float* planes, int n, int kind, float factor, float* room) {
    float shift = 0.f;
    if (kind == 1) {
        float sum = 0.f;
        for (int i = threadIdx.x; i < n; i += blockDim.x) sum += gray_of(planes[i], planes[n + i], planes[2 * n + i]);
        shift = (1.f - factor) * block_sum(sum, room) / n;
    }
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float *r = planes + i, *g = r + n, *b = g + n;
        if (kind == 3) {
            hue_of(r, g, b, 6.f * (factor < 0.f ? factor + 1.f : factor));
            continue;
        }
        float s = kind == 2 ? (1.f - factor) * gray_of(*r, *g, *b) : shift;
        *r = into_unit(*r * factor + s);
        *g = into_unit(*g * factor + s);
        *b = into_unit(*b * factor + s);
    }
    __syncthreads();
}
// Gaussian blur with reflected borders, rows then columns; weights: 2 radius + 1, line: (S, S).
__device__ inline void blur(float* planes, float* line, float* weights, int size, int radius, float sigma) {
    int taps = 2 * radius + 1;
    if (threadIdx.x == 0) {
        float sum = 0.f;
        for (int t = 0; t < taps; t++) {
            float x = (t - radius) / sigma;
            sum += weights[t] = expf(-0.5f * x * x);
        }
        for (int t = 0; t < taps; t++) weights[t] /= sum;
    }
    for (int channel = 0; channel < 3; channel++) {
        float* plane = planes + channel * size * size;
        for (int pass = 0; pass < 2; pass++) {
            const float* from = pass ? line : plane;
            float* to = pass ? plane : line;
            __syncthreads();
            for (int i = threadIdx.x; i < size * size; i += blockDim.x) {
                int y = i / size, x = i % size;
                float sum = 0.f;
                for (int t = 0; t < taps; t++) {
                    int a = reflected((pass ? y : x) + t - radius, size);
                    sum += weights[t] * from[pass ? a * size + x : y * size + a];
                }
                to[i] = sum;
            }
        }
    }
    __syncthreads();
}
#endif

// Where one branch's views go.
struct NAME(ViewOut) {
    const Draw* draws;  // (B)
    const u32* kept;    // (B, K)
    SCALAR* patches;      // (B, K, P)
    SCALAR* whole;        // (B, N, P) or null: all patches as the encoder would see them
    float* target;      // (B, N, P)
    int k, target_view; // target: 0 before the corruption, 1 after it
};

// Patches `which` (all where null) of the planes, normalised; values in the order (channel, row, column).
template <class Out>
__device__ inline void NAME(patches_out)(const float* planes, const ViewsOf& of, const u32* which, int count, Out* out) {
    int p = of.patch, values = 3 * p * p, grid = of.size / p;
    for (int i = threadIdx.x; i < count * values; i += blockDim.x) {
        int slot = i / values, v = i % values, c = v / (p * p), y = v / p % p, x = v % p;
        int n = which ? (int)which[slot] : slot;
        float value = planes[(c * of.size + n / grid * p + y) * of.size + n % grid * p + x];
        put(out + i, value * of.scale[c] + of.shift[c]);
    }
}

// Grid 2 B: both views of each image.  Shared: float 4 S^2 + 64.
extern "C" __global__ void __launch_bounds__(256) NAME(views)(ViewsOf of, NAME(ViewOut) strong, NAME(ViewOut) weak) {
    __shared__ float room[33];
    int n = of.size * of.size, patches = (of.size / of.patch) * (of.size / of.patch), b = blockIdx.x / 2;
    int values = 3 * of.patch * of.patch;
    float *planes = (float*)shared_quads, *line = planes + 3 * n, *weights = line + n;
    const NAME(ViewOut) to = blockIdx.x % 2 ? weak : strong;
    const Draw d = to.draws[b];
    float* target = to.target + (size_t)b * patches * values;
    crop_in(of.pixels + (size_t)d.image * of.height * of.width * 3, of.width, d, of.size, planes);
    __syncthreads();
    if (!to.target_view) {
        NAME(patches_out)(planes, of, (const u32*)0, patches, target);
        __syncthreads();
    }
    for (u32 i = 0; i < (d.steps & 15u); i++) adjust(planes, n, d.steps >> (4 + 4 * i) & 15, d.factor[i], room);
    if (d.flags & 2) {
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            float v = gray_of(planes[i], planes[n + i], planes[2 * n + i]);
            planes[i] = planes[n + i] = planes[2 * n + i] = v;
        }
        __syncthreads();
    }
    if (d.radius) blur(planes, line, weights, of.size, (int)d.radius, d.sigma);
    if (d.flags & 4) {
        for (int i = threadIdx.x; i < 3 * n; i += blockDim.x) planes[i] = planes[i] >= 0.5f ? 1.f - planes[i] : planes[i];
        __syncthreads();
    }
    if (to.target_view) NAME(patches_out)(planes, of, (const u32*)0, patches, target);
    if (to.whole) NAME(patches_out)(planes, of, (const u32*)0, patches, to.whole + (size_t)b * patches * values);
    NAME(patches_out)(planes, of, to.kept + (size_t)b * to.k, to.k, to.patches + (size_t)b * to.k * values);
}
