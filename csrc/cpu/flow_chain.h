// The CPU's walk through a chain of flows (flow_chain.h).
//
// A tile is 32 samples laid out element by element, [D][32], so that the samples are the lanes of
// the arithmetic and a step's parameters are broadcast. All K steps run while the tile is in cache.
// Products of what the steps stretch volume by are kept with their exponent apart: one logarithm a
// sample, not one a step. Backward runs forward again and keeps the tile's states, (K, D, 32), in
// L2; gradients of parameters are summed over a tile in lanes, over a piece of the batch in double,
// over pieces in order. Pieces do not depend on the number of threads, so neither do the sums.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../flow_chain.h"
#include "simd.h"

namespace deepgen::cpu {

constexpr int lanes = 32;
// Of the sums that go on from tile to tile; a piece's tiles are few enough to add up in float.
constexpr int kept_lanes = 8;
constexpr int64_t tiles_per_sum = 8;
constexpr int64_t samples_per_piece = 256;
constexpr int64_t most_pieces = 64;

template <class S>
using ChainCompute = std::conditional_t<std::is_same_v<S, double>, double, float>;

// x = mantissa * 2^exponent with mantissa in [1, 2), for normal x > 0; exponents add up.
DEEPGEN_INLINE void take_exponent(float& x, float& exponent) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  exponent += static_cast<float>((bits >> 23) - 127);
  bits = (bits & 0x007fffff) | 0x3f800000;
  std::memcpy(&x, &bits, sizeof bits);
}
DEEPGEN_INLINE void take_exponent(double& x, double& exponent) {
  int64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  exponent += static_cast<double>(static_cast<int32_t>(bits >> 52) - 1023);
  bits = (bits & 0x000fffffffffffff) | 0x3ff0000000000000;
  std::memcpy(&x, &bits, sizeof bits);
}

// The logarithm of a product of positive numbers, for each lane.
template <class T>
struct LogProduct {
  T mantissa[lanes], exponent[lanes], not_finite[lanes];

  DEEPGEN_INLINE void clear() {
    for (int l = 0; l < lanes; ++l) mantissa[l] = 1, exponent[l] = 0, not_finite[l] = 0;
  }
  DEEPGEN_INLINE void multiply(const T* factor) {
    for (int l = 0; l < lanes; ++l) {
      not_finite[l] += factor[l] * T(0);  // the bits of a NaN are lost below
      T product = mantissa[l] * factor[l];
      take_exponent(product, exponent[l]);
      mantissa[l] = product;
    }
  }
  DEEPGEN_INLINE void add_to(T* sum, T weight) const {
    for (int l = 0; l < lanes; ++l) {
      sum[l] += weight * (exponent[l] * T(0.693147180559945309) +
                          log1p_of_unit(mantissa[l] - T(1)) + not_finite[l]);
    }
  }
};

// z: [features][lanes], replaced by the result. With `states`, (steps, features, lanes), the state
// before each step is kept there, and the sums (steps, lanes) it depends on.
template <class Step, class T, bool keeps>
DEEPGEN_INLINE void forward_tile_of(int64_t features, int64_t steps, const T* __restrict parameters,
                                    T* __restrict z, T* __restrict log_det, T* __restrict states,
                                    T* __restrict sums) {
  const int64_t width = Step::vectors * features + 2;
  LogProduct<T> last_product, others_product;
  if (!keeps) last_product.clear(), others_product.clear();
  for (int64_t k = 0; k < steps; ++k) {
    const T* v = parameters + k * width;
    const T* scalars = v + Step::vectors * features;
    T sum[lanes] = {};
    for (int64_t d = 0; d < features; ++d) {
      const T element[2] = {v[d], v[(Step::vectors - 1) * features + d]};
      const T* from = z + d * lanes;
      for (int l = 0; l < lanes; ++l) sum[l] += Step::term(element, from[l]);
      if (keeps) {
        T* state = states + (k * features + d) * lanes;
        for (int l = 0; l < lanes; ++l) state[l] = from[l];
      }
    }
    T factor[lanes], last[lanes], others[lanes];
    for (int l = 0; l < lanes; ++l) {
      Step::values(sum[l], scalars[0], scalars[1], factor[l], last[l], others[l]);
    }
    if (keeps) {
      for (int l = 0; l < lanes; ++l) sums[k * lanes + l] = sum[l];
    } else {
      last_product.multiply(last);
      if (Step::stretches_others) others_product.multiply(others);
    }
    for (int64_t d = 0; d < features; ++d) {
      const T element[2] = {v[d], v[(Step::vectors - 1) * features + d]};
      T* to = z + d * lanes;
      for (int l = 0; l < lanes; ++l) to[l] = Step::move(element, to[l], factor[l]);
    }
  }
  if (!keeps) {
    for (int l = 0; l < lanes; ++l) log_det[l] = 0;
    last_product.add_to(log_det, T(1));
    if (Step::stretches_others) others_product.add_to(log_det, static_cast<T>(features - 1));
  }
}

