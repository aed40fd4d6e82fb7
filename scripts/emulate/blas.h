// Stand-ins for cuBLAS, cuBLASLt and cuRAND: the products that the project asks for, and their rules of alignment.
extern "C" {
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
struct Preference {
    uint32_t alignments[4] = {256, 256, 256, 256};
};
// As cublasLtMatmulHeuristicResult_t: an algorithm of 64 bytes, then workspace, state (0: success), waves, reserved.
struct Result {
    uint32_t alignments[4];
    uint64_t number, unused[5];
    char rest[8 + 4 + 4 + 16];
};
static_assert(sizeof(Result) == 96, "");
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
Status cublasLtMatmulPreferenceCreate(void** p) { *p = new Preference; OK; }
Status cublasLtMatmulPreferenceDestroy(void* p) { delete static_cast<Preference*>(p); OK; }
Status cublasLtMatmulPreferenceSetAttribute(void* p, int attribute, const void* value, size_t n) {
    if (attribute >= 5 && attribute <= 8 && n == 4) memcpy(&static_cast<Preference*>(p)->alignments[attribute - 5], value, n);
    OK;
}
// The second of them cannot be run.
Status cublasLtMatmulAlgoGetHeuristic(void*, void* d, void*, void*, void*, void*, void* preference, int wanted,
                                      void* results, int* n) {
    *n = min(wanted, 3);
    memset(results, 0, *n * sizeof(Result));
    for (int i = 0; i < *n; i++) {
        Result* to = static_cast<Result*>(results) + i;
        memcpy(to->alignments, static_cast<Preference*>(preference)->alignments, sizeof to->alignments);
        to->number = i;
    }
    auto* descriptor = static_cast<Descriptor*>(d);
    if (descriptor->epilogue != 1 && !descriptor->bias) memory::refuse("algorithms were asked for before the bias was set");
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
                                 const void* beta, const void* c, void*, void* out, void* ld, const void* algorithm,
                                 void*, size_t, void*) {
    auto descriptor = *static_cast<Descriptor*>(d);
    auto A = *static_cast<Layout*>(la), B = *static_cast<Layout*>(lb), O = *static_cast<Layout*>(ld);
    float s = *static_cast<const float*>(alpha), t = *static_cast<const float*>(beta);
    auto* chosen = static_cast<const Result*>(algorithm);
    if (chosen->number == 1) return 15;
    const void* operands[4] = {a, b, c, out};
    const Layout layouts[4] = {A, B, O, O};
    for (int i = 0; i < 4; i++)
        for (int n = 0; n < layouts[i].count; n++)
            if ((uintptr_t)nth(operands[i], layouts[i], n) % chosen->alignments[i]) memory::refuse("an operand less aligned than its algorithm was asked for");
    if (descriptor.epilogue == BIAS) {
        if ((uintptr_t)descriptor.bias % 16) memory::refuse("a bias of less than 16 bytes' alignment");
        if ((uintptr_t)descriptor.bias % chosen->alignments[3]) memory::refuse("a bias less aligned than its algorithm was asked for");
    }
    Status status = queue("matrix product", [=] {
        for (int i = 0; i < O.count; i++)
            product(descriptor, s, nth(a, A, i), A, nth(b, B, i), B, t, nth(c, O, i), nth(out, O, i), O);
    });
    return status ? 13 : 0;
}
