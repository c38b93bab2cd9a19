// rational_quadratic_spline on the CPU.
//
// Reads 4 (3 K + 1) bytes an element and writes 8 (100 in all for 8 bins in float32); the gradient
// reads and writes the parameters, 200. The arithmetic, 18 exponentials for 8 bins, costs more than
// that traffic, so it must run 8 elements at a time. Parameters come the other way: those of one
// element side by side. A block of elements is transposed through registers into rows of lanes in
// L1 and mapped there with one element a lane (lanes.h): the running edges, and what is selected of
// the bin, stay in registers, for any number of bins, without a branch. Letting the compiler
// vectorise over elements needs the number of bins at compile time; gather instructions cost as
// much as the arithmetic. Where neighbouring elements lie side by side instead (images), rows are
// copied as they are. Measured in CPU time of one thread beside busy neighbours, 8 bins, against a
// copy of as many bytes as the forward pass moves: forward 4 to 6, inverse 5 to 7, forward and
// backward 11 to 15. What is over the floor is arithmetic: about 830 instructions for 8 elements
// forward, 350 of them the exponentials.
#include "../rational_quadratic_spline.h"

#include <vector>

#include "../rational_quadratic_spline_gradient.h"
#include "lanes.h"
#include "tile.h"
#include "transpose.h"

namespace deepgen::cpu {
namespace {

constexpr int64_t longest_tile = tile_elements_of_short_rows;
constexpr int64_t piece_elements = 4 * longest_tile;
constexpr int64_t spline_grain = 2048;
constexpr int64_t most_chunks = 8;
// Rows of lanes that fit into the buffer.
constexpr int64_t most_rows = most_spline_values;

// ---- The arithmetic, once per instruction set.

// Exponentials of the widths and heights of one chunk, in place of both.
template <class T>
struct ChunkOfParameters {
  StridedLanes<T> widths, heights, derivatives;
  Lanes<T> width_sum, height_sum;

  DEEPGEN_INLINE ChunkOfParameters(int64_t bins, T* rows)
      : widths{rows, Lanes<T>::count},
        heights{rows + bins * Lanes<T>::count, Lanes<T>::count},
        derivatives{rows + 2 * bins * Lanes<T>::count, Lanes<T>::count},
        width_sum(spline_exponentials<Lanes<T>>(bins, widths, widths)),
        height_sum(spline_exponentials<Lanes<T>>(bins, heights, heights)) {}
};

template <bool Inverse, class T>
DEEPGEN_INLINE void map_chunks(const SplineConstants<T>& c, const SplineOptions& o, int64_t chunks,
                               T* rows, const T* x, T* y, T* log) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t bins = o.bins, step = o.values() * L;
  for (int64_t i = 0; i < chunks; ++i, rows += step) {
    const ChunkOfParameters<T> p(bins, rows);
    Lanes<T> result, log_derivative;
    spline_value<Inverse>(c, bins, Lanes<T>::load(x + i * L), p.widths, p.width_sum, p.heights,
                          p.height_sum, p.derivatives, &result, &log_derivative);
    result.store(y + i * L);
    log_derivative.store(log + i * L);
  }
}

// Leaves the gradients of the parameters in place of the parameters.
template <bool Inverse, class T>
DEEPGEN_INLINE void map_gradient_chunks(const SplineConstants<T>& c, const SplineOptions& o,
                                        int64_t chunks, T* rows, const T* x, const T* g, const T* l,
                                        T* grad_input) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t bins = o.bins, step = o.values() * L;
  for (int64_t i = 0; i < chunks; ++i, rows += step) {
    const ChunkOfParameters<T> p(bins, rows);
    spline_gradient<Inverse>(c, bins, Lanes<T>::load(x + i * L), Lanes<T>::load(g + i * L),
                             Lanes<T>::load(l + i * L), p.widths, p.width_sum, p.heights,
                             p.height_sum, p.derivatives, p.widths, p.heights, p.derivatives)
        .store(grad_input + i * L);
  }
}

// The sum of one row of log-derivatives.
template <class T>
DEEPGEN_INLINE T sum_of(int64_t n, const T* values) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += values[i];
  return sum;
}

#define DEEPGEN_SPLINE_KERNELS(T)                                                                  \
  DEEPGEN_SIMD void map_block(const SplineConstants<T>& c, const SplineOptions& o, int64_t chunks, \
                              T* rows, const T* x, T* y, T* log) {                                 \
    o.inverse ? map_chunks<true, T>(c, o, chunks, rows, x, y, log)                                 \
              : map_chunks<false, T>(c, o, chunks, rows, x, y, log);                               \
  }                                                                                                \
  DEEPGEN_SIMD void map_gradient_block(const SplineConstants<T>& c, const SplineOptions& o,        \
                                       int64_t chunks, T* rows, const T* x, const T* g,            \
                                       const T* l, T* grad_input) {                                \
    o.inverse ? map_gradient_chunks<true, T>(c, o, chunks, rows, x, g, l, grad_input)              \
              : map_gradient_chunks<false, T>(c, o, chunks, rows, x, g, l, grad_input);            \
  }                                                                                                \
  DEEPGEN_SIMD void sum_rows(const T* values, int64_t rows, int64_t columns, T* sums) {            \
    for (int64_t r = 0; r < rows; ++r) sums[r] = sum_of(columns, values + r * columns);            \
  }
