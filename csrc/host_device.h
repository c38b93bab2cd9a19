// Functions that kernels of both devices inline.
#pragma once

#if defined(__CUDACC__)
#define DEEPGEN_HD __host__ __device__ __forceinline__
#else
#define DEEPGEN_HD inline __attribute__((always_inline))
#endif
