// The reconstruction's and the contrast's loss with their gradients; as ops/l1.rs and ops/info_nce.rs.

// Sum of |predicted - target| over the removed patches (all where `sources` is null) times `scale` into *out.
// predicted (B, 1 + N, P), target (B, N, P), sources (B, 1 + N).  partial: gridDim.x floats.
extern "C" __global__ void NAME(l1_fwd)(const SCALAR* predicted, const float* target, const u32* sources, float* out,
                                        float* partial, u32* counter, int images, int patches, int values,
                                        float scale) {
    __shared__ float room[33];
    size_t count = (size_t)images * patches * values;
    float sum = 0.f;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        size_t patch = i / values, image = patch / patches, row = patch + image + 1;
        if (!sources || sources[row] == REMOVED) sum += fabsf(up(predicted[row * values + i % values]) - target[i]);
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
    if (!last_block(counter)) return;
    sum = 0.f;
    for (u32 p = threadIdx.x; p < gridDim.x; p += blockDim.x) sum += partial[p];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) *out = sum * scale;
}

// Gradient of `scale` x *dy x that sum: its sign where it counts, 0 elsewhere.
extern "C" __global__ void NAME(l1_bwd)(const SCALAR* predicted, const float* target, const u32* sources,
                                        const float* dy, SCALAR* dx, int images, int patches, int values, float scale) {
    size_t count = (size_t)images * (1 + patches) * values;
    scale *= *dy;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        size_t row = i / values, image = row / (1 + patches);
        float sign = 0.f;
        if (row % (1 + patches) != 0 && (!sources || sources[row] == REMOVED)) {
            float d = up(predicted[i]) - target[i - (image + 1) * values];
            sign = d > 0.f ? 1.f : d < 0.f ? -1.f : 0.f;
        }
        put(dx + i, sign * scale);
    }
}

// One block a query.  logits (B, B + M): cosines with the batch's keys, then with the bank's.  weights (B, B + M) =
// (softmax(logits / tau) - one-hot) / (tau B), 0 where excluded: keys of the query's own image, places that are empty,
// and (batch_negatives = 0) the batch's other keys.  out: mean loss, mean cosine with the own key, mean with negatives.
// rows: (B, 4) room.
extern "C" __global__ void NAME(nce_rows)(const float* logits, SCALAR* weights, const u32* images,
                                          const u32* bank_images, float* rows, float* out, u32* counter, int bank,
                                          float tau, int batch_negatives) {
    __shared__ float room[33];
    int batch = gridDim.x, columns = batch + bank, own = blockIdx.x;
    u32 image = images[own];
    logits += (size_t)own * columns;
    weights += (size_t)own * columns;
    float top = -INFINITY, negative = 0.f, negatives = 0.f;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        bool in = j < batch ? (j == own || (batch_negatives && images[j] != image))
                            : (bank_images[j - batch] != image && bank_images[j - batch] != EMPTY);
        if (!in) continue;
        float c = logits[j];
        top = fmaxf(top, c);
        if (j != own) negative += c, negatives += 1.f;
    }
    top = block_max(top, room);
    float sum = 0.f;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        bool in = j < batch ? (j == own || (batch_negatives && images[j] != image))
                            : (bank_images[j - batch] != image && bank_images[j - batch] != EMPTY);
        if (in) sum += expf((logits[j] - top) / tau);
    }
    sum = block_sum(sum, room);
    float scale = 1.f / (tau * batch);
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        bool in = j < batch ? (j == own || (batch_negatives && images[j] != image))
                            : (bank_images[j - batch] != image && bank_images[j - batch] != EMPTY);
        float p = in ? expf((logits[j] - top) / tau) / sum : 0.f;
        put(weights + j, (p - (j == own ? 1.f : 0.f)) * scale);
    }
    negative = block_sum(negative, room);
    negatives = block_sum(negatives, room);
    if (threadIdx.x == 0) {
        rows[4 * own] = logf(sum) - (logits[own] - top) / tau;
        rows[4 * own + 1] = logits[own];
        rows[4 * own + 2] = negative;
        rows[4 * own + 3] = negatives;
    }
    if (!last_block(counter)) return;
    float all[4] = {0.f, 0.f, 0.f, 0.f};
    for (int i = threadIdx.x; i < batch; i += blockDim.x)
        for (int k = 0; k < 4; k++) all[k] += rows[4 * i + k];
    for (int k = 0; k < 4; k++) all[k] = block_sum(all[k], room);
    if (threadIdx.x != 0) return;
    out[0] = all[0] / batch;
    out[1] = all[1] / batch;
    out[2] = all[3] > 0.f ? all[2] / all[3] : 0.f;
}

// y = factor x *by x x
extern "C" __global__ void NAME(scaled)(const float* x, const float* by, SCALAR* y, float factor, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) put(y + i, x[i] * (factor * *by));
}

// Keys (B, C) into places next, next + 1, ... of the bank (M, C), of which those behind the end are its beginning.
// Of a batch larger than the bank only the last M keys enter; none where *stopped is 1 (update.cuh).
extern "C" __global__ void NAME(bank_push)(const SCALAR* keys, const u32* images, SCALAR* bank, u32* bank_images,
                                           const u32* next, const u32* stopped, int offset, int batch, int capacity,
                                           int width) {
    int i = blockIdx.x;
    if (i + capacity < batch || *stopped) return;
    int place = (int)(((size_t)*next + offset + i) % capacity);
    for (int c = threadIdx.x; c < width; c += blockDim.x) bank[(size_t)place * width + c] = keys[(size_t)i * width + c];
    if (threadIdx.x == 0) bank_images[place] = images[i];
}
