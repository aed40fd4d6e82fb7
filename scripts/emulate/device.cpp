// Stand-ins for libcuda, libcublas, libcublasLt and libcurand that run everything on the host: a GPU binary of this
// project starts, and its kernels run, where no GPU is.  Built by build.py; see there.
#include "cuda_on_host.h"
#include <functional>
#include <map>
#include <string>
#include <type_traits>
#include KERNELS
#include "candle_few.h"

namespace {
typedef int Status; // CUresult, cublasStatus_t and curandStatus_t alike: 0 is success
struct Operation {
    std::string name;
    std::function<void()> run;
};
struct Graph {
    std::vector<Operation> operations;
};
Graph* capturing = nullptr;
struct Counter {
    std::map<std::string, long> counts;
    ~Counter() {
        if (!getenv("EMULATE_COUNT")) return;
        for (auto& [name, n] : counts) fprintf(stderr, "emulation: %8ld %s\n", n, name.c_str());
    }
} counter;

void queue(const std::string& name, std::function<void()> run) {
    if (capturing) {
        capturing->operations.push_back({name, std::move(run)});
    } else {
        counter.counts[name]++;
        run();
    }
}

// Kernels by name, with how their arguments are unpacked.
typedef std::function<std::function<void()>(void**)> Binder;
std::map<std::string, Binder>& kernels() {
    static std::map<std::string, Binder> all;
    return all;
}
template <class... A> void add(const char* name, void (*kernel)(A...)) {
    kernels()[name] = [kernel](void** args) {
        int i = 0;
        // braces evaluate in order
        std::tuple<A...> values{*static_cast<std::remove_reference_t<A>*>(args[i++])...};
        return [kernel, values]() mutable { std::apply(kernel, values); };
    };
}
const bool registered = [] {
#define K(name) add(#name, name);
#include REGISTRY
#undef K
    return true;
}();

void run_kernel(const char* name, std::function<void()> body, dim3 grid, unsigned threads, size_t shared) {
    host::kernel_name = name;
    if (threads > host::THREADS) host::fail("too many threads in a block");
    host::count = (int)threads;
    host::arguments = &body;
    host::body = [](void* f) { (*static_cast<std::function<void()>*>(f))(); };
    gridDim = grid;
    blockDim = {threads, 1, 1};
    for (unsigned y = 0; y < grid.y; y++)
        for (unsigned x = 0; x < grid.x; x++) {
            blockIdx = {x, y, 0};
            host::run_block(shared);
        }
}
struct Function {
    std::string name;
    Binder bind;
};
std::map<void*, size_t> sizes;
} // namespace

