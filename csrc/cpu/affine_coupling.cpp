// affine_coupling on the CPU.
//
// Moves 16 bytes an element forward (x, raw, t in, y out) and 20 backward (g, x, raw in, two
// gradients out; dt is g itself); memory bounds it once the exponential is vectorised (0.4 ns an
// element against 1.6 ns of traffic on one core). Each tile (tile.h) is read once, mapped in one
// dense SIMD loop, and its log s summed from an L1 buffer: so that one loop serves long rows, where
// log det is a long sum, and rows of 8, where a reduction in the loop itself would cost more than
// the map. Sums are over at most 4096 floats in 32 SIMD lanes, then in double: 1e-7 from float64 on
// 25,000 elements, where one accumulator is 2e-4 off. Measured on images of 25 MB with two threads
// (benchmarks/run.py --filter image):
// 0.9 to 1.2 of a copy of as many bytes while they lie in the last cache, 1.1 to 1.2 (exp, sigmoid)
// and 1.3 to 1.6 (tanh) from memory: there the arithmetic of a tile delays the loads of the next.
// Prefetching by hand, 2 to 8 blocks of 1 KiB ahead, made that worse (1.4). The sigmoid map takes
// 0.40 ns an element in L1, with a logarithm an element 0.54 (exp 0.31, tanh 0.50). Fresh outputs
// cost page faults besides; large ones ask for huge pages (glue.cpp).
//
// Rows of 32 elements and more under exp, in whole groups of 16, are mapped where they lie with
// their sum in the same loop: no gather of the halves of a wider tensor, no buffer of log s.
// (65536, 64) with such halves takes 1.13 of a copy on two threads, 1.45 on one
// (torch.compile 1.32; benchmarks/scaling.py --curve coupling-bytes). Rows of other lengths keep
// the buffers: their last elements would be mapped one at a time.
#include "../affine_coupling.h"

#include <vector>

#include "affine_elements.h"
#include "affine_rows.h"
#include "tile.h"

