// What only training runs, once for float and once for bfloat16 storage: NAME(x) is x_f32 and x_bf16.
#include "common.cuh" // the network's

#define SCALAR float
#define NAME(x) x##_f32
#include "losses.cuh"
#include "views.cuh"
#undef SCALAR
#undef NAME

#define SCALAR bf16
#define NAME(x) x##_bf16
#include "losses.cuh"
#include "views.cuh"
#undef SCALAR
#undef NAME

#include "update.cuh"

#define SCALAR float
#define NAME(x) x##_f32
#include "muon.cuh"
#undef SCALAR
#undef NAME

#define SCALAR bf16
#define NAME(x) x##_bf16
#include "muon.cuh"
#undef SCALAR
#undef NAME