extern "C" {
#define OK return 0
Status cuInit(unsigned) { OK; }
Status cuDriverGetVersion(int* v) { *v = 13000; OK; }
Status cuDeviceGet(int* d, int i) { *d = i; return i == 0 ? 0 : 101; }
Status cuDeviceGetCount(int* n) { *n = 1; OK; }
Status cuDeviceGetName(char* name, int n, int) { snprintf(name, n, "this processor, standing in for a GPU"); OK; }
Status cuDeviceGetAttribute(int* v, int attribute, int) {
    switch (attribute) {
    case 16: *v = 4; break;           // multiprocessors
    case 75: *v = 9; break;           // compute capability 9.0
    case 76: *v = 0; break;
    case 97: *v = 227 * 1024; break;  // shared memory a block may ask for
    default: *v = 1;
    }
    OK;
}
Status cuDevicePrimaryCtxRetain(void** c, int) { *c = (void*)1; OK; }
Status cuDevicePrimaryCtxRelease_v2(int) { OK; }
Status cuCtxSetCurrent(void*) { OK; }
Status cuCtxGetCurrent(void** c) { *c = (void*)1; OK; }
Status cuCtxSynchronize() { OK; }
Status cuMemGetInfo_v2(size_t* free, size_t* total) { *free = *total = (size_t)8 << 30; OK; }
Status cuStreamCreate(void** s, unsigned) { *s = (void*)2; OK; }
Status cuStreamCreateWithPriority(void** s, unsigned, int) { *s = (void*)2; OK; }
Status cuStreamDestroy_v2(void*) { OK; }
Status cuStreamSynchronize(void*) { return capturing ? 900 : 0; }
Status cuStreamWaitEvent(void*, void*, unsigned) { OK; }
Status cuEventCreate(void** e, unsigned) { *e = (void*)3; OK; }
Status cuEventRecord(void*, void*) { OK; }
Status cuEventSynchronize(void*) { OK; }
Status cuEventQuery(void*) { OK; }
Status cuEventElapsedTime_v2(float* ms, void*, void*) { *ms = 0; OK; }
Status cuEventDestroy_v2(void*) { OK; }
Status cuDeviceGetDefaultMemPool(void** p, int) { *p = (void*)4; OK; }
Status cuMemPoolSetAttribute(void*, int, void*) { OK; }
Status cuMemPoolGetAttribute(void*, int, void* v) { memset(v, 0, 8); OK; }
Status cuDeviceGetGraphMemAttribute(int, int, void* v) { memset(v, 0, 8); OK; }
Status cuMemAllocAsync(void** p, size_t n, void*) {
    *p = aligned_alloc(256, (n + 511) / 256 * 256);
    memset(*p, 0xff, n); // NaN in float and bfloat16: what is read before it is written shows
    sizes[*p] = n;
    if (capturing) counter.counts["(allocations while capturing)"]++;
    OK;
}
Status cuMemAlloc_v2(void** p, size_t n) { return cuMemAllocAsync(p, n, nullptr); }
Status cuMemFreeAsync(void* p, void*) {
    if (capturing) OK; // a launched graph writes there again
    if (!sizes.erase(p)) return 1;
    free(p);
    OK;
}
Status cuMemFree_v2(void* p) { return cuMemFreeAsync(p, nullptr); }
Status cuMemHostAlloc(void** p, size_t n, unsigned) { *p = malloc(n); OK; }
Status cuMemFreeHost(void* p) { free(p); OK; }
Status cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t n, void*) {
    queue("copy to the device", [=] { memcpy(to, from, n); });
    OK;
}
Status cuMemcpyHtoD_v2(void* to, const void* from, size_t n) { return cuMemcpyHtoDAsync_v2(to, from, n, nullptr); }
Status cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t n, void*) {
    if (capturing) return 900;
    counter.counts["copy to the host"]++;
    memcpy(to, from, n);
    OK;
}
Status cuMemcpyDtoH_v2(void* to, const void* from, size_t n) { return cuMemcpyDtoHAsync_v2(to, from, n, nullptr); }
Status cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t n, void*) {
    queue("copy on the device", [=] { memmove(to, from, n); });
    OK;
}
Status cuMemsetD8Async(void* to, unsigned char v, size_t n, void*) {
    queue("memset", [=] { memset(to, v, n); });
    OK;
}
Status cuModuleLoadData(void** m, const void*) { *m = (void*)5; OK; }
Status cuModuleUnload(void*) { OK; }
Status cuModuleGetFunction(void** f, void*, const char* name) {
    auto found = kernels().find(name);
    if (found == kernels().end()) {
        fprintf(stderr, "emulation: there is no kernel %s\n", name);
        return 500;
    }
    *f = new Function{name, found->second};
    OK;
}
Status cuFuncSetAttribute(void*, int, int v) { return v <= 227 * 1024 ? 0 : 1; }
Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void*, void** args, void**) {
    auto* f = static_cast<Function*>(function);
    if (gz != 1 || by != 1 || bz != 1 || !gx || !gy || !bx || bx > 1024) {
        fprintf(stderr, "emulation: kernel %s with %u x %u blocks of %u threads\n", f->name.c_str(), gx, gy, bx);
        return 1;
    }
    auto body = f->bind(args);
    queue(f->name, [=, name = f->name] { run_kernel(name.c_str(), body, {gx, gy, 1}, bx, shared); });
    OK;
}
Status cuStreamBeginCapture_v2(void*, int) {
    capturing = new Graph;
    OK;
}
Status cuStreamIsCapturing(void*, int* s) { *s = capturing ? 1 : 0; OK; }
Status cuStreamEndCapture(void*, void** g) {
    if (getenv("EMULATE_COUNT")) {
        std::map<std::string, long> names;
        for (auto& o : capturing->operations) names[o.name]++;
        fprintf(stderr, "emulation: captured %zu operations\n", capturing->operations.size());
        for (auto& [name, n] : names) fprintf(stderr, "emulation:   %6ld %s\n", n, name.c_str());
    }
    *g = capturing;
    capturing = nullptr;
    OK;
}
Status cuGraphInstantiateWithFlags(void** exec, void* g, unsigned long long) { *exec = g; OK; }
Status cuGraphLaunch(void* g, void*) {
    counter.counts["graph launch"]++;
    for (auto& o : static_cast<Graph*>(g)->operations) o.run();
    OK;
}
Status cuGraphExecDestroy(void*) { OK; }
Status cuGraphDestroy(void*) { OK; }
Status cuProfilerStart() { OK; }
Status cuProfilerStop() { OK; }
Status cuGetErrorName(int e, const char** s) { *s = e == 900 ? "CAPTURE_UNSUPPORTED" : "EMULATED_ERROR"; OK; }
Status cuGetErrorString(int, const char** s) { *s = "the emulated driver refused this"; OK; }

Status cublasCreate_v2(void** h) { *h = (void*)6; OK; }
Status cublasDestroy_v2(void*) { OK; }
Status cublasSetStream_v2(void*, void*) { OK; }
Status curandCreateGenerator(void** g, int) { *g = (void*)7; OK; }
Status curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { OK; }
Status curandSetStream(void*, void*) { OK; }
Status curandDestroyGenerator(void*) { OK; }

