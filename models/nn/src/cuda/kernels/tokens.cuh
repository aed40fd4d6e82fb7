// Converts between patches, encoder tokens and decoder tokens; each thread moves four values of one token.

// out (B, 1 + K, D) = [class | tok + bias] + positions; tok (B K, D) are the embedded patches without their bias.
extern "C" __global__ void NAME(embed_place)(const SCALAR* tok, const float* bias, const float* cls,
                                             const float* positions, const u32* kept, SCALAR* out, int images, int k,
                                             int width) {
    int quads = width / 4;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (size_t)images * (1 + k) * quads) return;
    int c = 4 * (int)(i % quads);
    size_t row = i / quads;
    int image = (int)(row / (1 + k)), token = (int)(row % (1 + k));
    float4 v;
    if (token == 0) {
        v = load4(cls + c) + load4(positions + c);
    } else {
        size_t patch = (size_t)image * k + token - 1;
        v = load4(tok + patch * width + c) + load4(bias + c) + load4(positions + (size_t)(1 + kept[patch]) * width + c);
    }
    store4(out + row * width + c, v);
}

// dtok (B K, D) = dy without the class tokens.
extern "C" __global__ void NAME(embed_take)(const SCALAR* dy, SCALAR* dtok, int images, int k, int width) {
    int quads = width / 4;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (size_t)images * k * quads) return;
    int c = 4 * (int)(i % quads);
    size_t patch = i / quads;
    store4(dtok + patch * width + c, load4(dy + ((patch / k) * (1 + k) + 1 + patch % k) * width + c));
}

// out (B, all, E): tok + bias where there is a source, else the mask token; plus positions (all, E).
extern "C" __global__ void NAME(fill_place)(const SCALAR* tok, const float* bias, const float* mask,
                                            const float* positions, const u32* sources, SCALAR* out, int images, int all,
                                            int width) {
    int quads = width / 4;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (size_t)images * all * quads) return;
    int c = 4 * (int)(i % quads);
    size_t row = i / quads;
    u32 source = sources[row];
    float4 v = source == REMOVED ? load4(mask + c) : load4(tok + (size_t)source * width + c) + load4(bias + c);
    store4(out + row * width + c, v + load4(positions + (row % all) * width + c));
}

// dtok[source] = dy; every encoder token is the source of exactly one decoder token.
extern "C" __global__ void NAME(fill_take)(const SCALAR* dy, const u32* sources, SCALAR* dtok, int images, int all,
                                           int width) {
    int quads = width / 4;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (size_t)images * all * quads) return;
    int c = 4 * (int)(i % quads);
    u32 source = sources[i / quads];
    if (source != REMOVED) store4(dtok + (size_t)source * width + c, load4(dy + (i / quads) * width + c));
}

// out (B, D): the class token (mean = 0) or the mean of the patch tokens.
extern "C" __global__ void NAME(pool_fwd)(const SCALAR* x, SCALAR* out, int images, int tokens, int width, int mean) {
    int quads = width / 4;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (size_t)images * quads) return;
    int c = 4 * (int)(i % quads);
    const SCALAR* image = x + (i / quads) * tokens * width + c;
    float4 v = load4(image);
    if (mean) {
        v = make_float4(0.f, 0.f, 0.f, 0.f);
        for (int t = 1; t < tokens; t++) v = v + load4(image + (size_t)t * width);
        v = v * (1.f / (tokens - 1));
    }
    store4(out + (i / quads) * width + c, v);
}

// Rows first .. first + images x tokens of dx (rows, D) get their share of dy (B, D); all other rows become 0.
extern "C" __global__ void NAME(pool_bwd)(const SCALAR* dy, SCALAR* dx, int rows, int first, int images, int tokens,
                                          int width, int mean) {
    int quads = width / 4;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (size_t)rows * quads) return;
    int c = 4 * (int)(i % quads), row = (int)(i / quads) - first;
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
    if (row >= 0 && row < images * tokens && (row % tokens == 0) == (mean == 0)) {
        v = load4(dy + (size_t)(row / tokens) * width + c) * (mean ? 1.f / (tokens - 1) : 1.f);
    }
    store4(dx + (i / quads) * width + c, v);
}
