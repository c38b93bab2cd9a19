// One sample through autoregressive_inverse: a triangular product, bound by the memory that half of
// the weights come from, and by the chain x_i -> units of degree i + 1 -> parameters -> x_{i+1}.
//
// What is known at the start of a block is added by dot products along rows (masked_product.h). The
// rest goes term by term in ascending order: all terms but the last are ready early, so that the
// chain waits for one product a layer, and no vector is loaded over a scalar just stored.
// (Prefetching the rows of the next block meanwhile was measured to cost more than it brings.)
#pragma once

#include "autoregressive_tile.h"

namespace deepgen::cpu {
namespace {

// Not inlined into the loop below: there the rows' pointers would not stay in registers.
DEEPGEN_SIMD __attribute__((noinline)) void multiply_one(const float* w, int64_t stride,
                                                         int64_t rows, int64_t columns,
                                                         const float* values, float* sums) {
  multiply_single<float>(w, stride, rows, columns, values, sums);
}
DEEPGEN_SIMD __attribute__((noinline)) void multiply_one(const double* w, int64_t stride,
                                                         int64_t rows, int64_t columns,
                                                         const double* values, double* sums) {
  multiply_single<double>(w, stride, rows, columns, values, sums);
}

template <class T>
DEEPGEN_INLINE T activation_of_one(Activation activation, T v) {
  switch (activation) {
    case Activation::elu:
      return activation_of<Activation::elu>(v);
    case Activation::tanh:
      return activation_of<Activation::tanh>(v);
    default:
      return activation_of<Activation::relu>(v);
  }
}

// What the dot products take; the few columns left over fit better into the chain.
DEEPGEN_INLINE int64_t whole_vectors(int64_t columns) {
  return columns & ~int64_t{15};
}

template <class T>
DEEPGEN_INLINE T sum_of_row(const T* w, const T* values, int64_t begin, int64_t end, T sum) {
  for (int64_t c = begin; c < end; ++c) sum += w[c] * values[c];
  return sum;
}

template <class T>
DEEPGEN_INLINE void solve_single(const MaskedNetwork& net, const std::vector<Block>& blocks,
                                 Room<T>& room, const T* z, T* x, T* log_det) {
  const int hidden = net.hidden;
  const int64_t width = net.parameters;
  const T clamp = static_cast<T>(net.clamp);
  const SplineConstants<T> spline = constants_of<T>(net);
  double total = 0;
  for (const Block& block : blocks) {
    for (int l = 0; l <= hidden; ++l) {
      const int64_t begin = net.rows_below(l, block.begin), end = net.rows_below(l, block.end);
      const MaskedLayer& layer = net.layer[l];
      T* sums = l == hidden ? room.parameters : room.values[l] + begin;
      const T* bias = static_cast<const T*>(layer.bias) + begin;
      for (int64_t r = 0; r < end - begin; ++r) sums[r] = bias[r];
      multiply_one(static_cast<const T*>(layer.weight) + begin * layer.weight_stride,
                   layer.weight_stride, end - begin, whole_vectors(net.known(l, block.begin)),
                   l == 0 ? room.x : room.values[l - 1], sums);
    }
    for (int64_t i = block.begin; i < block.end; ++i) {
      for (int l = 0; l < hidden; ++l) {
        const int64_t known = whole_vectors(net.known(l, block.begin)), seen = net.seen(l, i);
        const MaskedLayer& layer = net.layer[l];
        const T* below = l == 0 ? room.x : room.values[l - 1];
        T* values = room.values[l];
        for (int64_t u = net.first_unit(l, i), end = net.first_unit(l, i + 1); u < end; ++u) {
          const T* w = static_cast<const T*>(layer.weight) + u * layer.weight_stride;
          T value = sum_of_row(w, below, known, seen, values[u]);
          if (net.on_stream(l)) {
            if (l > 0) value += room.stream[u];
            room.stream[u] = value;
          }
          values[u] = net.passes_raw(l) ? value : activation_of_one(net.activation, value);
        }
      }
      const MaskedLayer& layer = net.layer[hidden];
      const int64_t known = whole_vectors(net.known(hidden, block.begin));
      const int64_t seen = net.seen(hidden, i);
      const T* w = static_cast<const T*>(layer.weight) + i * width * layer.weight_stride;
      T* parameters = room.parameters + (i - block.begin) * width;
      for (int64_t p = 0; p < width; ++p, w += layer.weight_stride)
        parameters[p] = sum_of_row(w, room.values[hidden - 1], known, seen, parameters[p]);
      room.x[i] = z[i];
      T log_derivative = 0;
      if (net.element == ElementMap::affine) {
        with_scale_map(net.scale_map, [&](auto m) DEEPGEN_INLINE_CALL {
          invert_affine<m(), T>(1, parameters, parameters + 1, clamp, room.x + i, &log_derivative);
        });
      } else {
        spline_of_one<true>(spline, net.bins, z[i], parameters, 1, room.bins, 1, room.x + i,
                            &log_derivative);
      }
      total += log_derivative;
      x[i] = room.x[i];
    }
  }
  *log_det = static_cast<T>(total);
}

DEEPGEN_SIMD void solve_one(const MaskedNetwork& net, const std::vector<Block>& blocks,
                            Room<float>& room, const float* z, float* x, float* log_det) {
  solve_single<float>(net, blocks, room, z, x, log_det);
}
DEEPGEN_SIMD void solve_one(const MaskedNetwork& net, const std::vector<Block>& blocks,
                            Room<double>& room, const double* z, double* x, double* log_det) {
  solve_single<double>(net, blocks, room, z, x, log_det);
}

}  // namespace
}  // namespace deepgen::cpu
