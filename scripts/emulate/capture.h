// Captured steps, what the driver refuses while one is captured, and failures on demand.
//
// EMULATE_FAIL makes every capture fail: `break:N` breaks it at its operation N, counted from 1 (what comes behind is
// refused, as the driver does); `refuse:N` refuses that operation alone; `end` gives no graph; `instantiate` gives one that
// cannot be made ready to run.
#include <functional>
#include <string>

namespace capture {
typedef int Status; // CUresult, cublasStatus_t and curandStatus_t alike: 0 is success
const Status INVALID_VALUE = 1, UNSUPPORTED = 900, INVALIDATED = 901;
struct Operation {
    std::string name;
    bool counts; // memory's coming and going does not
    std::function<void()> run;
};
struct Graph {
    std::vector<Operation> operations;
    std::vector<void*> blocks;
    long count() const {
        return std::count_if(operations.begin(), operations.end(), [](auto& o) { return o.counts; });
    }
};
static Graph* now = nullptr;
static bool broken = false;
static std::vector<void*> graphs_own; // memory that belongs to a graph
struct Counter {
    std::map<std::string, long> counts;
    ~Counter() {
        if (!getenv("EMULATE_COUNT")) return;
        for (auto& [name, n] : counts) fprintf(stderr, "emulation: %8ld %s\n", n, name.c_str());
    }
};
static Counter counter;

inline bool is_wished(const char* what, long count = 0) {
    const char* wish = getenv("EMULATE_FAIL");
    if (!wish || !*wish) return false;
    size_t n = strcspn(wish, ":");
    if (strncmp(wish, what, n) || what[n]) return false;
    return wish[n] ? atol(wish + n + 1) == count : true;
}
// What a capture forbids breaks it.
inline Status forbid(const char* what) {
    if (!now) return 0;
    if (broken) return INVALIDATED;
    fprintf(stderr, "emulation: forbidden while a step is captured: %s\n", what);
    broken = true;
    return UNSUPPORTED;
}
inline Status queue(const std::string& name, std::function<void()> run, bool counts = true) {
    if (!now) {
        if (counts) counter.counts[name]++;
        run();
        return 0;
    }
    if (broken) return INVALIDATED;
    if (counts && is_wished("refuse", now->count() + 1)) return INVALID_VALUE;
    if (counts && is_wished("break", now->count() + 1)) {
        broken = true;
        return UNSUPPORTED;
    }
    now->operations.push_back({name, counts, std::move(run)});
    return 0;
}
inline void forget(Graph* graph) {
    for (void* at : graph->blocks) {
        memory::release(at);
        graphs_own.erase(std::find(graphs_own.begin(), graphs_own.end(), at));
    }
    delete graph;
}
inline Status end(void** out) {
    Graph* graph = now;
    *out = nullptr;
    if (!graph) return INVALID_VALUE;
    now = nullptr;
    if (broken || is_wished("end")) {
        Status status = broken ? INVALIDATED : INVALID_VALUE;
        broken = false;
        forget(graph);
        return status;
    }
    if (getenv("EMULATE_COUNT")) {
        std::map<std::string, long> names;
        for (auto& o : graph->operations)
            if (o.counts) names[o.name]++;
        fprintf(stderr, "emulation: captured %ld operations\n", graph->count());
        for (auto& [name, n] : names) fprintf(stderr, "emulation:   %6ld %s\n", n, name.c_str());
    }
    *out = graph;
    return 0;
}
// Memory of a captured step is the graph's: every launch has it anew, and nothing in it from before its allocation or from
// behind its end.
inline Status allocate(void** at, size_t bytes) {
    if (now && broken) return INVALIDATED;
    *at = memory::allocate(bytes);
    if (!now) return 0;
    counter.counts["(allocations while capturing)"]++;
    now->blocks.push_back(*at);
    graphs_own.push_back(*at);
    return queue("allocation", [at = *at] { memory::poison(at); }, false);
}
inline bool holds(const std::vector<void*>& all, void* at) { return std::find(all.begin(), all.end(), at) != all.end(); }
inline Status release(void* at) {
    if (now && broken) return INVALIDATED;
    if (now) {
        if (!holds(now->blocks, at)) return forbid("a free of memory from before it");
        return queue("free", [at] { memory::poison(at); }, false);
    }
    if (holds(graphs_own, at)) {
        fprintf(stderr, "emulation: a captured step's memory was freed outside of it\n");
        return INVALID_VALUE;
    }
    return memory::release(at) ? 0 : INVALID_VALUE;
}
} // namespace capture
