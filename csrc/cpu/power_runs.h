// What the iteration and its gradient do on the CPU with dense runs of numbers, and how they share
// out their work.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <type_traits>

#include "../power_iteration.h"
#include "simd.h"

namespace deepgen::cpu {
namespace {

constexpr int64_t chunk_elements = 128 * 1024;

// What weights of S are computed in.
template <class S>
using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;

// ---- Dense runs.

template <class T>
DEEPGEN_INLINE T dot_of(const T* __restrict a, const T* __restrict b, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

// u = W v.
template <class T>
DEEPGEN_INLINE void multiply_rows_of(const T* __restrict w, int64_t stride, int64_t rows, int64_t n,
                                     const T* __restrict v, T* __restrict u) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const T *w0 = w + i * stride, *w1 = w0 + stride, *w2 = w1 + stride, *w3 = w2 + stride;
    T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t k = 0; k < n; ++k) {
      s0 += w0[k] * v[k];
      s1 += w1[k] * v[k];
      s2 += w2[k] * v[k];
      s3 += w3[k] * v[k];
    }
    u[i] = s0, u[i + 1] = s1, u[i + 2] = s2, u[i + 3] = s3;
  }
  for (; i < rows; ++i) u[i] = dot_of(w + i * stride, v, n);
}

// sums += W'c.
template <class T>
DEEPGEN_INLINE void add_rows_of(const T* __restrict w, int64_t stride, int64_t rows, int64_t n,
                                const T* __restrict c, T* __restrict sums) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const T *w0 = w + i * stride, *w1 = w0 + stride, *w2 = w1 + stride, *w3 = w2 + stride;
    const T s0 = c[i], s1 = c[i + 1], s2 = c[i + 2], s3 = c[i + 3];
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
      sums[k] += (s0 * w0[k] + s1 * w1[k]) + (s2 * w2[k] + s3 * w3[k]);
    }
  }
  for (; i < rows; ++i) {
    const T* row = w + i * stride;
    const T s = c[i];
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) sums[k] += s * row[k];
  }
}

// u = W v, sums = W'u.
template <class T>
DEEPGEN_INLINE void iterate_rows_of(const T* __restrict w, int64_t stride, int64_t rows, int64_t n,
                                    const T* __restrict v, T* __restrict u, T* __restrict sums) {
  for (int64_t k = 0; k < n; ++k) sums[k] = 0;
  for (int64_t i = 0; i < rows; i += 4) {
    const int64_t count = std::min<int64_t>(4, rows - i);
    multiply_rows_of(w + i * stride, stride, count, n, v, u + i);
    add_rows_of(w + i * stride, stride, count, n, u + i, sums);
  }
}

// The same of the transpose of what lies there, (n, rows): u = W'v, and where wanted sums = W u.
template <class T>
DEEPGEN_INLINE void iterate_columns_of(const T* __restrict w, int64_t stride, int64_t rows,
                                       int64_t n, const T* __restrict v, T* __restrict u,
                                       T* __restrict sums) {
  for (int64_t i = 0; i < rows; ++i) u[i] = 0;
  add_rows_of(w, stride, n, rows, v, u);
  if (sums) multiply_rows_of(w, stride, n, rows, u, sums);
}

// sum = the sum of `count` vectors of n; returns its square.
template <class T>
DEEPGEN_INLINE double add_vectors_of(const T* __restrict vectors, int64_t count, int64_t stride,
                                     int64_t n, T* __restrict sum) {
  for (int64_t k = 0; k < n; ++k) sum[k] = vectors[k];
  for (int64_t c = 1; c < count; ++c) {
    const T* from = vectors + c * stride;
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) sum[k] += from[k];
  }
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t k = 0; k < n; ++k) square += static_cast<double>(sum[k]) * sum[k];
  return square;
}

// to = factor g + b a run of a rank-one matrix; `step` is that of b.
template <class S, class T>
DEEPGEN_INLINE void gradient_run_of(const S* __restrict g, int64_t n, T factor, T a,
                                    const T* __restrict b, int64_t step, S* __restrict to) {
  if (step == 1) {
#pragma omp simd
    for (int64_t k = 0; k < n; ++k)
      to[k] = static_cast<S>(factor * static_cast<T>(g[k]) + a * b[k]);
  } else {
    for (int64_t k = 0; k < n; ++k)
      to[k] = static_cast<S>(factor * static_cast<T>(g[k]) + a * b[k * step]);
  }
}