// sums[0 .. 8) += the values of the lanes, four to each: vertical additions only.
template <class T>
DEEPGEN_INLINE void add_lanes(const T* __restrict values, T* __restrict sums) {
  for (int j = 0; j < kept_lanes; ++j) {
    sums[j] += (values[j] + values[j + kept_lanes]) +
               (values[j + 2 * kept_lanes] + values[j + 3 * kept_lanes]);
  }
}

// g: [features][lanes], the gradient of the result, replaced by that of the input. by_parameters,
// (steps, P, kept_lanes), has the sums over the lanes added.
template <class Step, class T>
DEEPGEN_INLINE void backward_tile_of(int64_t features, int64_t steps,
                                     const T* __restrict parameters, const T* __restrict states,
                                     const T* __restrict sums, const T* __restrict grad_log_det,
                                     T* __restrict g, T* __restrict by_parameters) {
  const int64_t width = Step::vectors * features + 2;
  for (int64_t k = steps - 1; k >= 0; --k) {
    const T* v = parameters + k * width;
    const T* scalars = v + Step::vectors * features;
    const T* state = states + k * features * lanes;
    T* by_vectors = by_parameters + k * width * kept_lanes;
    T* by_scalars = by_vectors + Step::vectors * features * kept_lanes;
    T pulled[lanes] = {};
    for (int64_t d = 0; d < features; ++d) {
      const T element[2] = {v[d], v[(Step::vectors - 1) * features + d]};
      for (int l = 0; l < lanes; ++l) {
        pulled[l] += g[d * lanes + l] * Step::lever(element, state[d * lanes + l]);
      }
    }
    T factor[lanes], coefficient[lanes], first[lanes], second[lanes];
    for (int l = 0; l < lanes; ++l) {
      Step::gradient(sums[k * lanes + l], scalars[0], scalars[1], static_cast<T>(features),
                     pulled[l], grad_log_det[l], factor[l], coefficient[l], first[l], second[l]);
    }
    add_lanes(first, by_scalars);
    add_lanes(second, by_scalars + kept_lanes);
    for (int64_t d = 0; d < features; ++d) {
      const T element[2] = {v[d], v[(Step::vectors - 1) * features + d]};
      for (int l = 0; l < lanes; ++l) {
        Step::pull(element, state[d * lanes + l], factor[l], coefficient[l], g[d * lanes + l],
                   first[l], second[l]);
      }
      add_lanes(first, by_vectors + d * kept_lanes);
      if (Step::vectors == 2) add_lanes(second, by_vectors + (features + d) * kept_lanes);
    }
  }
}

// Rows [first, first + count) of a tensor as [features][lanes], and back; absent samples are zeros.
template <class S, class T>
void gather_samples(const SampleOperand& operand, int64_t first, int64_t count, int64_t features,
                    T* tile) {
  const S* data = static_cast<const S*>(operand.data) + first * operand.row;
  if (count < lanes) std::fill_n(tile, features * lanes, T(0));
  for (int64_t d = 0; d < features; ++d) {
    const S* column = data + d * operand.column;
    for (int64_t l = 0; l < count; ++l) {
      tile[d * lanes + l] = static_cast<T>(column[l * operand.row]);
    }
  }
}

template <class S, class T>
void scatter_samples(const SampleOperand& operand, int64_t first, int64_t count, int64_t features,
                     const T* tile) {
  S* data = static_cast<S*>(operand.data) + first * operand.row;
  for (int64_t l = 0; l < count; ++l) {
    for (int64_t d = 0; d < features; ++d) {
      data[l * operand.row + d * operand.column] = static_cast<S>(tile[d * lanes + l]);
    }
  }
}

