// The arithmetic of discretized_logistic_mixture.cpp: one tile of 32 positions, a position a lane.
//
// All arrays are rows of positions: row r of the parameters begins at r * stride, of the gradients
// at r * gradient_stride, of everything else at r * lanes.
#pragma once

#include <limits>

#include "../discretized_logistic_mixture.h"
#include "simd.h"

namespace deepgen::cpu {

constexpr int lanes = 32;

// Writes log_likelihood, or with Gradient all rows of the gradients, multiplied by grad_output.
// `exponents` and `ratios` are room for one row a component.
template <bool Gradient, class T>
DEEPGEN_INLINE void map_tile(const MixtureLayout& layout, int64_t n_levels,
                             const T* __restrict parameters, int64_t stride,
                             const T* __restrict levels, const T* __restrict x,
                             T* __restrict exponents, T* __restrict ratios,
                             T* __restrict log_likelihood, const T* __restrict grad_output,
                             T* __restrict gradients, int64_t gradient_stride) {
  const int64_t mixtures = layout.mixtures;
  const T last = static_cast<T>(n_levels - 1), half = T(1) / last;
  alignas(64) T top[lanes], weights[lanes], largest[lanes], sum[lanes], mean[lanes];
  for (int i = 0; i < lanes; ++i) {
    top[i] = std::numeric_limits<T>::lowest();
    largest[i] = std::numeric_limits<T>::lowest();
    weights[i] = sum[i] = 0;
  }
  for (int64_t k = 0; k < mixtures; ++k) {
    const T* logits = parameters + k * stride;
#pragma omp simd
    for (int i = 0; i < lanes; ++i) top[i] = logits[i] > top[i] ? logits[i] : top[i];
  }

  for (int64_t k = 0; k < mixtures; ++k) {
    const T* logits = parameters + k * stride;
    T* __restrict exponent = exponents + k * lanes;
    T* __restrict ratio = ratios + k * lanes;
#pragma omp simd
    for (int i = 0; i < lanes; ++i) {
      exponent[i] = logits[i] - top[i];
      ratio[i] = 1;
      weights[i] += decay_of(exponent[i]);
    }
    for (int64_t c = 0; c < layout.channels; ++c) {
      const T* means = parameters + (layout.mean(c) + k) * stride;
#pragma omp simd
      for (int i = 0; i < lanes; ++i) mean[i] = means[i];
      for (int64_t j = 0; j < c; ++j) {
        const int64_t row = layout.coefficient(c, j) + k;
        const T* coefficients = parameters + row * stride;
        const T* seen = x + j * lanes;
#pragma omp simd
        for (int i = 0; i < lanes; ++i) {
          const T coupling = tanh_of(coefficients[i]);
          mean[i] += coupling * seen[i];
          if constexpr (Gradient) gradients[row * gradient_stride + i] = coupling;
        }
      }
      const T* log_scales = parameters + (layout.log_scale(c) + k) * stride;
      const T* level = levels + c * lanes;
      const T* own = x + c * lanes;
      T* __restrict by_mean = gradients + (layout.mean(c) + k) * gradient_stride;
      T* __restrict by_log_scale = gradients + (layout.log_scale(c) + k) * gradient_stride;
#pragma omp simd
      for (int i = 0; i < lanes; ++i) {
        const T r = inverse_scale(log_scales[i]);
        const T half_width = half * r, t = tanh_of(half_width);
        const T centre = (own[i] - mean[i]) * r;
        const T b = upper_edge(level[i], last, centre, half_width);
        const T a = lower_edge(level[i], centre, half_width);
        const bool inner = (level[i] != T(0)) & (level[i] != last);
        exponent[i] += bin_exponent(a, b, log_scales[i], inner);
        ratio[i] *= bin_ratio(a, b, r, t, inner);
        if constexpr (Gradient) {
          by_mean[i] = gradient_by_mean(a, b, r);
          by_log_scale[i] = gradient_by_log_scale(a, b, half_width, t, log_scales[i], inner);
        }
      }
      if constexpr (Gradient) {
        for (int64_t j = 0; j < c; ++j) {
          const T* seen = x + j * lanes;
          T* __restrict by_coefficient =
              gradients + (layout.coefficient(c, j) + k) * gradient_stride;
#pragma omp simd
          for (int i = 0; i < lanes; ++i) {
            const T coupling = by_coefficient[i];
            by_coefficient[i] = by_mean[i] * seen[i] * (T(1) - coupling * coupling);
          }
        }
      }
      // The product of many ratios would underflow.
      if (c % channels_per_logarithm == channels_per_logarithm - 1) {
#pragma omp simd
        for (int i = 0; i < lanes; ++i) {
          exponent[i] += log_of(ratio[i]);
          ratio[i] = 1;
        }
      }
    }
#pragma omp simd
    for (int i = 0; i < lanes; ++i) {
      largest[i] = exponent[i] > largest[i] ? exponent[i] : largest[i];
    }
  }

  for (int64_t k = 0; k < mixtures; ++k) {
    const T* exponent = exponents + k * lanes;
    T* __restrict ratio = ratios + k * lanes;
#pragma omp simd
    for (int i = 0; i < lanes; ++i) {
      ratio[i] *= decay_of(exponent[i] - largest[i]);
      sum[i] += ratio[i];
    }
  }
  if constexpr (!Gradient) {
#pragma omp simd
    for (int i = 0; i < lanes; ++i) {
      log_likelihood[i] = largest[i] + log_of(sum[i]) - log_of(weights[i]);
    }
    return;
  }
  for (int64_t k = 0; k < mixtures; ++k) {
    const T* logits = parameters + k * stride;
    T* __restrict by_logit = gradients + k * gradient_stride;
    T* __restrict responsibility = ratios + k * lanes;
#pragma omp simd
    for (int i = 0; i < lanes; ++i) {
      responsibility[i] *= grad_output[i] / sum[i];
      by_logit[i] =
          responsibility[i] - grad_output[i] * (decay_of(logits[i] - top[i]) / weights[i]);
    }
    for (int64_t row = mixtures + k; row < layout.parameters(); row += mixtures) {
      T* __restrict gradient = gradients + row * gradient_stride;
#pragma omp simd
      for (int i = 0; i < lanes; ++i) gradient[i] *= responsibility[i];
    }
  }
}

}  // namespace deepgen::cpu