// The sum of products of two runs, in double over blocks.
template <class S>
DEEPGEN_INLINE double inner_product_of(const S* a, const S* b, int64_t n) {
  constexpr int64_t block = 4096;
  double sum = 0;
  for (int64_t k = 0; k < n; k += block) {
    const int64_t size = std::min<int64_t>(block, n - k);
    if constexpr (std::is_same_v<S, Wide<S>>) {
      sum += dot_of(a + k, b + k, size);
    } else {
      Wide<S> wide_a[block], wide_b[block];
      for (int64_t i = 0; i < size; ++i) wide_a[i] = static_cast<Wide<S>>(a[k + i]);
      for (int64_t i = 0; i < size; ++i) wide_b[i] = static_cast<Wide<S>>(b[k + i]);
      sum += dot_of(wide_a, wide_b, size);
    }
  }
  return sum;
}

#define DEEPGEN_RUNS(T)                                                                            \
  DEEPGEN_SIMD void multiply_rows(const T* w, int64_t stride, int64_t rows, int64_t n, const T* v, \
                                  T* u) {                                                          \
    multiply_rows_of(w, stride, rows, n, v, u);                                                    \
  }                                                                                                \
  DEEPGEN_SIMD void iterate_rows(const T* w, int64_t stride, int64_t rows, int64_t n, const T* v,  \
                                 T* u, T* sums) {                                                  \
    iterate_rows_of(w, stride, rows, n, v, u, sums);                                               \
  }                                                                                                \
  DEEPGEN_SIMD void iterate_columns(const T* w, int64_t stride, int64_t rows, int64_t n,           \
                                    const T* v, T* u, T* sums) {                                   \
    iterate_columns_of(w, stride, rows, n, v, u, sums);                                            \
  }                                                                                                \
  DEEPGEN_SIMD double add_vectors(const T* vectors, int64_t count, int64_t stride, int64_t n,      \
                                  T* sum) {                                                        \
    return add_vectors_of(vectors, count, stride, n, sum);                                         \
  }
DEEPGEN_RUNS(float)
DEEPGEN_RUNS(double)
#undef DEEPGEN_RUNS

// Of weights as they are stored. widen takes every `step`-th of them.
#define DEEPGEN_STORED_RUNS(S)                                                                     \
  DEEPGEN_SIMD void widen(const S* __restrict x, int64_t n, int64_t step, Wide<S>* __restrict y) { \
    if (step == 1) {                                                                               \
      for (int64_t k = 0; k < n; ++k) y[k] = static_cast<Wide<S>>(x[k]);                           \
    } else {                                                                                       \
      for (int64_t k = 0; k < n; ++k) y[k] = static_cast<Wide<S>>(x[k * step]);                    \
    }                                                                                              \
  }                                                                                                \
  DEEPGEN_SIMD void scale_run(const S* __restrict x, int64_t n, Wide<S> factor, S* __restrict y) { \
    for (int64_t k = 0; k < n; ++k) y[k] = static_cast<S>(factor * static_cast<Wide<S>>(x[k]));    \
  }                                                                                                \
  DEEPGEN_SIMD double inner_product(const S* a, const S* b, int64_t n) {                           \
    return inner_product_of(a, b, n);                                                              \
  }                                                                                                \
  DEEPGEN_SIMD void gradient_run(const S* g, int64_t n, Wide<S> factor, Wide<S> a,                 \
                                 const Wide<S>* b, int64_t step, S* to) {                          \
    gradient_run_of(g, n, factor, a, b, step, to);                                                 \
  }
DEEPGEN_STORED_RUNS(float)
DEEPGEN_STORED_RUNS(double)
DEEPGEN_STORED_RUNS(c10::BFloat16)
DEEPGEN_STORED_RUNS(c10::Half)
#undef DEEPGEN_STORED_RUNS

// ---- Pieces of work.

// each(piece) for all pieces, spread over the threads.
template <class Each>
void in_parallel(int64_t pieces, Each each) {
  at::parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) each(piece);
  });
}

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Calls run(first, last) for groups of matrices that are worked on together.
template <class Problem, class Run>
void for_each_group(const Problem& p, int64_t elements, Run run) {
  for (int64_t first = 0, last = 0; first < p.count; first = last) {
    int64_t size = 0;
    do {
      const MatrixOperand& w = p.matrices[last].weight;
      size += w.rows * w.columns();
      ++last;
    } while (last < p.count && size < elements);
    run(first, last);
  }
}

// A piece of an iteration: a chunk of rows of a matrix, or a block of its columns.
struct Piece {
  int64_t matrix, index, first, last;
};

}  // namespace
}  // namespace deepgen::cpu
