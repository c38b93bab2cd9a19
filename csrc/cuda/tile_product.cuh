// Products of weights with the values of a tile of samples, by one thread block. Values are
// unit-major: value u of sample s lies at [u * samples + s]. A warp takes rows, its lanes 8 samples
// x 4 parts of the columns, whose sums shuffles join.
#pragma once

#include "launch.cuh"

namespace deepgen::cuda {
namespace {

constexpr int threads = 256;
constexpr int warps = threads / 32;
constexpr int samples = 8;  // of a tile
constexpr int parts = 32 / samples;
constexpr int64_t most_shared_bytes = 96 * 1024;  // what every device since sm_80 grants

__device__ __forceinline__ int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

template <class T, int R>
struct Sums {
  T of[R];
};

// One lane's part of R rows' products: every `parts`-th of `columns`. Not inlined: a dozen copies
// of this loop would take the compiler minutes.
template <int R, class T>
__device__ DEEPGEN_NOINLINE Sums<T, R> sums_of(const T* w, int64_t row_step, int64_t column_step,
                                               int rows, int64_t columns, const T* values) {
  Sums<T, R> sums = {};
#pragma unroll 4
  for (int64_t c = 0; c < columns; c += parts, w += column_step) {
    const T value = values[c * samples];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r < rows) sums.of[r] += w[r * row_step] * value;
    }
  }
  return sums;
}

// The sum over the parts, in all of them.
template <class T>
__device__ __forceinline__ T joined_parts(T sum) {
#pragma unroll
  for (int offset = samples; offset < 32; offset *= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return sum;
}

}  // namespace
}  // namespace deepgen::cuda
