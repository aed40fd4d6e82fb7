// Shared by all kernels: conversions, access to four values at a time, and sums over a warp, a block and a grid.
//
// Storage is float or bfloat16 (SCALAR), arithmetic is float.  Letters: B batch, N patches, T tokens, D width, H heads.
// The same files compile for the host with scripts/emulate/cuda_on_host.h, which runs a block's threads as fibres.
// Therefore: no inline assembly, no static __device__ state, and every barrier is reached by the whole block or warp.
#pragma once
#ifndef CUDA_ON_HOST
#include <cuda_bf16.h>
#include <cuda_pipeline_primitives.h>
#include <mma.h>
// A block's shared memory; the launch determines its size.
extern __shared__ __align__(128) float4 shared_quads[];
#endif

typedef __nv_bfloat16 bf16;
typedef unsigned int u32;

#define WHOLE_WARP 0xffffffffu
// In an image's list of sources: the patch was removed, so there is no encoded token.
#define REMOVED 0xffffffffu
// In the memory bank's list of images: the entry has no key yet.
#define EMPTY 0xffffffffu

__device__ __forceinline__ float up(float x) { return x; }
__device__ __forceinline__ float up(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void put(float* to, float x) { *to = x; }
__device__ __forceinline__ void put(bf16* to, float x) { *to = __float2bfloat16(x); }

struct __align__(8) bf16x4 {
    bf16 v[4];
};

// Four adjacent values in one access; the address must be aligned to four values.
__device__ __forceinline__ float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float4 load4(const bf16* p) {
    bf16x4 q = *reinterpret_cast<const bf16x4*>(p);
    return make_float4(up(q.v[0]), up(q.v[1]), up(q.v[2]), up(q.v[3]));
}
__device__ __forceinline__ void copy4(float* to, const float* p) {
    *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(p);
}
__device__ __forceinline__ void copy4(bf16* to, const bf16* p) {
    *reinterpret_cast<bf16x4*>(to) = *reinterpret_cast<const bf16x4*>(p);
}
__device__ __forceinline__ void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }
__device__ __forceinline__ void store4(bf16* p, float4 v) {
    bf16x4 q;
    put(&q.v[0], v.x);
    put(&q.v[1], v.y);
    put(&q.v[2], v.z);
    put(&q.v[3], v.w);
    *reinterpret_cast<bf16x4*>(p) = q;
}
__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ __forceinline__ float4 operator*(float4 a, float4 b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}
__device__ __forceinline__ float4 operator*(float4 a, float s) {
    return make_float4(a.x * s, a.y * s, a.z * s, a.w * s);
}
__device__ __forceinline__ float4 operator-(float4 a, float s) {
    return make_float4(a.x - s, a.y - s, a.z - s, a.w - s);
}
__device__ __forceinline__ float total(float4 a) { return (a.x + a.y) + (a.z + a.w); }

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(WHOLE_WARP, v, step);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(WHOLE_WARP, v, step));
    return v;
}

// Sum over the block; every thread gets it.  `room` holds 33 floats.
__device__ inline float block_sum(float v, float* room) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.f;
        for (int w = 0; w < (int)(blockDim.x + 31) / 32; w++) sum += room[w];
        room[32] = sum;
    }
    __syncthreads();
    return room[32];
}
__device__ inline float block_max(float v, float* room) {
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        float top = room[0];
        for (int w = 1; w < (int)(blockDim.x + 31) / 32; w++) top = fmaxf(top, room[w]);
        room[32] = top;
    }
    __syncthreads();
    return room[32];
}

// Returns true in the last of `members` blocks to arrive; it sees everything that the other blocks wrote.  That block
// adds all parts in a fixed order, so sums do not depend on which block is last.  `counter` is 0 before and after.
__device__ inline bool last_of(u32* counter, u32 members) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1u) == members - 1;
        if (last) *counter = 0;
    }
    __syncthreads();
    if (last) __threadfence();
    return last;
}
__device__ inline bool last_block(u32* counter) { return last_of(counter, gridDim.x); }

// Number of blocks whose sums are added in the first step.
#define TREE 16
// Adds `count` rows of partial sums, `stride` values apart.
__device__ __forceinline__ float4 rows_sum(const float* partial, u32 count, size_t stride) {
    float4 sum = load4(partial);
#pragma unroll 8
    for (u32 p = 1; p < count; p++) sum = sum + load4(partial + p * stride);
    return sum;
}
// Adds the blocks' rows of `partial` (gridDim.x, columns) in two steps: groups of TREE blocks, then the groups' sums.
// One block alone would take longer than the rest of the kernel.  Adds the first `split` columns to `out`, the others
// to `more` (null: nowhere).  counters: 1 + ceil(gridDim.x / TREE); columns and split: multiples of 4.
__device__ inline void finish_columns(float* partial, int columns, float* out, int split, float* more, u32* counters) {
    u32 group = blockIdx.x / TREE, groups = (gridDim.x + TREE - 1) / TREE;
    u32 members = min((u32)TREE, gridDim.x - group * TREE);
    float* mine = partial + (size_t)group * TREE * columns;
    if (!last_of(counters + 1 + group, members)) return;
    for (int c = 4 * threadIdx.x; c < columns; c += 4 * blockDim.x) store4(mine + c, rows_sum(mine + c, members, columns));
    if (!last_of(counters, groups)) return;
    for (int c = 4 * threadIdx.x; c < columns; c += 4 * blockDim.x) {
        float* to = c < split ? out + c : more ? more + c - split : (float*)0;
        if (!to) continue;
        // A gradient's address may be unaligned.
        float4 sum = rows_sum(partial + c, groups, (size_t)TREE * columns);
        to[0] += sum.x, to[1] += sum.y, to[2] += sum.z, to[3] += sum.w;
    }
}

__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * (1.f + erff(x * 0.70710678118654752f)); }
__device__ __forceinline__ float normal_density(float x) { return 0.3989422804014327f * expf(-0.5f * x * x); }
