// fixed_point_step on the CPU.
//
// A thread owns whole samples. x, g(x), y and the `memory` vectors r_j of a sample are read once,
// for p, r, the norms and the new row of scalar products; the vectors p_j once, for the mixture; p,
// r and the next x are written: (2 memory + 6) numbers an element, which bound it, where eager
// torch (torchdeq's Anderson) walks the history for each of its batched products and solves with
// LAPACK sample by sample. Samples that have stopped cost nothing. Sums are in double: scalar
// products of residuals that hardly differ are subtracted from one another.
#include "../fixed_point_step.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "simd.h"

namespace deepgen::cpu {
namespace {

// Without a history p, r, and what they are compared with, are null.
template <bool History, class T>
DEEPGEN_INLINE StepSums measure(int64_t n, const T* __restrict x, const T* __restrict g,
                                const T* __restrict y, const T* __restrict last_p,
                                const T* __restrict last_r, T* __restrict p, T* __restrict r) {
  double sum_r = 0, sum_x = 0, sum_y = 0, moved = 0, of_g = 0;
#pragma omp simd reduction(+ : sum_r, sum_x, sum_y, moved, of_g)
  for (int64_t i = 0; i < n; ++i) {
    const T image = y[i] - g[i], residual = image - x[i];
    sum_r += static_cast<double>(residual) * residual;
    sum_x += static_cast<double>(x[i]) * x[i];
    sum_y += static_cast<double>(y[i]) * y[i];
    if constexpr (History) {
      const double dx = static_cast<double>(x[i]) - (static_cast<double>(last_p[i]) - last_r[i]);
      const double dp = static_cast<double>(image) - last_p[i];
      moved += dx * dx;
      of_g += dp * dp;
      p[i] = image;
      r[i] = residual;
    }
  }
  return {sum_r, sum_x, sum_y, moved, of_g};
}

template <class T>
DEEPGEN_INLINE double product(int64_t n, const T* __restrict a, const T* __restrict b) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// x = sum of weights[j] p_j, the p_j `n` apart.
template <class T>
DEEPGEN_INLINE void mix(int64_t n, int count, const T* weights, const T* const* images,
                        T* __restrict x) {
  constexpr int64_t chunk = 1024;
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t end = std::min(n, begin + chunk);
    for (int j = 0; j < count; ++j) {
      const T weight = weights[j];
      const T* __restrict image = images[j];
      if (j == 0) {
        for (int64_t i = begin; i < end; ++i) x[i] = weight * image[i];
      } else {
        for (int64_t i = begin; i < end; ++i) x[i] += weight * image[i];
      }
    }
  }
}

template <class T>
DEEPGEN_INLINE void step_one(const FixedPointStep& p, int64_t sample) {
  int32_t* state = p.state + sample * iteration::words;
  double* record = p.record + sample * iteration::numbers;
  if (state[iteration::status] != iteration::running) return;
  const int64_t n = p.features;
  T* x = static_cast<T*>(p.x) + sample * n;
  const T *g = static_cast<const T*>(p.g_x) + sample * n,
          *y = static_cast<const T*>(p.y) + sample * n;
  if (p.memory == 0) {
    const StepSums sums = measure<false, T>(n, x, g, y, nullptr, nullptr, nullptr, nullptr);
    if (judge(sums, p.lipschitz, p.rounding, 0, 0, record, state) == Next::keep) return;
    for (int64_t i = 0; i < n; ++i) x[i] = y[i] - g[i];
    return;
  }
  T* images = static_cast<T*>(p.images) + sample * p.memory * n;
  T* residuals = static_cast<T*>(p.residuals) + sample * p.memory * n;
  double* gram = p.gram + sample * p.memory * p.memory;
  const int slot = next_slot(state, p.memory);
  const int newest = state[iteration::newest];
  const bool first = state[iteration::valid] == 0;
  T *image = images + slot * n, *residual = residuals + slot * n;
  const StepSums sums = measure<true, T>(n, x, g, y, first ? x : images + newest * n,
                                         first ? x : residuals + newest * n, image, residual);
  const Next next = judge(sums, p.lipschitz, p.rounding, p.memory, slot, record, state);
  if (next == Next::keep) return;
  if (next != Next::mixture) {
    const T* from = next == Next::back ? images + newest * n : image;
    if (state[iteration::valid] >> slot & 1) gram[slot * p.memory + slot] = sums.r;
    std::copy_n(from, n, x);
    return;
  }
  const int32_t valid = state[iteration::valid];
  for (int j = 0; j < p.memory; ++j) {
    if (!(valid >> j & 1)) continue;
    const double dot = j == slot ? sums.r : product(n, residual, residuals + j * n);
    gram[slot * p.memory + j] = gram[j * p.memory + slot] = dot;
  }
  double all[most_memory];
  anderson_weights(gram, p.memory, valid, slot, all);
  T weights[most_memory];
  const T* used[most_memory];
  int count = 0;
  for (int j = 0; j < p.memory; ++j) {
    if (!(valid >> j & 1)) continue;
    weights[count] = static_cast<T>(all[j]);
    used[count++] = images + j * n;
  }
  mix(n, count, weights, used, x);
}

DEEPGEN_SIMD void step_float(const FixedPointStep& p, int64_t sample) {
  step_one<float>(p, sample);
}
DEEPGEN_SIMD void step_double(const FixedPointStep& p, int64_t sample) {
  step_one<double>(p, sample);
}

}  // namespace

void fixed_point_step(const FixedPointStep& p) {
  constexpr int64_t grain_elements = 16384;
  const int64_t row = std::max<int64_t>(1, p.features * (2 * p.memory + 6));
  const auto step = p.storage == Storage::f64 ? step_double : step_float;
  at::parallel_for(0, p.batch, std::max<int64_t>(1, grain_elements / row),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t sample = begin; sample < end; ++sample) step(p, sample);
                   });
}

}  // namespace deepgen::cpu
