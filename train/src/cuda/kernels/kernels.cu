// What only training runs, once for float and once for bfloat16 storage: NAME(x) is x_f32 and x_bf16.
#include "common.cuh" // the network's

#define REAL float
#define NAME(x) x##_f32
#include "losses.cuh"
#include "views.cuh"
#undef REAL
#undef NAME

#define REAL bf16
#define NAME(x) x##_bf16
#include "losses.cuh"
#include "views.cuh"
#undef REAL
#undef NAME

#include "update.cuh"

#define REAL float
#define NAME(x) x##_f32
#include "muon.cuh"
#undef REAL
#undef NAME

#define REAL bf16
#define NAME(x) x##_bf16
#include "muon.cuh"
#undef REAL
#undef NAME
