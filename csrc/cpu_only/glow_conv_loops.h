// The loops of glow_conv_net over rows of positions, between the matrix products.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../cpu/simd.h"

namespace deepgen::cpu {
namespace {

constexpr int taps = 9;

template <class T>
using Mask = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// to[i] = from[i + offset] where the tap lies inside the image, else 0.
template <class T>
DEEPGEN_INLINE void shift_row(int64_t n, int64_t offset, const Mask<T>* __restrict mask,
                              const T* __restrict from, T* __restrict to) {
  const T* __restrict source = from + offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T value = source[i];
    to[i] = mask[i] ? value : T(0);
  }
}

template <class T>
DEEPGEN_INLINE void add_shifted_row(int64_t n, int64_t offset, const Mask<T>* __restrict mask,
                                    const T* __restrict from, T* __restrict to) {
  const T* __restrict source = from + offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T value = source[i];
    to[i] += mask[i] ? value : T(0);
  }
}

template <class T>
DEEPGEN_INLINE void activate_row(int64_t n, T bias, const T* __restrict context,
                                 T* __restrict values) {
  if (context) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const T v = values[i] + bias + context[i];
      values[i] = v < T(0) ? T(0) : v;  // NaN stays
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const T v = values[i] + bias;
      values[i] = v < T(0) ? T(0) : v;
    }
  }
}

// gradient = 0 where the activation is not above 0; the sum of what is left.
template <class T>
DEEPGEN_INLINE T mask_row(int64_t n, const T* __restrict activation, T* __restrict gradient) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const T v = gradient[i];
    const T kept = activation[i] <= T(0) ? T(0) : v;
    gradient[i] = kept;
    sum += kept;
  }
  return sum;
}

template <class T>
DEEPGEN_INLINE T scale_row(int64_t n, T scale, T* __restrict values) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const T v = values[i] * scale;
    values[i] = v;
    sum += v;
  }
  return sum;
}

// The taps of a chunk of n positions. Planes are (channels, n), columns (taps, channels, n) or, of
// the output, (channels, taps, n). What a tap reads beyond its row is masked, not absent: there is
// room for it at either end.
template <class T>
struct Taps {
  int64_t n, width, tap, channel;  // of columns
  const Mask<T>* masks;            // (taps, n)
  int64_t mask_stride;

  DEEPGEN_INLINE int64_t offset(int t) const { return (t / 3 - 1) * width + t % 3 - 1; }
};

template <class T>
DEEPGEN_INLINE void spread_planes(const Taps<T>& at, int64_t channels, bool flipped,
                                  const T* planes, T* columns) {
  for (int t = 0; t < taps; ++t) {
    const int from = flipped ? taps - 1 - t : t;
    for (int64_t c = 0; c < channels; ++c)
      shift_row<T>(at.n, at.offset(from), at.masks + from * at.mask_stride, planes + c * at.n,
                   columns + t * at.tap + c * at.channel);
  }
}

template <class T>
DEEPGEN_INLINE void fold_columns(const Taps<T>& at, int64_t channels, bool flipped,
                                 const T* columns, T* planes) {
  for (int64_t c = 0; c < channels; ++c) {
    T* const to = planes + c * at.n;
    for (int t = 0; t < taps; ++t) {
      const int from = flipped ? taps - 1 - t : t;
      const T* const row = columns + t * at.tap + c * at.channel;
      if (t == 0) {
        shift_row<T>(at.n, at.offset(from), at.masks + from * at.mask_stride, row, to);
      } else {
        add_shifted_row<T>(at.n, at.offset(from), at.masks + from * at.mask_stride, row, to);
      }
    }
  }
}

template <class T>
DEEPGEN_INLINE T product_sum(int64_t n, const T* __restrict a, const T* __restrict b) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
DEEPGEN_INLINE void add_row(int64_t n, const T* __restrict from, T* __restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

template <class T>
DEEPGEN_INLINE void finish_row(int64_t n, T bias, T scale, T* __restrict values) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) values[i] = (values[i] + bias) * scale;
}

// Compiled for each instruction set, as no template can be.
#define DEEPGEN_GLOW_LOOPS(T)                                                                    \
  DEEPGEN_SIMD void spread(const Taps<T>& taps, int64_t channels, bool flipped, const T* planes, \
                           T* columns) {                                                         \
    spread_planes<T>(taps, channels, flipped, planes, columns);                                  \
  }                                                                                              \
  DEEPGEN_SIMD void fold(const Taps<T>& taps, int64_t channels, bool flipped, const T* columns,  \
                         T* planes) {                                                            \
    fold_columns<T>(taps, channels, flipped, columns, planes);                                   \
  }                                                                                              \
  DEEPGEN_SIMD void activate(int64_t rows, int64_t n, const T* bias, const T* context,           \
                             T* values) {                                                        \
    for (int64_t r = 0; r < rows; ++r)                                                           \
      activate_row<T>(n, bias[r], context ? context + r * n : nullptr, values + r * n);          \
  }                                                                                              \
  DEEPGEN_SIMD void mask(int64_t rows, int64_t n, const T* activation, T* gradient, T* sums) {   \
    for (int64_t r = 0; r < rows; ++r)                                                           \
      sums[r] += mask_row<T>(n, activation + r * n, gradient + r * n);                           \
  }                                                                                              \
  DEEPGEN_SIMD void scale(int64_t rows, int64_t n, const T* factor, T* values, T* sums) {        \
    for (int64_t r = 0; r < rows; ++r) sums[r] += scale_row<T>(n, factor[r], values + r * n);    \
  }                                                                                              \
  DEEPGEN_SIMD void finish(int64_t rows, int64_t n, const T* bias, const T* factor, T* values) { \
    for (int64_t r = 0; r < rows; ++r) finish_row<T>(n, bias[r], factor[r], values + r * n);     \
  }                                                                                              \
  DEEPGEN_SIMD T inner_product(int64_t n, const T* a, const T* b) {                              \
    return product_sum<T>(n, a, b);                                                              \
  }                                                                                              \
  DEEPGEN_SIMD void add(int64_t n, const T* from, T* to) {                                       \
    add_row<T>(n, from, to);                                                                     \
  }

DEEPGEN_GLOW_LOOPS(float)
DEEPGEN_GLOW_LOOPS(double)

}  // namespace
}  // namespace deepgen::cpu
