// Stand-ins for libcuda, libcublas, libcublasLt and libcurand that run everything on the host: a GPU binary of this
// project starts, and its kernels run, without a GPU.  Built by build.py.
#include "cuda_on_host.h"
#include <chrono>
#include <map>
#include <string>
#include <type_traits>
#include KERNELS
#include TRAINING_KERNELS
#include "candle_few.h"
#include "memory.h"
#include "capture.h"

namespace {
using capture::forbid;
using capture::queue;
using capture::Status;
#define REFUSE_IN_CAPTURE(what)                                                                                        \
    if (Status refused = forbid(what)) return refused

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

const size_t SHARED_AT_FIRST = 48 * 1024, SHARED_AT_MOST = 227 * 1024;
struct Function {
    std::string name;
    Binder bind;
    size_t shared; // as much as a launch may ask for
};
void run_kernel(const Function* f, std::function<void()> body, dim3 grid, unsigned threads, size_t shared) {
    host::kernel_name = f->name.c_str();
    if (threads > host::THREADS) host::fail("too many threads in a block");
    // A captured launch keeps its size, the function's attribute may have changed since.
    if (shared > f->shared) host::fail("more shared memory than its attribute allows by now");
    host::count = (int)threads;
    host::arguments = &body;
    host::body = [](void* f) { (*static_cast<std::function<void()>*>(f))(); };
    gridDim = grid;
    blockDim = {threads, 1, 1};
    static std::vector<int> turns;
    host::order().of(turns, grid.x * grid.y);
    for (int b : std::vector<int>(turns)) {
        blockIdx = {b % grid.x, b / grid.x, 0};
        host::run_block(shared);
    }
}
double milliseconds() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
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
    case 16: *v = 13; break;          // multiprocessors
    case 75: *v = 9; break;           // compute capability 9.0
    case 76: *v = 0; break;
    case 97: *v = SHARED_AT_MOST; break;
    default: *v = 1;
    }
    OK;
}
Status cuDevicePrimaryCtxRetain(void** c, int) { *c = (void*)1; OK; }
Status cuDevicePrimaryCtxRelease_v2(int) { OK; }
Status cuCtxSetCurrent(void*) { OK; }
Status cuCtxGetCurrent(void** c) { *c = (void*)1; OK; }
Status cuCtxSynchronize() { REFUSE_IN_CAPTURE("waiting for the device"); OK; }
Status cuMemGetInfo_v2(size_t* free, size_t* total) { *free = *total = (size_t)8 << 30; OK; }
Status cuStreamCreate(void** s, unsigned) { *s = (void*)2; OK; }
Status cuStreamCreateWithPriority(void** s, unsigned, int) { *s = (void*)2; OK; }
Status cuStreamDestroy_v2(void*) { OK; }
Status cuStreamSynchronize(void*) { REFUSE_IN_CAPTURE("waiting for the stream"); OK; }
Status cuStreamWaitEvent(void*, void*, unsigned) { OK; }
Status cuEventCreate(void** e, unsigned) { *e = new double(0); OK; }
Status cuEventRecord(void* e, void*) { *static_cast<double*>(e) = milliseconds(); OK; }
Status cuEventSynchronize(void*) { REFUSE_IN_CAPTURE("waiting for an event"); OK; }
Status cuEventQuery(void*) { REFUSE_IN_CAPTURE("an event's query"); OK; }
Status cuEventElapsedTime_v2(float* ms, void* a, void* b) {
    *ms = *static_cast<double*>(b) - *static_cast<double*>(a);
    OK;
}
Status cuEventDestroy_v2(void* e) { delete static_cast<double*>(e); OK; }
Status cuDeviceGetDefaultMemPool(void** p, int) { *p = (void*)4; OK; }
Status cuMemPoolSetAttribute(void*, int, void*) { OK; }
Status cuMemPoolGetAttribute(void*, int, void* v) { memset(v, 0, 8); OK; }
Status cuDeviceGetGraphMemAttribute(int, int, void* v) { memset(v, 0, 8); OK; }
Status cuMemAllocAsync(void** p, size_t n, void*) { return capture::allocate(p, n); }
Status cuMemAlloc_v2(void** p, size_t n) {
    REFUSE_IN_CAPTURE("an allocation that waits");
    return capture::allocate(p, n);
}
Status cuMemFreeAsync(void* p, void*) { return capture::release(p); }
Status cuMemFree_v2(void* p) {
    REFUSE_IN_CAPTURE("a free that waits");
    return capture::release(p);
}
Status cuMemHostAlloc(void** p, size_t n, unsigned) {
    REFUSE_IN_CAPTURE("an allocation of page-locked memory");
    *p = malloc(n);
    memory::pinned[(char*)*p] = n;
    OK;
}
Status cuMemFreeHost(void* p) {
    REFUSE_IN_CAPTURE("a free of page-locked memory");
    memory::pinned.erase((char*)p);
    free(p);
    OK;
}
Status cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t n, void*) {
    if (!memory::is_pinned(from, n)) REFUSE_IN_CAPTURE("a copy from memory that is not page-locked");
    return queue("copy to the device", [=] { memcpy(to, from, n); });
}
Status cuMemcpyHtoD_v2(void* to, const void* from, size_t n) {
    REFUSE_IN_CAPTURE("a copy that waits");
    return queue("copy to the device", [=] { memcpy(to, from, n); });
}
Status cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t n, void*) {
    if (!memory::is_pinned(to, n)) REFUSE_IN_CAPTURE("a copy to memory that is not page-locked");
    return queue("copy to the host", [=] { memcpy(to, from, n); });
}
Status cuMemcpyDtoH_v2(void* to, const void* from, size_t n) {
    REFUSE_IN_CAPTURE("a copy that waits");
    return queue("copy to the host", [=] { memcpy(to, from, n); });
}
Status cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t n, void*) {
    return queue("copy on the device", [=] { memmove(to, from, n); });
}
Status cuMemsetD8Async(void* to, unsigned char v, size_t n, void*) {
    return queue("memset", [=] { memset(to, v, n); });
}
Status cuModuleLoadData(void** m, const void*) { REFUSE_IN_CAPTURE("loading a module"); *m = (void*)5; OK; }
Status cuModuleUnload(void*) { OK; }
Status cuModuleGetFunction(void** f, void*, const char* name) {
    auto found = kernels().find(name);
    if (found == kernels().end()) {
        fprintf(stderr, "emulation: there is no kernel %s\n", name);
        return 500;
    }
    *f = new Function{name, found->second, SHARED_AT_FIRST};
    OK;
}
Status cuFuncSetAttribute(void* f, int attribute, int v) {
    if (attribute != 8 || (size_t)v > SHARED_AT_MOST) return 1;
    static_cast<Function*>(f)->shared = v;
    OK;
}
Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void*, void** args, void**) {
    auto* f = static_cast<Function*>(function);
    if (gz != 1 || by != 1 || bz != 1 || !gx || !gy || !bx || bx > 1024 || shared > f->shared) {
        fprintf(stderr, "emulation: kernel %s with %u x %u blocks of %u threads and %u bytes\n", f->name.c_str(), gx, gy,
                bx, shared);
        return 1;
    }
    auto body = f->bind(args);
    return queue(f->name, [=] { run_kernel(f, body, {gx, gy, 1}, bx, shared); });
}
Status cuStreamBeginCapture_v2(void*, int) {
    if (capture::now) return 1;
    capture::now = new capture::Graph;
    OK;
}
Status cuStreamIsCapturing(void*, int* s) { *s = capture::broken ? 2 : capture::now ? 1 : 0; OK; }
Status cuStreamEndCapture(void*, void** g) { return capture::end(g); }
Status cuGraphInstantiateWithFlags(void** exec, void* g, unsigned long long) {
    if (capture::is_wished("instantiate")) return 1;
    *exec = g;
    OK;
}
Status cuGraphLaunch(void* g, void*) {
    REFUSE_IN_CAPTURE("launching a graph");
    capture::counter.counts["graph launch"]++;
    for (auto& o : static_cast<capture::Graph*>(g)->operations) o.run();
    OK;
}
Status cuGraphExecDestroy(void*) { OK; }
Status cuGraphDestroy(void* g) { capture::forget(static_cast<capture::Graph*>(g)); OK; }
Status cuProfilerStart() { OK; }
Status cuProfilerStop() { OK; }
Status cuGetErrorName(int e, const char** s) {
    *s = e == 900 ? "CAPTURE_UNSUPPORTED" : e == 901 ? "CAPTURE_INVALIDATED" : "EMULATED_ERROR";
    OK;
}
Status cuGetErrorString(int, const char** s) { *s = "the emulated driver refused this"; OK; }
} // extern "C"

#include "blas.h"