namespace deepgen::cpu {
namespace {

constexpr int64_t piece_elements = 4 * tile_elements;

#define DEEPGEN_INLINE_LAMBDA __attribute__((always_inline))

// Calls f(map, direction) with both as compile-time constants.
template <class F>
DEEPGEN_INLINE void with_constants(ScaleMap map, bool inverse, F f) {
  const auto with_direction = [&](auto m) DEEPGEN_INLINE_LAMBDA {
    inverse ? f(m, std::true_type{}) : f(m, std::false_type{});
  };
  switch (map) {
    case ScaleMap::exp:
      return with_direction(std::integral_constant<ScaleMap, ScaleMap::exp>{});
    case ScaleMap::tanh:
      return with_direction(std::integral_constant<ScaleMap, ScaleMap::tanh>{});
    case ScaleMap::sigmoid:
      return with_direction(std::integral_constant<ScaleMap, ScaleMap::sigmoid>{});
    case ScaleMap::atan:
      return with_direction(std::integral_constant<ScaleMap, ScaleMap::atan>{});
    case ScaleMap::softclip:
      return with_direction(std::integral_constant<ScaleMap, ScaleMap::softclip>{});
    case ScaleMap::softplus:
      return with_direction(std::integral_constant<ScaleMap, ScaleMap::softplus>{});
    case ScaleMap::floored_sigmoid:
      return with_direction(std::integral_constant<ScaleMap, ScaleMap::floored_sigmoid>{});
    case ScaleMap::reciprocal_sigmoid:
      return with_direction(std::integral_constant<ScaleMap, ScaleMap::reciprocal_sigmoid>{});
  }
}

template <class T>
DEEPGEN_INLINE void map_tile(const AffineCoupling& p, int64_t n, const T* x, const T* raw,
                             const T* shift, T* y, T* log_scale) {
  with_constants(p.scale_map, p.inverse, [&](auto map, auto inverse) DEEPGEN_INLINE_LAMBDA {
    map_elements<map(), inverse(), T>(n, x, raw, shift, static_cast<T>(p.clamp), y, log_scale);
  });
}

template <class T>
DEEPGEN_INLINE void map_groups(const AffineCoupling& p, int64_t n, const T* x, const T* raw,
                               const T* shift, T* y, T* log_scale) {
  p.inverse ? map_sigmoid_groups<true, T>(n, x, raw, shift, y, log_scale)
            : map_sigmoid_groups<false, T>(n, x, raw, shift, y, log_scale);
}

template <class T>
DEEPGEN_INLINE void map_gradient_tile(const AffineCouplingBackward& p, int64_t n, const T* g,
                                      const T* x, const T* raw, const T* grad_log_det,
                                      T* grad_input, T* grad_raw) {
  with_constants(p.scale_map, p.inverse, [&](auto map, auto inverse) DEEPGEN_INLINE_LAMBDA {
    map_gradients<map(), inverse(), T>(n, g, x, raw, grad_log_det, static_cast<T>(p.clamp),
                                       grad_input, grad_raw);
  });
}

// Rows of a length known to the compiler: their sums interleave.
template <int64_t Columns, class T>
DEEPGEN_INLINE void sum_short_rows(const T* __restrict values, int64_t rows, T* __restrict sums) {
  for (int64_t r = 0; r < rows; ++r) {
    T sum = 0;
    for (int64_t i = 0; i < Columns; ++i) sum += values[r * Columns + i];
    sums[r] = sum;
  }
}

template <class T>
DEEPGEN_INLINE void sum_rows_of(const T* __restrict values, int64_t rows, int64_t columns,
                                T* __restrict sums) {
  switch (columns) {
    case 1:
      return sum_short_rows<1>(values, rows, sums);
    case 2:
      return sum_short_rows<2>(values, rows, sums);
    case 4:
      return sum_short_rows<4>(values, rows, sums);
    case 8:
      return sum_short_rows<8>(values, rows, sums);
    case 16:
      return sum_short_rows<16>(values, rows, sums);
  }
  // Four sums side by side: one alone waits for each addition.
  const int64_t quarter = columns / 4;
  for (int64_t r = 0; r < rows; ++r, values += columns) {
    T a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
    for (int64_t i = 0; i < quarter; ++i) {
      a += values[i];
      b += values[i + quarter];
      c += values[i + 2 * quarter];
      d += values[i + 3 * quarter];
    }
    for (int64_t i = 4 * quarter; i < columns; ++i) a += values[i];
    sums[r] = (a + b) + (c + d);
  }
}

// The functions that exist once per instruction set.
DEEPGEN_SIMD void map_tile_simd(const AffineCoupling& p, int64_t n, const float* x,
                                const float* raw, const float* shift, float* y, float* log_scale) {
  map_tile<float>(p, n, x, raw, shift, y, log_scale);
}
DEEPGEN_SIMD void map_tile_simd(const AffineCoupling& p, int64_t n, const double* x,
                                const double* raw, const double* shift, double* y,
                                double* log_scale) {
  map_tile<double>(p, n, x, raw, shift, y, log_scale);
}
DEEPGEN_SIMD void map_groups_simd(const AffineCoupling& p, int64_t n, const float* x,
                                  const float* raw, const float* shift, float* y,
                                  float* log_scale) {
  map_groups<float>(p, n, x, raw, shift, y, log_scale);
}
DEEPGEN_SIMD void map_groups_simd(const AffineCoupling& p, int64_t n, const double* x,
                                  const double* raw, const double* shift, double* y,
                                  double* log_scale) {
  map_groups<double>(p, n, x, raw, shift, y, log_scale);
}
DEEPGEN_SIMD void map_gradient_tile_simd(const AffineCouplingBackward& p, int64_t n, const float* g,
                                         const float* x, const float* raw,
                                         const float* grad_log_det, float* grad_input,
                                         float* grad_raw) {
  map_gradient_tile<float>(p, n, g, x, raw, grad_log_det, grad_input, grad_raw);
}
DEEPGEN_SIMD void map_gradient_tile_simd(const AffineCouplingBackward& p, int64_t n,
                                         const double* g, const double* x, const double* raw,
                                         const double* grad_log_det, double* grad_input,
                                         double* grad_raw) {
  map_gradient_tile<double>(p, n, g, x, raw, grad_log_det, grad_input, grad_raw);
}
DEEPGEN_SIMD void sum_rows(const float* values, int64_t rows, int64_t columns, float* sums) {
  sum_rows_of<float>(values, rows, columns, sums);
}
DEEPGEN_SIMD void sum_rows(const double* values, int64_t rows, int64_t columns, double* sums) {
  sum_rows_of<double>(values, rows, columns, sums);
}

// Maps one tile and leaves the sums of log s of its rows in `sums`.
template <class T>
void forward_tile(const AffineCoupling& p, const Tile& tile, T* sums) {
  if (maps_rows_in_place<T>(p, tile)) {
    map_exp_rows(p.inverse, tile.rows, tile.columns, rows_of<const T>(p.x, tile),
                 rows_of<const T>(p.raw_scale, tile), rows_of<const T>(p.shift, tile),
                 rows_of<T>(p.y, tile), sums);
    if (p.kept) copy_rows(tile, rows_of<const T>(p.kept, tile), rows_of<T>(p.kept_copy, tile));
    return;
  }
  T x_buffer[tile_elements], raw_buffer[tile_elements], shift_buffer[tile_elements];
  T y_buffer[tile_elements], log_scale[tile_elements];
  const Extent& extent = p.extent;
  const int64_t n = tile.elements();
  const T* x = read_tile(p.x, p.storage, extent, tile, x_buffer);
  const T* raw = read_tile(p.raw_scale, p.storage, extent, tile, raw_buffer);
  const T* shift = read_tile(p.shift, p.storage, extent, tile, shift_buffer);
  T* y = write_tile(p.y, p.storage, extent, tile, y_buffer);
  const bool grouped =
      p.scale_map == ScaleMap::sigmoid && !p.mask && tile.columns % product_group == 0;
  grouped ? map_groups_simd(p, n, x, raw, shift, y, log_scale)
          : map_tile_simd(p, n, x, raw, shift, y, log_scale);
  if (p.mask) {
    bool transformed[tile_elements];
    gather_as<bool>(p.mask, extent, tile, transformed);
    for (int64_t i = 0; i < n; ++i) {
      y[i] = transformed[i] ? y[i] : x[i];
      log_scale[i] = transformed[i] ? log_scale[i] : T(0);
    }
  }
  write_back(p.y, p.storage, extent, tile, y, y_buffer);
  if (p.kept) {
    const T* kept = read_tile(p.kept, p.storage, extent, tile, x_buffer);
    T* copy = write_tile(p.kept_copy, p.storage, extent, tile, x_buffer);
    if (copy != kept) std::copy_n(kept, n, copy);
    write_back(p.kept_copy, p.storage, extent, tile, copy, x_buffer);
  }
  sum_rows(log_scale, tile.rows, grouped ? tile.columns / in_product : tile.columns, sums);
}

template <class T>
void forward(const AffineCoupling& p) {
  T* log_det = static_cast<T*>(p.log_det);
  const int64_t row = p.extent.row();
  const int64_t pieces = (row + piece_elements - 1) / piece_elements;
  std::vector<double> partial_sums(row > tile_elements_of_short_rows ? p.extent.batch * pieces : 0);
  for_each_tile(
      p.extent, piece_elements,
      [&](const Tile& tile) { forward_tile<T>(p, tile, log_det + tile.row); },
      [&](int64_t r, int64_t piece, int64_t begin, int64_t end) {
        double sum = 0;
        for (int64_t i = begin; i < end; i += tile_elements) {
          T tile_sum;
          forward_tile<T>(p, Tile{r, 1, i, std::min(tile_elements, end - i)}, &tile_sum);
          sum += tile_sum;
        }
        partial_sums[r * pieces + piece] = sum;
      });
  if (partial_sums.empty()) return;
  for (int64_t r = 0; r < p.extent.batch; ++r) {
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += partial_sums[r * pieces + piece];
    log_det[r] = static_cast<T>(sum);
  }
}

template <class T>
void backward_tile(const AffineCouplingBackward& p, const Tile& tile) {
  T g_buffer[tile_elements], x_buffer[tile_elements], raw_buffer[tile_elements];
  T input_buffer[tile_elements], grad_raw_buffer[tile_elements], grad_log_det[tile_elements];
  const Extent& extent = p.extent;
  const int64_t n = tile.elements();
  const T* g = read_tile(p.grad_output, p.storage, extent, tile, g_buffer);
  const T* x = read_tile(p.x, p.storage, extent, tile, x_buffer);
  const T* raw = read_tile(p.raw_scale, p.storage, extent, tile, raw_buffer);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T value = static_cast<const T*>(p.grad_log_det)[(tile.row + r) * p.grad_log_det_stride];
    std::fill_n(grad_log_det + r * tile.columns, tile.columns, value);
  }
  T* grad_input = write_tile(p.grad_input, p.storage, extent, tile, input_buffer);
  T* grad_raw = write_tile(p.grad_raw_scale, p.storage, extent, tile, grad_raw_buffer);
  map_gradient_tile_simd(p, n, g, x, raw, grad_log_det, grad_input, grad_raw);

