// Converts float32 values to bfloat16.
extern "C" __global__ void to_half(const float* x, bf16* y, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) put(y + i, x[i]);
}
