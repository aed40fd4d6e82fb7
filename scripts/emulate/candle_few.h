// The few kernels of Candle's own that a training step launches, for contiguous operands.
template <class T> void add_few(size_t n, size_t, const size_t*, const T* a, const T* b, T* out) {
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)blockDim.x * gridDim.x)
        put(out + i, up(a[i]) + up(b[i]));
}
extern "C" void badd_f32(size_t n, size_t d, const size_t* s, const float* a, const float* b, float* o) {
    add_few(n, d, s, a, b, o);
}
extern "C" void badd_bf16(size_t n, size_t d, const size_t* s, const bf16* a, const bf16* b, bf16* o) {
    add_few(n, d, s, a, b, o);
}
extern "C" void const_set_f32(size_t n, size_t, const size_t*, float value, float* out) {
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)blockDim.x * gridDim.x) out[i] = value;
}
extern "C" void affine_f32(size_t n, size_t, const size_t*, const float* x, float* out, float mul, float add) {
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)blockDim.x * gridDim.x)
        out[i] = (x ? x[i] : out[i]) * mul + add;
}
