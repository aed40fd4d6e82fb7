// Device memory whose misuse ends the process: behind every allocation lies a page that nobody may touch, a freed
// allocation's pages may not be touched any more, and no address is given out twice.
#include <csignal>
#include <sys/mman.h>
#include <unistd.h>

namespace memory {
const size_t PAGE = 4096, ALIGNMENT = 256, RESERVED = (size_t)16 << 40;
struct Block {
    char* pages;
    size_t length, bytes; // of the pages; as asked for
};
static std::map<void*, Block> blocks;
static std::map<char*, size_t> pinned; // page-locked host memory
static char *region, *next;

inline void refuse(const char* what) {
    fprintf(stderr, "emulation: %s\n", what);
    abort();
}
inline void stray(int number, siginfo_t* info, void*) {
    char* at = (char*)info->si_addr;
    char text[256];
    int n = snprintf(text, sizeof text, "emulation: %s at %p, last kernel %s, block %u, thread %u\n",
                     at >= region && at < region + RESERVED ? "an access outside of device memory" : "a wild access",
                     (void*)at, host::kernel_name, blockIdx.x, threadIdx.x);
    if (write(2, text, n) < 0) _exit(1);
    signal(number, SIG_DFL);
}
inline void begin() {
    region = next = (char*)mmap(nullptr, RESERVED, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) refuse("no address space for device memory");
    static char stack[64 * 1024]; // a fibre's own may be what is broken
    stack_t other = {};
    other.ss_sp = stack;
    other.ss_size = sizeof stack;
    sigaltstack(&other, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = stray;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
}
inline size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }
// What is read before it is written shows: NaN in float and bfloat16.
inline void poison(void* at) { memset(at, 0xff, blocks[at].bytes); }
inline void* allocate(size_t bytes) {
    if (!region) begin();
    size_t room = rounded(bytes ? bytes : 1, ALIGNMENT), length = rounded(room, PAGE);
    if (next + length + PAGE > region + RESERVED) refuse("all addresses are used up");
    char* pages = next;
    next += length + PAGE;
    if (mprotect(pages, length, PROT_READ | PROT_WRITE)) refuse("no memory");
    char* at = pages + length - room; // its end is the page's, or up to 255 bytes before it
    memset(at, 0xff, room);
    blocks[at] = {pages, length, bytes};
    return at;
}
// False for what was not allocated.
inline bool release(void* at) {
    auto found = blocks.find(at);
    if (found == blocks.end()) return false;
    Block block = found->second;
    for (const char* c = (char*)at + block.bytes; c < block.pages + block.length; c++)
        if (*c != (char)0xff) refuse("a kernel or a copy wrote beyond the end of an allocation");
    // Fresh pages that may not be touched, so that the memory is given back.
    mmap(block.pages, block.length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    blocks.erase(found);
    return true;
}
inline bool is_pinned(const void* at, size_t bytes) {
    auto after = pinned.upper_bound((char*)at);
    if (after == pinned.begin()) return false;
    --after;
    return (char*)at + bytes <= after->first + after->second;
}
} // namespace memory