struct Descriptor {
    int trans_a = 0, trans_b = 0, epilogue = 1;
    const void* bias = nullptr;
};
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t ld;
    int count = 1;      // matrices
    int64_t offset = 0; // from one to the next
};
Status cublasLtCreate(void** h) { *h = (void*)8; OK; }
Status cublasLtDestroy(void*) { OK; }
Status cublasLtMatmulDescCreate(void** d, int, int) { *d = new Descriptor; OK; }
Status cublasLtMatmulDescDestroy(void* d) { delete static_cast<Descriptor*>(d); OK; }
Status cublasLtMatmulDescSetAttribute(void* d, int attribute, const void* value, size_t n) {
    auto* to = static_cast<Descriptor*>(d);
    switch (attribute) {
    case 3: memcpy(&to->trans_a, value, n); break;
    case 4: memcpy(&to->trans_b, value, n); break;
    case 7: memcpy(&to->epilogue, value, n); break;
    case 8: memcpy(&to->bias, value, n); break;
    default: return 7;
    }
    OK;
}
Status cublasLtMatrixLayoutCreate(void** l, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    *l = new Layout{type, rows, columns, ld};
    OK;
}
Status cublasLtMatrixLayoutSetAttribute(void* l, int attribute, const void* value, size_t n) {
    auto* to = static_cast<Layout*>(l);
    switch (attribute) {
    case 5: memcpy(&to->count, value, n); break;
    case 6: memcpy(&to->offset, value, n); break;
    default: return 7;
    }
    OK;
}
Status cublasLtMatrixLayoutDestroy(void* l) { delete static_cast<Layout*>(l); OK; }
Status cublasLtMatmulPreferenceCreate(void** p) { *p = (void*)9; OK; }
Status cublasLtMatmulPreferenceDestroy(void*) { OK; }
Status cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { OK; }
Status cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* results, int* n) {
    memset(results, 0, 64 + 8 + 4 + 4 + 16); // algorithm, workspace, state (success), waves, reserved
    *n = 1;
    OK;
}
} // extern "C"

namespace {
const int F32 = 0, BF16 = 14, BIAS = 4;
float value(const void* p, int type, size_t i) {
    return type == F32 ? static_cast<const float*>(p)[i] : up(static_cast<const bf16*>(p)[i]);
}
// Matrix i of a stack.
template <class P> P* nth(P* p, const Layout& l, int i) {
    typedef std::conditional_t<std::is_const_v<P>, const char, char> Byte;
    return static_cast<Byte*>(p) + i * l.offset * (l.type == F32 ? 4 : 2);
}
// op(X) as (rows, columns), row by row.
std::vector<float> taken(const void* p, const Layout& l, bool transposed, size_t rows, size_t columns) {
    std::vector<float> out(rows * columns);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < columns; c++)
            out[r * columns + c] = value(p, l.type, transposed ? c + r * l.ld : r + c * l.ld);
    return out;
}
void product(Descriptor d, float alpha, const void* pa, Layout a, const void* pb, Layout b, float beta, const void* pc,
             void* pd, Layout o) {
    size_t m = o.rows, n = o.columns, k = d.trans_a ? a.rows : a.columns;
    if ((d.trans_a ? a.columns : a.rows) != m || (d.trans_b ? b.rows : b.columns) != n ||
        (d.trans_b ? b.columns : b.rows) != k) {
        fprintf(stderr, "emulation: a product of matrices that do not fit: %zu %zu %zu\n", m, n, k);
        abort();
    }
    // Both with k running fastest.
    auto left = taken(pa, a, d.trans_a, m, k), right = taken(pb, b, !d.trans_b, n, k);
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < m; i++) {
            const float *x = &left[i * k], *y = &right[j * k];
            float lanes[8] = {};
            size_t at = 0;
            for (; at + 8 <= k; at += 8)
                for (int l = 0; l < 8; l++) lanes[l] += x[at + l] * y[at + l];
            float sum = 0.f;
            for (float l : lanes) sum += l;
            for (; at < k; at++) sum += x[at] * y[at];
            sum *= alpha;
            size_t to = i + j * o.ld;
            if (beta != 0.f) sum += beta * value(pc, o.type, to);
            if (d.epilogue == BIAS) sum += value(d.bias, o.type, i);
            if (o.type == F32) static_cast<float*>(pd)[to] = sum;
            else put(static_cast<bf16*>(pd) + to, sum);
        }
}
} // namespace

extern "C" Status cublasLtMatmul(void*, void* d, const void* alpha, const void* a, void* la, const void* b, void* lb,
                                 const void* beta, const void* c, void*, void* out, void* ld, const void*, void*, size_t,
                                 void*) {
    auto descriptor = *static_cast<Descriptor*>(d);
    auto A = *static_cast<Layout*>(la), B = *static_cast<Layout*>(lb), O = *static_cast<Layout*>(ld);
    float s = *static_cast<const float*>(alpha), t = *static_cast<const float*>(beta);
    queue("matrix product", [=] {
        for (int i = 0; i < O.count; i++)
            product(descriptor, s, nth(a, A, i), A, nth(b, B, i), B, t, nth(c, O, i), nth(out, O, i), O);
    });
    return 0;
}
