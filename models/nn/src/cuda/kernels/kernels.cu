// The network's kernels, compiled for float and for bfloat16 storage: NAME(x) expands to x_f32 and x_bf16.
#include "common.cuh"

#define SCALAR float
#define NAME(x) x##_f32
#include "norm.cuh"
#include "rowwise.cuh"
#include "tokens.cuh"
#include "attention_any.cuh"
#undef SCALAR
#undef NAME

#define SCALAR bf16
#define NAME(x) x##_bf16
#include "norm.cuh"
#include "rowwise.cuh"
#include "tokens.cuh"
#include "attention_any.cuh"
#undef SCALAR
#undef NAME

#include "attention_matrix.cuh"
#include "convert.cuh"