  bool transformed[tile_elements];
  if (p.mask) gather_as<bool>(p.mask, extent, tile, transformed);
  if (p.grad_shift) {
    T shift_buffer[tile_elements];
    T* grad_shift = write_tile(p.grad_shift, p.storage, extent, tile, shift_buffer);
    for (int64_t i = 0; i < n; ++i) grad_shift[i] = p.inverse ? -grad_input[i] : g[i];
    if (p.mask) {
      for (int64_t i = 0; i < n; ++i) grad_shift[i] = transformed[i] ? grad_shift[i] : T(0);
    }
    write_back(p.grad_shift, p.storage, extent, tile, grad_shift, shift_buffer);
  }
  if (p.mask) {
    for (int64_t i = 0; i < n; ++i) {
      grad_input[i] = transformed[i] ? grad_input[i] : g[i];
      grad_raw[i] = transformed[i] ? grad_raw[i] : T(0);
    }
  }
  write_back(p.grad_input, p.storage, extent, tile, grad_input, input_buffer);
  write_back(p.grad_raw_scale, p.storage, extent, tile, grad_raw, grad_raw_buffer);
}

template <class T>
void backward(const AffineCouplingBackward& p) {
  for_each_tile(
      p.extent, piece_elements, [&](const Tile& tile) { backward_tile<T>(p, tile); },
      [&](int64_t r, int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i += tile_elements) {
          backward_tile<T>(p, Tile{r, 1, i, std::min(tile_elements, end - i)});
        }
      });
}

}  // namespace

void affine_coupling(const AffineCoupling& p) {
  p.storage == Storage::f64 ? forward<double>(p) : forward<float>(p);
}

void affine_coupling_backward(const AffineCouplingBackward& p) {
  p.storage == Storage::f64 ? backward<double>(p) : backward<float>(p);
}

}  // namespace deepgen::cpu
