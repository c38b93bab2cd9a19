// One sample through autoregressive_inverse: a triangular product, bound by the memory that half of
// the weights come from, and by the chain x_i -> units of degree i + 1 -> parameters -> x_{i+1}.
//
// Nearly all weights meet columns that were known a few blocks before. Their dot products along
// rows (masked_product.h) are early sums: a second thread streams those weights while the first
// walks the chain. The columns that the last blocks made known, late ones, follow when a block is
// started; the block's own go term by term in ascending order: all terms but the last are ready
// early, so that the chain waits for one product a layer, and no vector is loaded over a scalar
// just stored. Where early ends depends on the degrees alone, so a sum is the same whoever computes
// it. Measured on 784 dimensions, hidden 512x2: 104 us a call on one thread, 72 on two. One block
// ahead gave 88: the threads waited for each other's cache lines at every block. On one thread, of
// 90 us the chain is 37, of which scale map and exponential 10, products 33 with weights in L1, the
// wait for weights 20; fetching the next rows ahead by hand gained nothing. Two such calls at a
// time took 124 us, not 90 (a background process beside them): two threads hinder each other, and
// the kernel of one call on both took about 63.
#pragma once

#include <atomic>

#include "../choice.h"
#include "autoregressive_tile.h"
#include "shared_work.h"

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

// Columns of layer l that the blocks before `block` make known, in whole vectors.
DEEPGEN_INLINE int64_t columns_of(const MaskedNetwork& net, int l, const Block& block) {
  return whole_vectors(net.known(l, block.begin));
}

// The early sums of all blocks, in pieces that any thread may compute once what they need is
// solved.
template <class T>
struct EarlySums {
  static constexpr int64_t ahead = 3, in_work = ahead + 1;  // blocks

  const MaskedNetwork& net;
  const std::vector<Block>& blocks;
  Room<T>& room;
  T* parameters[in_work];

  // Two pieces a block, about equal in weights: its hidden units, its parameters.
  static constexpr int64_t pieces = 2;
  alignas(64) std::atomic<int64_t> next{0};            // piece, in the order of blocks
  alignas(64) std::atomic<int64_t> solved{0};          // blocks
  alignas(64) std::atomic<int64_t> summed[in_work]{};  // pieces of each block in work

  T* sums(int l, int64_t block) const {
    return l == net.hidden ? parameters[block % in_work]
                           : room.values[l] + net.rows_below(l, blocks[block].begin);
  }

  // Adds the columns [from, to) that blocks before `block` know to its rows of layer l.
  DEEPGEN_INLINE void add(int l, int64_t block, int64_t from, int64_t to) const {
    const MaskedLayer& layer = net.layer[l];
    const int64_t begin = net.rows_below(l, blocks[block].begin);
    const int64_t rows = net.rows_below(l, blocks[block].end) - begin;
    multiply_one(static_cast<const T*>(layer.weight) + begin * layer.weight_stride + from,
                 layer.weight_stride, rows, to - from,
                 (l == 0 ? room.x : room.values[l - 1]) + from, sums(l, block));
  }

  int64_t early_columns(int l, int64_t block) const {
    return block < ahead ? 0 : columns_of(net, l, blocks[block - ahead]);
  }

  DEEPGEN_INLINE void compute(int64_t piece) {
    const int64_t block = piece / pieces;
    const bool of_parameters = piece % pieces != 0;
    for (int l = of_parameters ? net.hidden : 0; l < net.hidden + of_parameters; ++l) {
      const int64_t begin = net.rows_below(l, blocks[block].begin);
      const int64_t rows = net.rows_below(l, blocks[block].end) - begin;
      const T* bias = static_cast<const T*>(net.layer[l].bias) + begin;
      std::copy_n(bias, rows, sums(l, block));
      add(l, block, 0, early_columns(l, block));
    }
    summed[block % in_work].fetch_add(1, std::memory_order_release);
  }

  // Computes the next piece if all is known that it needs, and nobody else has taken it.
  DEEPGEN_INLINE bool compute_next() {
    int64_t piece = next.load(std::memory_order_relaxed);
    const int64_t known = solved.load(std::memory_order_acquire);
    const int64_t end = std::min<int64_t>(known + in_work, blocks.size()) * pieces;
    if (piece >= end || !next.compare_exchange_strong(piece, piece + 1)) return false;
    compute(piece);
    return true;
  }

