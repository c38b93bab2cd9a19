// The steps of ancestral_sample's programs on the rows of a tile of samples, each compiled for
// several instruction sets. Included by one file.
#pragma once

#include "../categorical_draw.h"
#include "../discretized_logistic_mixture.h"
#include "../elementary.h"
#include "ancestral_linear.h"

namespace deepgen::cpu {
namespace {

using sampling::Kind;

// ---------------------------------------------------------------- linear steps

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define DEEPGEN_FOR(level) __attribute__((target("arch=" level)))
DEEPGEN_FOR("x86-64-v4") void linear_v4(const linear::Work<float>& work) {
  linear::all<64>(work);
}
DEEPGEN_FOR("x86-64-v4") void linear_v4(const linear::Work<double>& work) {
  linear::all<64>(work);
}
DEEPGEN_FOR("x86-64-v3") void linear_v3(const linear::Work<float>& work) {
  linear::all<32>(work);
}
DEEPGEN_FOR("x86-64-v3") void linear_v3(const linear::Work<double>& work) {
  linear::all<32>(work);
}
#undef DEEPGEN_FOR

template <class T>
void linear_step(const linear::Work<T>& work) {
  static const int level = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
                               ? 4
                           : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 3
                                                                                             : 2;
  if (level == 4) return linear_v4(work);
  if (level == 3) return linear_v3(work);
  linear::all<16>(work);
}
#else
template <class T>
void linear_step(const linear::Work<T>& work) {
  linear::all<16>(work);
}
#endif

// ---------------------------------------------------------------- steps channel by channel

template <class T>
DEEPGEN_INLINE T elu(T x) {
  // exp is the same on both sides of zero, so that the compiler has no branch to keep.
  const T below = exp_of(x < 0 ? x : T(0)) - 1;
  return x > 0 ? x : below;
}

template <class T>
DEEPGEN_INLINE T sigmoid(T x) {
  return 1 / (1 + exp_of(-x));
}

template <class T>
DEEPGEN_INLINE void apply(Kind kind, T* __restrict dst, const T* a, const T* b, const T* weights,
                          int64_t channels, int64_t count) {
  switch (kind) {
    case Kind::copy:
      for (int64_t i = 0; i < count; ++i) dst[i] = a[i];
      break;
    case Kind::relu:
      for (int64_t i = 0; i < count; ++i) dst[i] = a[i] > 0 ? a[i] : T(0);
      break;
    case Kind::elu:
      for (int64_t i = 0; i < count; ++i) dst[i] = elu(a[i]);
      break;
    case Kind::negative_elu:
      for (int64_t i = 0; i < count; ++i) dst[i] = elu(-a[i]);
      break;
    case Kind::tanh:
      for (int64_t i = 0; i < count; ++i) dst[i] = tanh_of(a[i]);
      break;
    case Kind::sigmoid:
      for (int64_t i = 0; i < count; ++i) dst[i] = sigmoid(a[i]);
      break;
    case Kind::affine:
      for (int64_t r = 0; r < count; r += channels) {
        for (int64_t c = 0; c < channels; ++c) {
          dst[r + c] = weights[c] * a[r + c] + weights[channels + c];
        }
      }
      break;
    case Kind::add:
      for (int64_t i = 0; i < count; ++i) dst[i] = a[i] + b[i];
      break;
    case Kind::subtract:
      for (int64_t i = 0; i < count; ++i) dst[i] = a[i] - b[i];
      break;
    case Kind::multiply:
      for (int64_t i = 0; i < count; ++i) dst[i] = a[i] * b[i];
      break;
    case Kind::gate:
      for (int64_t i = 0; i < count; ++i) dst[i] = tanh_of(a[i]) * sigmoid(b[i]);
      break;
    case Kind::sigmoid_gate:
      for (int64_t i = 0; i < count; ++i) dst[i] = a[i] * sigmoid(b[i]);
      break;
    default:
      break;
  }
}

DEEPGEN_SIMD void elementwise(Kind kind, float* __restrict dst, const float* a, const float* b,
                              const float* weights, int64_t channels, int64_t count) {
  apply(kind, dst, a, b, weights, channels, count);
}
DEEPGEN_SIMD void elementwise(Kind kind, double* __restrict dst, const double* a, const double* b,
                              const double* weights, int64_t channels, int64_t count) {
  apply(kind, dst, a, b, weights, channels, count);
}

// ---------------------------------------------------------------- draws

// draw_category for logits that stand side by side, in the same order of additions: all weights
// first, so that the loops are long enough for vectors (0.8 us become 0.2 for 256 levels).
constexpr int64_t most_levels = levels_per_block * kept_blocks;

DEEPGEN_INLINE int64_t draw_category_in_row(const float* logits, int64_t n_levels,
                                            float temperature, float uniform) {
  typedef float V __attribute__((vector_size(32)));
  typedef float U __attribute__((vector_size(32), aligned(4), may_alias));
  if (n_levels > most_levels) return draw_category(logits, 1, n_levels, temperature, uniform);
  const int64_t blocks = (n_levels + levels_per_block - 1) / levels_per_block;
  alignas(64) float weights[most_levels], eighths[8 * kept_blocks], sums[kept_blocks];

  float top = -INFINITY;
  V tops = V{} - INFINITY;
  int64_t l = 0;
  for (; l + 8 <= n_levels; l += 8) {
    const V x = *reinterpret_cast<const U*>(logits + l);
    tops = x > tops ? x : tops;
  }
  for (; l < n_levels; ++l) top = logits[l] > top ? logits[l] : top;
  for (int i = 0; i < 8; ++i) top = tops[i] > top ? tops[i] : top;

  const float inverse_temperature = 1 / temperature;
  for (l = 0; l < n_levels; ++l) weights[l] = decay_of((logits[l] - top) * inverse_temperature);
  for (; l < blocks * levels_per_block; ++l) weights[l] = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const float* w = weights + block * levels_per_block;
    *reinterpret_cast<V*>(eighths + 8 * block) =
        *reinterpret_cast<const V*>(w) + *reinterpret_cast<const V*>(w + 8);
  }
  float total = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const float* e = eighths + 8 * block;
    sums[block] = ((e[0] + e[4]) + (e[2] + e[6])) + ((e[1] + e[5]) + (e[3] + e[7]));
    total += sums[block];
  }

