// The exponential coupling of rows where they lie: dense in themselves, each operand with a
// distance of its own between them.
#pragma once

#include "../affine_coupling.h"
#include "simd.h"
#include "tile.h"

namespace deepgen::cpu {
namespace {

// Rows of at least so many elements, in whole vectors, are mapped where they are.
constexpr int64_t least_row = 32, least_row_step = 16;

template <class T>
struct Rows {
  T* first;
  int64_t stride;

  T* operator[](int64_t r) const { return first + r * stride; }
};

// Whether the rows of the tile can be mapped where they are, one by one.
template <class T>
bool maps_rows_in_place(const AffineCoupling& p, const Tile& tile) {
  if (p.scale_map != ScaleMap::exp || p.mask || tile.rows == 1) return false;
  if (tile.columns < least_row || tile.columns % least_row_step) return false;
  if (p.storage != (sizeof(T) == 8 ? Storage::f64 : Storage::f32)) return false;
  for (const Operand* operand : {&p.x, &p.raw_scale, &p.shift, &p.y}) {
    if (!has_dense_rows(*operand, p.extent)) return false;
  }
  return !p.kept || (has_dense_rows(p.kept, p.extent) && has_dense_rows(p.kept_copy, p.extent));
}

template <class T>
Rows<T> rows_of(const Operand& operand, const Tile& tile) {
  T* first = static_cast<T*>(const_cast<void*>(operand.data));
  return {first + tile.row * operand.batch_stride, operand.batch_stride};
}

template <class T>
void copy_rows(const Tile& tile, Rows<const T> from, Rows<T> to) {
  for (int64_t r = 0; r < tile.rows; ++r) std::copy_n(from[r], tile.columns, to[r]);
}

// Maps one row and returns the sum of its log s, taken in the same loop.
template <bool Inverse, class T>
DEEPGEN_INLINE T map_exp_row(int64_t n, const T* __restrict x, const T* __restrict raw,
                             const T* __restrict shift, T* __restrict y) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const T factor = factor_of<ScaleMap::exp>(raw[i], raw[i], Inverse);
    y[i] = Inverse ? (x[i] - shift[i]) * factor : x[i] * factor + shift[i];
    sum += raw[i];
  }
  return Inverse ? -sum : sum;
}

template <class T>
DEEPGEN_INLINE void map_exp_rows_of(bool inverse, int64_t rows, int64_t columns, Rows<const T> x,
                                    Rows<const T> raw, Rows<const T> shift, Rows<T> y, T* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    sums[r] = inverse ? map_exp_row<true, T>(columns, x[r], raw[r], shift[r], y[r])
                      : map_exp_row<false, T>(columns, x[r], raw[r], shift[r], y[r]);
  }
}

DEEPGEN_SIMD void map_exp_rows(bool inverse, int64_t rows, int64_t columns, Rows<const float> x,
                               Rows<const float> raw, Rows<const float> shift, Rows<float> y,
                               float* sums) {
  map_exp_rows_of<float>(inverse, rows, columns, x, raw, shift, y, sums);
}

DEEPGEN_SIMD void map_exp_rows(bool inverse, int64_t rows, int64_t columns, Rows<const double> x,
                               Rows<const double> raw, Rows<const double> shift, Rows<double> y,
                               double* sums) {
  map_exp_rows_of<double>(inverse, rows, columns, x, raw, shift, y, sums);
}

}  // namespace
}  // namespace deepgen::cpu
