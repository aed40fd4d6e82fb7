// Runs CUDA kernels on the host, a block at a time, its threads as fibres: enough of CUDA C++ for models/nn/src/cuda/kernels and
// train/src/cuda/kernels.
//
// It finds what a wrong index, a missing barrier, a shared-memory overrun or an unwritten result would do: shared memory
// starts as NaNs and is checked beyond its end, barriers that not all threads reach are errors, copies into shared memory
// happen only when they are waited for, and threads and blocks run in the order that EMULATE_ORDER names (forward,
// reverse, random:SEED), between which a race would differ.  It says nothing about speed.  x86-64 only.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define CUDA_ON_HOST
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
using std::isfinite;
using std::max;
using std::min;

struct dim3 {
    unsigned x, y, z;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }

struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
inline __nv_bfloat16 __float2bfloat16(float f) { // to nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (f != f) return {0x7fff};
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace host {
extern "C" void fibre_switch(void** save, void* load);
asm(R"(
.text
.globl fibre_switch
fibre_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

enum State { READY, AT_BLOCK, AT_WARP, DONE };
struct Copy {
    void* to;
    const void* from;
    size_t bytes, zeros;
};
struct Fibre {
    void* stack_pointer;
    char* stack;
    State state;
    const char* waits_for;
    unsigned exchanges;
    std::vector<std::vector<Copy>> copies; // groups that were committed, and the open one
};
const size_t STACK = 128 * 1024;
const int THREADS = 1024, SHARED = 256 * 1024, GUARD = 1024;
static std::vector<Fibre> fibres(THREADS);
static int current, count;
static void* scheduler;
static uint64_t slots[THREADS / 32][2][32];
static const char* kernel_name = "";
static void (*body)(void*);
static void* arguments;
} // namespace host

static dim3 threadIdx, blockIdx, blockDim, gridDim;
alignas(64) static float4 shared_quads[host::SHARED / 16];

namespace host {
[[noreturn]] inline void fail(const char* what) {
    fprintf(stderr, "emulation: kernel %s, block %u, thread %u: %s\n", kernel_name, blockIdx.x, threadIdx.x, what);
    abort();
}
inline void wait(State state, const char* what) {
    fibres[current].state = state;
    fibres[current].waits_for = what;
    fibre_switch(&fibres[current].stack_pointer, scheduler);
}
inline void entry() {
    body(arguments);
    fibres[current].state = DONE;
    fibre_switch(&fibres[current].stack_pointer, scheduler);
}
inline void start(Fibre& f) {
    if (!f.stack) f.stack = (char*)malloc(STACK);
    void** top = (void**)(((uintptr_t)f.stack + STACK) & ~(uintptr_t)15);
    *--top = nullptr;              // keeps the stack aligned as after a call
    *--top = (void*)entry;         // where fibre_switch returns to
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f.stack_pointer = top;
    f.state = READY;
    f.exchanges = 0;
    f.copies.assign(1, {});
}
// In which order `count` things run.
struct Order {
    enum { FORWARD, REVERSE, RANDOM } kind = FORWARD;
    uint64_t seed = 0;
    Order() {
        const char* wish = getenv("EMULATE_ORDER");
        if (!wish || !strcmp(wish, "forward")) return;
        kind = REVERSE;
        if (!strcmp(wish, "reverse")) return;
        kind = RANDOM;
        if (strncmp(wish, "random:", 7)) {
            fprintf(stderr, "emulation: EMULATE_ORDER is forward, reverse or random:SEED, found %s\n", wish);
            abort();
        }
        seed = strtoull(wish + 7, nullptr, 10);
    }
    void of(std::vector<int>& all, int count) {
        all.resize(count);
        for (int i = 0; i < count; i++) all[i] = kind == REVERSE ? count - 1 - i : i;
        if (kind != RANDOM) return;
        for (int i = count - 1; i > 0; i--) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            std::swap(all[i], all[(seed >> 33) % (i + 1)]);
        }
    }
};
inline Order& order() {
    static Order order;
    return order;
}
// Releases every warp or the block whose living threads all wait at the same barrier.
inline bool release() {
    bool any = false, block = true;
    for (int w = 0; w < count; w += 32) {
        int at_warp = 0, done = 0, lanes = min(32, count - w);
        const char* what = nullptr;
        for (int t = w; t < w + lanes; t++) {
            State s = fibres[t].state;
            at_warp += s == AT_WARP, done += s == DONE;
            block = block && (s == AT_BLOCK || s == DONE);
            if (s == AT_WARP) {
                if (what && strcmp(what, fibres[t].waits_for)) fail("lanes of a warp wait at different operations");
                what = fibres[t].waits_for;
            }
        }
        if (at_warp && at_warp + done == lanes) {
            if (done) fail("a warp-wide operation without all lanes");
            for (int t = w; t < w + lanes; t++) fibres[t].state = READY;
            any = true;
        }
    }
    if (block && !any) {
        bool waiting = false;
        for (int t = 0; t < count; t++)
            if (fibres[t].state == AT_BLOCK) fibres[t].state = READY, waiting = true;
        return waiting;
    }
    return any;
}
inline void run_block(size_t shared) {
    memset(shared_quads, 0xff, min(shared + GUARD, (size_t)SHARED));
    for (int t = 0; t < count; t++) start(fibres[t]);
    static std::vector<int> turns;
    do {
        order().of(turns, count);
        for (int t : turns) {
            if (fibres[t].state != READY) continue;
            current = t;
            threadIdx = {(unsigned)t, 0, 0};
            fibre_switch(&scheduler, fibres[t].stack_pointer);
        }
    } while (release());
    for (int t = 0; t < count; t++)
        if (fibres[t].state != DONE) fail("threads wait for each other for ever");
    for (int t = 0; t < count; t++)
        for (auto& group : fibres[t].copies)
            if (!group.empty()) fail("ended before its copies into shared memory did");
    const unsigned char* end = (const unsigned char*)shared_quads;
    for (size_t i = shared; i < min(shared + GUARD, (size_t)SHARED); i++)
        if (end[i] != 0xff) fail("wrote beyond its shared memory");
}
} // namespace host

inline void __syncthreads() { host::wait(host::AT_BLOCK, "__syncthreads"); }
inline void __syncwarp() { host::wait(host::AT_WARP, "__syncwarp"); }
inline void __threadfence() {}
// Asynchronous copies happen as late as they may.
inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
    if ((bytes != 4 && bytes != 8 && bytes != 16) || (uintptr_t)to % bytes || (uintptr_t)from % bytes || zeros > bytes)
        host::fail("an asynchronous copy of a wrong size or alignment");
    const char *begin = (const char*)shared_quads, *end = begin + host::SHARED;
    if ((const char*)to < begin || (const char*)to >= end) host::fail("an asynchronous copy to other than shared memory");
    host::fibres[host::current].copies.back().push_back({to, from, bytes, zeros});
}
inline void __pipeline_commit() { host::fibres[host::current].copies.emplace_back(); }
inline void __pipeline_wait_prior(size_t prior) {
    auto& copies = host::fibres[host::current].copies;
    size_t committed = copies.size() - 1, due = committed > prior ? committed - prior : 0;
    for (size_t g = 0; g < due; g++)
        for (auto& c : copies[g]) {
            memcpy(c.to, c.from, c.bytes - c.zeros);
            memset((char*)c.to + c.bytes - c.zeros, 0, c.zeros);
        }
    copies.erase(copies.begin(), copies.begin() + due);
}
template <class V> inline V exchange(V value, int from) {
    static_assert(sizeof(V) <= 8, "");
    host::Fibre& me = host::fibres[host::current];
    auto& slots = host::slots[threadIdx.x / 32][me.exchanges++ % 2];
    memcpy(&slots[threadIdx.x % 32], &value, sizeof(V));
    host::wait(host::AT_WARP, "__shfl");
    memcpy(&value, &slots[from], sizeof(V));
    return value;
}
template <class V> inline V __shfl_xor_sync(unsigned, V v, int mask) { return exchange(v, (threadIdx.x % 32) ^ mask); }
template <class V> inline V __shfl_down_sync(unsigned, V v, int by) {
    int lane = threadIdx.x % 32;
    return exchange(v, lane + by < 32 ? lane + by : lane);
}
inline unsigned atomicAdd(unsigned* p, unsigned v) {
    unsigned old = *p;
    *p += v;
    return old;
}