DEEPGEN_SPLINE_KERNELS(float)
DEEPGEN_SPLINE_KERNELS(double)
#undef DEEPGEN_SPLINE_KERNELS

// ---- Walking over the elements.

// Where the elements of a tile have each of their parameters.
struct TileOffsets {
  int64_t values[3][longest_tile];
  const int64_t* of[3];

  TileOffsets(const SplineParameters& p, const Extent& extent, const Tile& tile) {
    const SplineParameter* all[3] = {&p.widths, &p.heights, &p.derivatives};
    for (int i = 0; i < 3; ++i) {
      const Operand& operand = all[i]->first;
      of[i] = values[i];
      // Slices of one tensor share their strides.
      const Operand& before = all[i > 0 ? i - 1 : 0]->first;
      if (i > 0 && operand.batch_stride == before.batch_stride &&
          std::equal(operand.stride, operand.stride + 3, before.stride)) {
        of[i] = of[i - 1];
        continue;
      }
      const int64_t step = operand.stride[2];
      for_each_run(operand, extent, tile, [&](int64_t position, int64_t offset, int64_t length) {
        for (int64_t j = 0; j < length; ++j) values[i][position + j] = offset + j * step;
      });
    }
  }
};

// Calls each(first element, elements, chunks) for the blocks whose rows fit into the buffer.
template <class T, class Each>
void for_each_block(int64_t elements, const SplineOptions& o, Each each) {
  constexpr int64_t L = Lanes<T>::count;
  const int64_t block = L * std::clamp<int64_t>(most_rows / o.values(), 1, most_chunks);
  for (int64_t first = 0; first < elements; first += block) {
    const int64_t count = std::min(block, elements - first);
    each(first, count, (count + L - 1) / L);
  }
}

// Calls each(data, stride, offsets, lanes, how many, rows) for all chunks of a block: gather_chunk
// or scatter_chunk.
template <class S, class T, class Each>
void for_each_parameter(const SplineParameters& p, const TileOffsets& offsets,
                        const SplineOptions& o, int64_t first, int64_t count, T* rows, Each each) {
  constexpr int64_t L = Lanes<T>::count;
  S* const data[3] = {static_cast<S*>(p.widths.first.data), static_cast<S*>(p.heights.first.data),
                      static_cast<S*>(p.derivatives.first.data)};
  const int64_t bins = o.bins, slopes = o.slopes();
  for (int64_t i = 0; i < count; i += L, rows += o.values() * L) {
    const int64_t at = first + i, lanes = std::min(L, count - i);
    each(data[0], p.widths.stride, offsets.of[0] + at, lanes, bins, rows);
    each(data[1], p.heights.stride, offsets.of[1] + at, lanes, bins, rows + bins * L);
    if (slopes > 0) {
      each(data[2], p.derivatives.stride, offsets.of[2] + at, lanes, slopes, rows + 2 * bins * L);
    }
  }
}

// A block's part of a dense array, of whole chunks: in place, or a copy, filled up with zeros.
template <class T>
const T* whole_chunks(const T* values, int64_t count, T* buffer) {
  constexpr int64_t L = Lanes<T>::count;
  if (count % L == 0) return values;
  std::fill(std::copy_n(values, count, buffer), buffer + (count + L - 1) / L * L, T(0));
  return buffer;
}

template <class S, class T>
void forward_tile(const RationalQuadraticSpline& p, const SplineConstants<T>& c, const Tile& tile,
                  T* sums) {
  constexpr int64_t L = Lanes<T>::count;
  alignas(64) T rows[most_rows * L];
  T x_buffer[longest_tile], y_buffer[longest_tile], log[longest_tile];
  const TileOffsets offsets(p.parameters, p.extent, tile);
  const T* x = read_tile(p.x, p.storage, p.extent, tile, x_buffer);
  T* y = write_tile(p.y, p.storage, p.extent, tile, y_buffer);
  for_each_block<T>(tile.elements(), p.options, [&](int64_t first, int64_t count, int64_t chunks) {
    T x_chunks[most_chunks * L], y_chunks[most_chunks * L], log_chunks[most_chunks * L];
    for_each_parameter<S>(p.parameters, offsets, p.options, first, count, rows, gather_chunk<S, T>);
    const T* from = whole_chunks(x + first, count, x_chunks);
    const bool whole = count % L == 0;
    T* to = whole ? y + first : y_chunks;
    T* log_to = whole ? log + first : log_chunks;
    map_block(c, p.options, chunks, rows, from, to, log_to);
    if (!whole) {
      std::copy_n(y_chunks, count, y + first);
      std::copy_n(log_chunks, count, log + first);
    }
  });
  write_back(p.y, p.storage, p.extent, tile, y, y_buffer);
  sum_rows(log, tile.rows, tile.columns, sums);
}

