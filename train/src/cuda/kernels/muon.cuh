// Muon's step on the matrices of the transformer blocks, as ops/muon.rs: what stands before and behind its products.
#ifndef MUON_ONCE
#define MUON_ONCE
// Blocks that share a matrix's sum of squares.
#define MUON_PARTS 8
// Edge of the tile in which a matrix is turned.
#define TILE 32

// A matrix within the flat vectors; long ones lie turned in the working memory, so that rows <= columns there.
struct MuonMatrix {
    u32 at, rows, columns; // first value in the flat vectors
    u32 place;             // first value in the working memory
    float factor;          // on the learning rate
};
// scale: what the gradient is multiplied by, and whether anything is applied.
struct MuonScale {
    float gradient, apply;
};

// One warp: the factor of adamw_all, from the same sums in the same order.
extern "C" __global__ void __launch_bounds__(32)
    muon_scale(const double* partial, int parts, const float* loss, const u32* stopped, UpdateNumbers n, MuonScale* out) {
    double sums[3] = {0.0, 0.0, 0.0};
    for (int p = threadIdx.x; p < parts; p += 32)
        for (int k = 0; k < 3; k++) sums[k] += partial[4 * p + k];
    for (int k = 0; k < 3; k++)
        for (int s = 16; s > 0; s /= 2) sums[k] += shuffle_down(sums[k], s);
    if (threadIdx.x == 0) {
        float norm = (float)sqrt(sums[0] + sums[1] + sums[2]) * n.share;
        bool apply = isfinite(norm) && isfinite(*loss) && (!stopped || *stopped == 0);
        out->gradient = apply ? n.share * (n.clip > 0.f && norm > n.clip ? n.clip / norm : 1.f) : 0.f;
        out->apply = apply ? 1.f : 0.f;
    }
}

// Grid (MUON_PARTS, matrices): new momenta, and each part's sum of the direction's squares (matrices, MUON_PARTS).
extern "C" __global__ void __launch_bounds__(256) muon_momenta(const float* grad, float* momenta,
                                                               const MuonMatrix* matrices, const MuonScale* scale,
                                                               float keep, float* squares) {
    __shared__ float room[33];
    if (scale->apply == 0.f) return;
    const MuonMatrix matrix = matrices[blockIdx.y];
    const float by = scale->gradient;
    float sum = 0.f;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < matrix.rows * matrix.columns; i += MUON_PARTS * blockDim.x) {
        float g = (1.f - keep) * (grad[matrix.at + i] * by);
        float m = keep * momenta[matrix.at + i] + g;
        float d = keep * m + g;
        momenta[matrix.at + i] = m;
        sum += d * d;
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) squares[blockIdx.y * MUON_PARTS + blockIdx.x] = sum;
}
#endif

// Grid (tiles of the largest matrix, matrices): directions of length 1, long matrices turned.
extern "C" __global__ void __launch_bounds__(256)
    NAME(muon_directions)(const float* grad, const float* momenta, const MuonMatrix* matrices, const MuonScale* scale,
                          float keep, const float* squares, SCALAR* out) {
    __shared__ float tile[TILE][TILE + 1];
    const MuonMatrix m = matrices[blockIdx.y];
    u32 across = (m.columns + TILE - 1) / TILE, top = blockIdx.x / across * TILE, left = blockIdx.x % across * TILE;
    if (top >= m.rows || scale->apply == 0.f) return;
    float sum = 0.f;
    for (int p = 0; p < MUON_PARTS; p++) sum += squares[blockIdx.y * MUON_PARTS + p];
    const float by = 1.f / (sqrtf(sum) + 1e-7f);
    const bool turned = m.rows > m.columns;
    const u32 x = threadIdx.x % TILE;
    for (u32 y = threadIdx.x / TILE; y < TILE; y += blockDim.x / TILE) {
        if (top + y >= m.rows || left + x >= m.columns) continue;
        u32 i = (top + y) * m.columns + left + x;
        float g = (1.f - keep) * (grad[m.at + i] * scale->gradient);
        float d = (keep * momenta[m.at + i] + g) * by;
        if (turned) tile[y][x] = d;
        else put(out + m.place + i, d);
    }
    if (!turned) return;
    __syncthreads();
    for (u32 y = threadIdx.x / TILE; y < TILE; y += blockDim.x / TILE)
        if (left + y < m.columns && top + x < m.rows)
            put(out + m.place + (left + y) * m.rows + top + x, tile[x][y]);
}

// Grid as muon_directions: decay, and the orthogonalised directions are taken from the weights.
extern "C" __global__ void __launch_bounds__(256)
    NAME(muon_apply)(float* params, const MuonMatrix* matrices, const MuonScale* scale, const StepNumbers* step,
                     float weight_decay, const SCALAR* directions) {
    __shared__ float tile[TILE][TILE + 1];
    const MuonMatrix m = matrices[blockIdx.y];
    u32 across = (m.columns + TILE - 1) / TILE, top = blockIdx.x / across * TILE, left = blockIdx.x % across * TILE;
    if (top >= m.rows || scale->apply == 0.f) return;
    const bool turned = m.rows > m.columns;
    const u32 x = threadIdx.x % TILE;
    if (turned) {
        for (u32 y = threadIdx.x / TILE; y < TILE; y += blockDim.x / TILE)
            if (left + y < m.columns && top + x < m.rows)
                tile[x][y] = up(directions[m.place + (left + y) * m.rows + top + x]);
        __syncthreads();
    }
    const float keep = 1.f - step->muon_lr * weight_decay, rate = step->muon_lr * m.factor;
    for (u32 y = threadIdx.x / TILE; y < TILE; y += blockDim.x / TILE) {
        if (top + y >= m.rows || left + x >= m.columns) continue;
        u32 i = (top + y) * m.columns + left + x;
        float d = turned ? tile[y][x] : up(directions[m.place + i]);
        params[m.at + i] = params[m.at + i] * keep - rate * d;
    }
}
