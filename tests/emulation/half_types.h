// NVIDIA's own __half and __nv_bfloat16, which compile on the host, and the functions they have
// only on the device: computed in float or double and rounded once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>

#define DEEPGEN_HALF_FUNCTIONS(T, T2, to_float, from_float, from_double)                       \
  inline T __hfma(T a, T b, T c) {                                                             \
    return from_double(fma(static_cast<double>(to_float(a)), static_cast<double>(to_float(b)), \
                           static_cast<double>(to_float(c))));                                 \
  }                                                                                            \
  inline T2 __hfma2(T2 a, T2 b, T2 c) {                                                        \
    return T2{__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};                                   \
  }                                                                                            \
  inline T hexp(T x) {                                                                         \
    return from_float(expf(to_float(x)));                                                      \
  }                                                                                            \
  inline T hexp2(T x) {                                                                        \
    return from_float(exp2f(to_float(x)));                                                     \
  }                                                                                            \
  inline T hlog(T x) {                                                                         \
    return from_float(logf(to_float(x)));                                                      \
  }                                                                                            \
  inline T hlog2(T x) {                                                                        \
    return from_float(log2f(to_float(x)));                                                     \
  }                                                                                            \
  inline T hsqrt(T x) {                                                                        \
    return from_float(sqrtf(to_float(x)));                                                     \
  }                                                                                            \
  inline T hrsqrt(T x) {                                                                       \
    return from_float(1 / sqrtf(to_float(x)));                                                 \
  }                                                                                            \
  inline T hrcp(T x) {                                                                         \
    return from_float(1 / to_float(x));                                                        \
  }                                                                                            \
  inline T htanh(T x) {                                                                        \
    return from_float(tanhf(to_float(x)));                                                     \
  }                                                                                            \
  inline T hsin(T x) {                                                                         \
    return from_float(sinf(to_float(x)));                                                      \
  }                                                                                            \
  inline T hcos(T x) {                                                                         \
    return from_float(cosf(to_float(x)));                                                      \
  }                                                                                            \
  inline T hfloor(T x) {                                                                       \
    return from_float(floorf(to_float(x)));                                                    \
  }                                                                                            \
  inline T hceil(T x) {                                                                        \
    return from_float(ceilf(to_float(x)));                                                     \
  }                                                                                            \
  inline T hrint(T x) {                                                                        \
    return from_float(rintf(to_float(x)));                                                     \
  }                                                                                            \
  inline T2 h2exp(T2 x) {                                                                      \
    return T2{hexp(x.x), hexp(x.y)};                                                           \
  }                                                                                            \
  inline T2 h2log(T2 x) {                                                                      \
    return T2{hlog(x.x), hlog(x.y)};                                                           \
  }                                                                                            \
  inline T2 h2sqrt(T2 x) {                                                                     \
    return T2{hsqrt(x.x), hsqrt(x.y)};                                                         \
  }                                                                                            \
  inline T2 h2tanh(T2 x) {                                                                     \
    return T2{htanh(x.x), htanh(x.y)};                                                         \
  }

DEEPGEN_HALF_FUNCTIONS(__half, __half2, __half2float, __float2half, __double2half)
DEEPGEN_HALF_FUNCTIONS(__nv_bfloat16, __nv_bfloat162, __bfloat162float, __float2bfloat16,
                       __double2bfloat16)
#undef DEEPGEN_HALF_FUNCTIONS