// Each op's object compiles the tiles once for every instruction set, and these call them.
#define DEEPGEN_CHAIN_TILES(Step, T)                                                            \
  DEEPGEN_SIMD void forward_tile(int64_t features, int64_t steps, const T* parameters, T* z,    \
                                 T* log_det) {                                                  \
    forward_tile_of<Step, T, false>(features, steps, parameters, z, log_det, nullptr, nullptr); \
  }                                                                                             \
  DEEPGEN_SIMD void backward_tile(int64_t features, int64_t steps, const T* parameters, T* z,   \
                                  const T* grad_log_det, T* g, T* states, T* sums,              \
                                  T* by_parameters) {                                           \
    forward_tile_of<Step, T, true>(features, steps, parameters, z, nullptr, states, sums);      \
    backward_tile_of<Step, T>(features, steps, parameters, states, sums, grad_log_det, g,       \
                              by_parameters);                                                   \
  }

template <class S, class ForwardTile>
void run_forward(const FlowChain& p, ForwardTile forward_tile) {
  using T = ChainCompute<S>;
  const int64_t tiles = (p.batch + lanes - 1) / lanes;
  const int64_t work = lanes * (p.features + 8) * (p.steps + 1);
  at::parallel_for(0, tiles, std::max<int64_t>(1, 65536 / work), [&](int64_t begin, int64_t end) {
    std::vector<T> z(p.features * lanes);
    T log_det[lanes];
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * lanes, count = std::min<int64_t>(lanes, p.batch - first);
      gather_samples<S>(p.z, first, count, p.features, z.data());
      forward_tile(p.features, p.steps, static_cast<const T*>(p.parameters), z.data(), log_det);
      scatter_samples<S>(p.output, first, count, p.features, z.data());
      std::copy_n(log_det, count, static_cast<T*>(p.log_det) + first);
    }
  });
}

template <class S, class BackwardTile>
void run_backward(const FlowChainBackward& p, int64_t width, BackwardTile backward_tile) {
  using T = ChainCompute<S>;
  const int64_t tiles = (p.batch + lanes - 1) / lanes;
  const int64_t tiles_per_piece =
      std::max<int64_t>(samples_per_piece / lanes, (tiles + most_pieces - 1) / most_pieces);
  const int64_t pieces = (tiles + tiles_per_piece - 1) / tiles_per_piece;
  const int64_t size = p.steps * width;
  std::vector<double> sums_of_pieces(pieces * size);
  at::parallel_for(0, pieces, 1, [&](int64_t first_piece, int64_t last_piece) {
    const int64_t tile_size = p.features * lanes;
    std::vector<T> z(tile_size), g(tile_size), states(p.steps * tile_size), sums(p.steps * lanes);
    std::vector<T> by_parameters(size * kept_lanes);
    for (int64_t piece = first_piece; piece < last_piece; ++piece) {
      double* sums_of_piece = sums_of_pieces.data() + piece * size;
      const int64_t last = std::min(tiles, (piece + 1) * tiles_per_piece);
      for (int64_t tile = piece * tiles_per_piece; tile < last; ++tile) {
        const int64_t first = tile * lanes, count = std::min<int64_t>(lanes, p.batch - first);
        T grad_log_det[lanes] = {};
        std::copy_n(static_cast<const T*>(p.grad_log_det) + first, count, grad_log_det);
        gather_samples<S>(p.z, first, count, p.features, z.data());
        gather_samples<S>(p.grad_output, first, count, p.features, g.data());
        backward_tile(p.features, p.steps, static_cast<const T*>(p.parameters), z.data(),
                      grad_log_det, g.data(), states.data(), sums.data(), by_parameters.data());
        scatter_samples<S>(p.grad_z, first, count, p.features, g.data());
        if ((tile + 1) % tiles_per_sum != 0 && tile + 1 != last) continue;
        for (int64_t j = 0; j < size; ++j) {
          for (int i = 0; i < kept_lanes; ++i) {
            sums_of_piece[j] += by_parameters[j * kept_lanes + i];
          }
        }
        std::fill(by_parameters.begin(), by_parameters.end(), T(0));
      }
    }
  });
  T* grad_parameters = static_cast<T*>(p.grad_parameters);
  for (int64_t j = 0; j < size; ++j) {
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += sums_of_pieces[piece * size + j];
    grad_parameters[j] = static_cast<T>(sum);
  }
}

// Calls run(type) with a value of the storage type.
template <class Run>
void with_chain_storage(Storage storage, Run run) {
  switch (storage) {
    case Storage::f32:
      return run(float{});
    case Storage::f64:
      return run(double{});
    case Storage::bf16:
      return run(c10::BFloat16{});
    case Storage::f16:
      return run(c10::Half{});
  }
}

}  // namespace deepgen::cpu