  // All that blocks before this one add to its sums.
  DEEPGEN_INLINE void start(int64_t block) {
    std::atomic<int64_t>& done = summed[block % in_work];
    while (done.load(std::memory_order_acquire) != pieces) {
      if (!compute_next()) pause_thread();
    }
    done.store(0, std::memory_order_relaxed);
    for (int l = 0; l <= net.hidden; ++l)
      add(l, block, early_columns(l, block), columns_of(net, l, blocks[block]));
  }

  void help() {
    const int64_t end = static_cast<int64_t>(blocks.size()) * pieces;
    while (next.load(std::memory_order_relaxed) < end) {
      if (!compute_next()) pause_thread();
    }
  }
};

template <class T>
DEEPGEN_INLINE void solve_single(EarlySums<T>& early, const T* z, T* x, T* log_det) {
  const MaskedNetwork& net = early.net;
  Room<T>& room = early.room;
  const int hidden = net.hidden;
  const int64_t width = net.parameters;
  const T clamp = static_cast<T>(net.clamp);
  const SplineConstants<T> spline = constants_of<T>(net);
  double total = 0;
  for (size_t b = 0; b < early.blocks.size(); ++b) {
    const Block& block = early.blocks[b];
    early.start(b);
    for (int64_t i = block.begin; i < block.end; ++i) {
      for (int l = 0; l < hidden; ++l) {
        const int64_t known = columns_of(net, l, block), seen = net.seen(l, i);
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
      const int64_t known = columns_of(net, hidden, block), seen = net.seen(hidden, i);
      const T* w = static_cast<const T*>(layer.weight) + i * width * layer.weight_stride;
      T* parameters = early.sums(hidden, b) + (i - block.begin) * width;
      for (int64_t p = 0; p < width; ++p, w += layer.weight_stride)
        parameters[p] = sum_of_row(w, room.values[hidden - 1], known, seen, parameters[p]);
      room.x[i] = z[i];
      T log_derivative = 0;
      if (net.element == ElementMap::affine) {
        with_scale_map(net.scale_map, [&](auto m) DEEPGEN_INLINE_CALL {
          invert_affine<m(), T>(1, parameters, parameters + 1, clamp, room.x + i, &log_derivative);
        });
      } else {
        if (net.element == ElementMap::softclip_spline)
          soften_spline<T>(clamp, net.bins, StridedValues<T>{parameters, 1});
        spline_of_one<true>(spline, net.bins, z[i], parameters, 1, room.bins, 1, room.x + i,
                            &log_derivative);
      }
      total += log_derivative;
      x[i] = room.x[i];
    }
    early.solved.store(b + 1, std::memory_order_release);
  }
  *log_det = static_cast<T>(total);
}

DEEPGEN_SIMD void lead_one(EarlySums<float>& early, const float* z, float* x, float* log_det) {
  solve_single<float>(early, z, x, log_det);
}
DEEPGEN_SIMD void lead_one(EarlySums<double>& early, const double* z, double* x, double* log_det) {
  solve_single<double>(early, z, x, log_det);
}

// Two threads where the weights are worth the wake-up of the second.
template <class T>
void solve_one(const MaskedNetwork& net, const T* z, T* x, T* log_det) {
  constexpr int64_t weights_worth_a_thread = 1 << 17;
  const std::vector<Block> blocks = blocks_of(net);
  Room<T> room(net, blocks, 1, false);
  const std::unique_ptr<T[]> parameters(
      new T[EarlySums<T>::in_work * room.widest * net.parameters]);
  EarlySums<T> early{net, blocks, room};
  for (int64_t i = 0; i < EarlySums<T>::in_work; ++i)
    early.parameters[i] = parameters.get() + i * room.widest * net.parameters;
  int64_t weights = 0;
  for (int l = 0; l <= net.hidden; ++l)
    weights += net.layer[l].units * (l == 0 ? net.dimensions : net.layer[l - 1].units);
  const bool large = weights >= weights_worth_a_thread, two = large && at::get_num_threads() > 1;
  if (two)
    note_choice("chain, two threads", "one sample, 131072 weights or more");
  else
    note_choice("chain, one thread", large ? "one thread is allowed" : "one sample, few weights");
  lead_with_help(two ? 2 : 1, [&] { lead_one(early, z, x, log_det); }, [&] { early.help(); });
}

}  // namespace
}  // namespace deepgen::cpu
