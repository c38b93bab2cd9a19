// Register tiles of float32 and the transposes that feed them.
//
// A tile is 6 x 16 sums in 12 vectors; each step loads two vectors and broadcasts 6 numbers for 12
// multiply-adds, which is what keeps both units of a core busy: 90 GFLOP/s of one core where
// oneDNN's dense convolutions ran at 73 (3x3) to 87 (7x7).
#pragma once

#include <cstdint>

#include "simd.h"

namespace deepgen::cpu {

constexpr int64_t lanes = 16;  // of a tile: 2 vectors
constexpr int64_t tile = 6;    // its other side

typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
typedef int Indices __attribute__((vector_size(32)));

// Keeps the compiler from loading all broadcasts of a step first, which spills accumulators.
#define DEEPGEN_IN_ORDER asm volatile("" ::: "memory")

// sums[position][lane] += sum over k of pixels[offset[position] + k] weights[k][lane], for `tiles`
// tiles of positions. Each call sums apart first: its rounding does not grow with all of the depth.
DEEPGEN_SIMD static void multiply(const float* pixels, const int64_t* offset, int64_t tiles,
                                  const float* weights, int64_t depth, float* sums) {
  for (int64_t t = 0; t < tiles; ++t, offset += tile, sums += tile * lanes) {
    const float *const a0 = pixels + offset[0], *const a1 = pixels + offset[1],
                       *const a2 = pixels + offset[2], *const a3 = pixels + offset[3],
                       *const a4 = pixels + offset[4], *const a5 = pixels + offset[5];
    Vector low[tile] = {}, high[tile] = {};
    const float* weight = weights;
    for (int64_t k = 0; k < depth; ++k, weight += lanes) {
      const Vector w0 = *reinterpret_cast<const Vector*>(weight);
      const Vector w1 = *reinterpret_cast<const Vector*>(weight + 8);
#define DEEPGEN_STEP(i)    \
  low[i] += a##i[k] * w0;  \
  high[i] += a##i[k] * w1; \
  DEEPGEN_IN_ORDER
      DEEPGEN_STEP(0);
      DEEPGEN_STEP(1);
      DEEPGEN_STEP(2);
      DEEPGEN_STEP(3);
      DEEPGEN_STEP(4);
      DEEPGEN_STEP(5);
#undef DEEPGEN_STEP
    }
    for (int i = 0; i < tile; ++i) {
      *reinterpret_cast<Vector*>(sums + i * lanes) += low[i];
      *reinterpret_cast<Vector*>(sums + i * lanes + 8) += high[i];
    }
  }
}

// sums[r][lane] += sum over positions of pixels[offset[position] + r] gradient[position][lane], for
// `tiles` tiles of r.
DEEPGEN_SIMD static void multiply_transposed(const float* pixels, const int64_t* offset,
                                             int64_t positions, const float* gradient,
                                             int64_t tiles, float* sums) {
  for (int64_t t = 0; t < tiles; ++t, pixels += tile, sums += tile * lanes) {
    Vector low[tile] = {}, high[tile] = {};
    const float* g = gradient;
    for (int64_t p = 0; p < positions; ++p, g += lanes) {
      const float* const a = pixels + offset[p];
      const Vector g0 = *reinterpret_cast<const Vector*>(g);
      const Vector g1 = *reinterpret_cast<const Vector*>(g + 8);
#pragma GCC unroll 6
      for (int i = 0; i < tile; ++i) {
        low[i] += a[i] * g0;
        high[i] += a[i] * g1;
        DEEPGEN_IN_ORDER;
      }
    }
    for (int i = 0; i < tile; ++i) {
      *reinterpret_cast<Vector*>(sums + i * lanes) += low[i];
      *reinterpret_cast<Vector*>(sums + i * lanes + 8) += high[i];
    }
  }
}

// to[column * to_stride + row] = from[row * from_stride + column].
DEEPGEN_SIMD static void transpose(const float* from, int64_t from_stride, int64_t rows,
                                   int64_t columns, float* to, int64_t to_stride) {
  const int64_t full_rows = rows / 8 * 8, full_columns = columns / 8 * 8;
  for (int64_t r = 0; r < full_rows; r += 8) {
    for (int64_t c = 0; c < full_columns; c += 8) {
      Vector a[8], b[8];
      for (int i = 0; i < 8; ++i) {
        a[i] = *reinterpret_cast<const Vector*>(from + (r + i) * from_stride + c);
      }
      for (int i = 0; i < 8; i += 2) {
        b[i] = __builtin_shuffle(a[i], a[i + 1], Indices{0, 8, 1, 9, 4, 12, 5, 13});
        b[i + 1] = __builtin_shuffle(a[i], a[i + 1], Indices{2, 10, 3, 11, 6, 14, 7, 15});
      }
      for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; ++j) {
          a[i + 2 * j] =
              __builtin_shuffle(b[i + j], b[i + j + 2], Indices{0, 1, 8, 9, 4, 5, 12, 13});
          a[i + 2 * j + 1] =
              __builtin_shuffle(b[i + j], b[i + j + 2], Indices{2, 3, 10, 11, 6, 7, 14, 15});
        }
      }
      for (int i = 0; i < 4; ++i) {
        b[i] = __builtin_shuffle(a[i], a[i + 4], Indices{0, 1, 2, 3, 8, 9, 10, 11});
        b[i + 4] = __builtin_shuffle(a[i], a[i + 4], Indices{4, 5, 6, 7, 12, 13, 14, 15});
      }
      for (int i = 0; i < 8; ++i) {
        *reinterpret_cast<Vector*>(to + (c + i) * to_stride + r) = b[i];
      }
    }
    for (int64_t c = full_columns; c < columns; ++c) {
      for (int64_t i = r; i < r + 8; ++i) to[c * to_stride + i] = from[i * from_stride + c];
    }
  }
  for (int64_t r = full_rows; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
  }
}

#undef DEEPGEN_IN_ORDER

}  // namespace deepgen::cpu