template <class S, class T>
void forward(const RationalQuadraticSpline& p) {
  const SplineConstants<T> c = p.options.constants<T>();
  T* log_det = static_cast<T*>(p.log_det);
  const int64_t row = p.extent.row(), pieces = (row + piece_elements - 1) / piece_elements;
  std::vector<double> partial_sums(row > tile_elements_of_short_rows ? p.extent.batch * pieces : 0);
  for_each_tile(
      p.extent, piece_elements,
      [&](const Tile& tile) { forward_tile<S, T>(p, c, tile, log_det + tile.row); },
      [&](int64_t r, int64_t piece, int64_t begin, int64_t end) {
        double sum = 0;
        for (int64_t i = begin; i < end; i += longest_tile) {
          T tile_sum;
          forward_tile<S, T>(p, c, Tile{r, 1, i, std::min(longest_tile, end - i)}, &tile_sum);
          sum += tile_sum;
        }
        partial_sums[r * pieces + piece] = sum;
      },
      spline_grain);
  if (partial_sums.empty()) return;
  for (int64_t r = 0; r < p.extent.batch; ++r) {
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += partial_sums[r * pieces + piece];
    log_det[r] = static_cast<T>(sum);
  }
}

template <class S, class T>
void backward_tile(const RationalQuadraticSplineBackward& p, const SplineConstants<T>& c,
                   const Tile& tile) {
  constexpr int64_t L = Lanes<T>::count;
  alignas(64) T rows[most_rows * L];
  T x_buffer[longest_tile], g_buffer[longest_tile], input_buffer[longest_tile], l[longest_tile];
  const TileOffsets offsets(p.parameters, p.extent, tile);
  const TileOffsets gradient_offsets(p.gradients, p.extent, tile);
  const T* x = read_tile(p.x, p.storage, p.extent, tile, x_buffer);
  const T* g = read_tile(p.grad_output, p.storage, p.extent, tile, g_buffer);
  T* grad_input = write_tile(p.grad_input, p.storage, p.extent, tile, input_buffer);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T value = static_cast<const T*>(p.grad_log_det)[(tile.row + r) * p.grad_log_det_stride];
    std::fill_n(l + r * tile.columns, tile.columns, value);
  }
  for_each_block<T>(tile.elements(), p.options, [&](int64_t first, int64_t count, int64_t chunks) {
    T x_chunks[most_chunks * L], g_chunks[most_chunks * L], l_chunks[most_chunks * L];
    T input_chunks[most_chunks * L];
    for_each_parameter<S>(p.parameters, offsets, p.options, first, count, rows, gather_chunk<S, T>);
    T* to = count % L == 0 ? grad_input + first : input_chunks;
    map_gradient_block(c, p.options, chunks, rows, whole_chunks(x + first, count, x_chunks),
                       whole_chunks(g + first, count, g_chunks),
                       whole_chunks<T>(l + first, count, l_chunks), to);
    if (to == input_chunks) std::copy_n(input_chunks, count, grad_input + first);
    for_each_parameter<S>(p.gradients, gradient_offsets, p.options, first, count, rows,
                          scatter_chunk<S, T>);
  });
  write_back(p.grad_input, p.storage, p.extent, tile, grad_input, input_buffer);
}

template <class S, class T>
void backward(const RationalQuadraticSplineBackward& p) {
  const SplineConstants<T> c = p.options.constants<T>();
  for_each_tile(
      p.extent, piece_elements, [&](const Tile& tile) { backward_tile<S, T>(p, c, tile); },
      [&](int64_t r, int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i += longest_tile) {
          backward_tile<S, T>(p, c, Tile{r, 1, i, std::min(longest_tile, end - i)});
        }
      },
      spline_grain);
}

}  // namespace

void rational_quadratic_spline(const RationalQuadraticSpline& p) {
  switch (p.storage) {
    case Storage::f32:
      return forward<float, float>(p);
    case Storage::f64:
      return forward<double, double>(p);
    case Storage::bf16:
      return forward<c10::BFloat16, float>(p);
    case Storage::f16:
      return forward<c10::Half, float>(p);
  }
}

void rational_quadratic_spline_backward(const RationalQuadraticSplineBackward& p) {
  switch (p.storage) {
    case Storage::f32:
      return backward<float, float>(p);
    case Storage::f64:
      return backward<double, double>(p);
    case Storage::bf16:
      return backward<c10::BFloat16, float>(p);
    case Storage::f16:
      return backward<c10::Half, float>(p);
  }
}

}  // namespace deepgen::cpu