// A warp's matrices: lane 0 holds and computes all of them; no lane waits for another, so a missing barrier shows.
namespace wmma {
struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major };
template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    float m[16][16];
};
inline bool leads() { return threadIdx.x % 32 == 0; }
inline void aligned(const void* p, int stride_bytes) {
    if ((uintptr_t)p % 32 || stride_bytes % 16) host::fail("a matrix unit's operand is not aligned");
}
template <class F> inline void fill_fragment(F& f, float v) {
    if (leads()) std::fill(&f.m[0][0], &f.m[0][0] + 256, v);
}
template <class Use, class Layout>
inline void load_matrix_sync(fragment<Use, 16, 16, 16, __nv_bfloat16, Layout>& f, const __nv_bfloat16* p, unsigned ld) {
    if (!leads()) return;
    aligned(p, 2 * ld);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 16; c++)
            f.m[r][c] = __bfloat162float(std::is_same<Layout, row_major>::value ? p[r * ld + c] : p[c * ld + r]);
}
typedef fragment<accumulator, 16, 16, 16, float> Accumulator;
inline void load_matrix_sync(Accumulator& f, const float* p, unsigned ld, layout_t) {
    if (!leads()) return;
    aligned(p, 4 * ld);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 16; c++) f.m[r][c] = p[r * ld + c];
}
inline void store_matrix_sync(float* p, const Accumulator& f, unsigned ld, layout_t) {
    if (!leads()) return;
    aligned(p, 4 * ld);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 16; c++) p[r * ld + c] = f.m[r][c];
}
template <class A, class B> inline void mma_sync(Accumulator& d, const A& a, const B& b, const Accumulator& c) {
    if (!leads()) return;
    Accumulator sum = c;
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++) sum.m[r][n] += a.m[r][k] * b.m[k][n];
    d = sum;
}
} // namespace wmma
