// sums[r][lane] += sum over c of w(r, c) values[c][lane]: the one product behind
// autoregressive_inverse.
//
// Lanes are samples, side by side in memory; a tile of 6 rows by 16 lanes (float) stays in 12
// vector registers while a chunk of columns passes: one weight read serves 16 multiplications, one
// value 6. Chunks of 128 columns keep the values in L1 for all rows. Each sum is added in ascending
// order of columns by one chain, whatever the tile, so that results depend on neither the number of
// lanes nor that of threads. A single sample has no lanes: its rows are dot products, bound by the
// memory that the weights come from.
#pragma once

#include <cstdint>
#include <type_traits>

#include "simd.h"

namespace deepgen::cpu {

template <class T>
using Vector __attribute__((vector_size(32), aligned(sizeof(T)), may_alias)) = T;

template <class T>
constexpr int64_t vector_lanes = 32 / sizeof(T);

// What w(r, c) is: a row-major matrix or its transpose.
enum class Order { rows, columns };

template <Order O, int R, int V, class T>
DEEPGEN_INLINE void multiply_tile(const T* __restrict w, int64_t stride, int64_t columns,
                                  const T* __restrict values, T* __restrict sums, int64_t lanes) {
  Vector<T> sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v)
      sum[r][v] = *reinterpret_cast<const Vector<T>*>(sums + r * lanes + v * vector_lanes<T>);
  }
  for (int64_t c = 0; c < columns; ++c) {
    Vector<T> value[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v)
      value[v] = *reinterpret_cast<const Vector<T>*>(values + c * lanes + v * vector_lanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T weight = O == Order::rows ? w[r * stride + c] : w[c * stride + r];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] += weight * value[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v)
      *reinterpret_cast<Vector<T>*>(sums + r * lanes + v * vector_lanes<T>) = sum[r][v];
  }
}

template <Order O, int R, class T>
DEEPGEN_INLINE void multiply_rows(const T* w, int64_t stride, int64_t columns, const T* values,
                                  T* sums, int64_t lanes) {
  int64_t lane = 0;
  for (; lane + 2 * vector_lanes<T> <= lanes; lane += 2 * vector_lanes<T>)
    multiply_tile<O, R, 2>(w, stride, columns, values + lane, sums + lane, lanes);
  if (lane < lanes) multiply_tile<O, R, 1>(w, stride, columns, values + lane, sums + lane, lanes);
}

template <Order O, class T>
DEEPGEN_INLINE void multiply_lanes(const T* w, int64_t stride, int64_t rows, int64_t columns,
                                   const T* values, T* sums, int64_t lanes) {
  constexpr int64_t chunk = 128;
  const int64_t row_step = O == Order::rows ? stride : 1;
  const int64_t column_step = O == Order::rows ? 1 : stride;
  for (int64_t c = 0; c < columns; c += chunk) {
    const int64_t count = columns - c < chunk ? columns - c : chunk;
    const T* weights = w + c * column_step;
    const T* part = values + c * lanes;
    int64_t r = 0;
    const auto next = [&](auto height) __attribute__((always_inline)) {
      multiply_rows<O, height()>(weights + r * row_step, stride, count, part, sums + r * lanes,
                                 lanes);
      r += height();
    };
    while (rows - r > 8) next(std::integral_constant<int, 6>{});
    if (rows - r > 6) next(std::integral_constant<int, 4>{});
    switch (rows - r) {
      case 6:
        next(std::integral_constant<int, 6>{});
        break;
      case 5:
        next(std::integral_constant<int, 5>{});
        break;
      case 4:
        next(std::integral_constant<int, 4>{});
        break;
      case 3:
        next(std::integral_constant<int, 3>{});
        break;
      case 2:
        next(std::integral_constant<int, 2>{});
        break;
      case 1:
        next(std::integral_constant<int, 1>{});
        break;
    }
  }
}

// One sample: R dot products at a time, two chains each.
template <int R, class T>
DEEPGEN_INLINE void dot_rows(const T* __restrict w, int64_t stride, int64_t columns,
                             const T* __restrict values, T* __restrict sums) {
  constexpr int64_t step = vector_lanes<T>;
  Vector<T> even[R], odd[R];
  T tail[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) even[r] = Vector<T>{}, odd[r] = Vector<T>{}, tail[r] = sums[r];
  int64_t c = 0;
  for (; c + 2 * step <= columns; c += 2 * step) {
    const Vector<T> a = *reinterpret_cast<const Vector<T>*>(values + c);
    const Vector<T> b = *reinterpret_cast<const Vector<T>*>(values + c + step);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      even[r] += *reinterpret_cast<const Vector<T>*>(w + r * stride + c) * a;
      odd[r] += *reinterpret_cast<const Vector<T>*>(w + r * stride + c + step) * b;
    }
  }
  if (c + step <= columns) {
    const Vector<T> a = *reinterpret_cast<const Vector<T>*>(values + c);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      even[r] += *reinterpret_cast<const Vector<T>*>(w + r * stride + c) * a;
    c += step;
  }
  for (; c < columns; ++c) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) tail[r] += w[r * stride + c] * values[c];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Vector<T> sum = even[r] + odd[r];
    T half[step / 2];
    for (int i = 0; i < step / 2; ++i) half[i] = sum[i] + sum[i + step / 2];
    T total = 0;
    if constexpr (step == 8) {
      total = (half[0] + half[2]) + (half[1] + half[3]);
    } else {
      total = half[0] + half[1];
    }
    sums[r] = tail[r] + total;
  }
}

template <class T>
DEEPGEN_INLINE void multiply_single(const T* w, int64_t stride, int64_t rows, int64_t columns,
                                    const T* values, T* sums) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) dot_rows<4>(w + r * stride, stride, columns, values, sums + r);
  for (; r < rows; ++r) dot_rows<1>(w + r * stride, stride, columns, values, sums + r);
}

}  // namespace deepgen::cpu