  const float threshold = uniform * total;
  float below = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (below + sums[block] > threshold) {
      const float* w = weights + block * levels_per_block;
      int last = 0;
      for (int i = 0; i < levels_per_block; ++i) {
        below += w[i];
        if (below > threshold) return block * levels_per_block + i;
        if (w[i] > 0) last = i;
      }
      return block * levels_per_block + last;
    }
    below += sums[block];
  }
  for (l = n_levels - 1; l > 0 && !(weights[l] > 0); --l) {
  }
  return l > 0 || weights[0] > 0 ? l : n_levels - 1;
}

DEEPGEN_SIMD int64_t draw_level(const float* logits, int64_t n_levels, float temperature,
                                float uniform) {
  return draw_category_in_row(logits, n_levels, temperature, uniform);
}
DEEPGEN_SIMD int64_t draw_level(const double* logits, int64_t n_levels, double temperature,
                                double uniform) {
  return draw_category(logits, 1, n_levels, temperature, uniform);
}

DEEPGEN_SIMD void draw_mixture(const float* parameters, MixtureLayout layout, int64_t n_levels,
                               float temperature, const float* uniforms, int64_t stride,
                               int64_t* levels) {
  draw_from_logistic_mixture(parameters, 1, layout, n_levels, temperature, uniforms, stride, levels,
                             stride);
}
DEEPGEN_SIMD void draw_mixture(const double* parameters, MixtureLayout layout, int64_t n_levels,
                               double temperature, const double* uniforms, int64_t stride,
                               int64_t* levels) {
  draw_from_logistic_mixture(parameters, 1, layout, n_levels, temperature, uniforms, stride, levels,
                             stride);
}

// Means and log scales stand side by side, what is drawn `stride` apart.
DEEPGEN_SIMD void draw_gaussian(const float* parameters, int64_t channels, float temperature,
                                const float* noise, int64_t stride, float* values) {
  for (int64_t c = 0; c < channels; ++c) {
    values[c * stride] = sampling::gaussian_draw(parameters[c], parameters[channels + c],
                                                 temperature, noise[c * stride]);
  }
}
DEEPGEN_SIMD void draw_gaussian(const double* parameters, int64_t channels, double temperature,
                                const double* noise, int64_t stride, double* values) {
  for (int64_t c = 0; c < channels; ++c) {
    values[c * stride] = sampling::gaussian_draw(parameters[c], parameters[channels + c],
                                                 temperature, noise[c * stride]);
  }
}

}  // namespace
}  // namespace deepgen::cpu
