// What affine_coupling does with the dense elements of a tile: its map and log s, and the gradient.
#pragma once

#include "../affine_coupling.h"
#include "simd.h"

namespace deepgen::cpu {
namespace {

template <ScaleMap M, bool Inverse, class T>
DEEPGEN_INLINE void map_elements(int64_t n, const T* __restrict x, const T* __restrict raw,
                                 const T* __restrict shift, T clamp, T* __restrict y,
                                 T* __restrict log_scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T log = log_scale_of<M>(raw[i], clamp);
    const T factor = factor_of<M>(raw[i], log, Inverse);
    y[i] = Inverse ? (x[i] - shift[i]) * factor : x[i] * factor + shift[i];
    log_scale[i] = Inverse ? -log : log;
  }
}

// The sigmoid map spends two fifths of its arithmetic on logarithms, which only their sum is wanted
// of: ln s = min(v, 0) - ln(1 + e), v = raw + 2, and one logarithm serves the product of eight 1 +
// e. The product is kept as 1 + u, so that rows far out, where all e are tiny, lose nothing. n is
// in whole groups.
constexpr int64_t in_product = 8, product_lanes = 16, product_group = in_product * product_lanes;

template <bool Inverse, class T>
DEEPGEN_INLINE void map_sigmoid_groups(int64_t n, const T* __restrict x, const T* __restrict raw,
                                       const T* __restrict shift, T* __restrict y,
                                       T* __restrict log_scale) {
  for (int64_t group = 0; group < n; group += product_group) {
#pragma omp simd
    for (int64_t i = group; i < group + product_lanes; ++i) {
      T u = 0, below = 0;
#pragma GCC unroll 8
      for (int64_t k = 0; k < in_product; ++k) {
        const int64_t j = i + k * product_lanes;
        const T v = raw[j] + T(2), e = sigmoid_decay(raw[j]);
        u = u * (T(1) + e) + e;
        below += v < T(0) ? v : T(0);
        const T factor = factor_of<ScaleMap::sigmoid>(raw[j], T(0), Inverse);
        y[j] = Inverse ? (x[j] - shift[j]) * factor : x[j] * factor + shift[j];
      }
      const T log = below - log1p_of(u);
      log_scale[group / in_product + i - group] = Inverse ? -log : log;
    }
  }
}

template <ScaleMap M, bool Inverse, class T>
DEEPGEN_INLINE void map_gradients(int64_t n, const T* __restrict g, const T* __restrict x,
                                  const T* __restrict raw, const T* __restrict grad_log_det,
                                  T clamp, T* __restrict grad_input, T* __restrict grad_raw) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T log = log_scale_of<M>(raw[i], clamp);
    const T slope = slope_of<M>(raw[i], log, clamp);
    const T gradient = g[i] * factor_of<M>(raw[i], log, Inverse);
    grad_input[i] = gradient;
    // The inverse's scale acts on its result x = (y - t) / s, whose gradient has g where the
    // forward map's has g s.
    grad_raw[i] =
        (Inverse ? -(g[i] * x[i] + grad_log_det[i]) : gradient * x[i] + grad_log_det[i]) * slope;
  }
}

}  // namespace
}  // namespace deepgen::cpu
