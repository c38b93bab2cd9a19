// A tile of samples on its way through a masked network: what autoregressive_inverse and its
// adjoint share. All activations are unit-major: value u of sample s lies at [u * lanes + s].
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "../autoregressive_inverse.h"
#include "masked_elements.h"

namespace deepgen::cpu {

// Dimensions [begin, end), and the units of these degrees.
struct Block {
  int64_t begin, end;
};

// Short, so that little work is left to the degree-by-degree part, but with enough rows for the
// product's tiles. Depends on the degrees alone: with them the order of all sums is fixed.
inline std::vector<Block> blocks_of(const MaskedNetwork& net) {
  constexpr int64_t most_dimensions = 16, most_units = 32;
  std::vector<Block> blocks;
  for (int64_t begin = 0; begin < net.dimensions;) {
    int64_t end = begin + 1;
    const auto fits = [&](int64_t limit) {
      if (limit - begin > most_dimensions) return false;
      for (int l = 0; l < net.hidden; ++l) {
        if (net.first_unit(l, limit) - net.first_unit(l, begin) > most_units) return false;
      }
      return true;
    };
    while (end < net.dimensions && fits(end + 1)) ++end;
    blocks.push_back({begin, end});
    begin = end;
  }
  return blocks;
}

// A thread's memory.
template <class T>
struct Room {
  std::unique_ptr<T[]> memory;
  T *x, *z, *stream, *parameters, *single, *bins;
  std::vector<T*> values, cotangents;
  std::vector<double> log_det;
  int64_t widest = 1;  // dimensions of a block

  Room(const MaskedNetwork& net, const std::vector<Block>& blocks, int64_t lanes, bool adjoint) {
    for (const Block& block : blocks) widest = std::max(widest, block.end - block.begin);
    const int64_t outputs = (adjoint ? net.dimensions : widest) * net.parameters;
    const int64_t stream_units = net.residual ? net.layer[0].units : 0;
    int64_t size = net.dimensions + stream_units + outputs + 1 + 2 * net.bins;
    for (int l = 0; l < net.hidden; ++l) size += (adjoint ? 2 : 1) * net.layer[l].units;
    if (adjoint) size += 2 * net.dimensions + net.dimensions * net.parameters;
    memory.reset(new T[size * lanes]);
    T* next = memory.get();
    const auto take = [&](int64_t units) { return std::exchange(next, next + units * lanes); };
    x = take(net.dimensions);
    z = take(adjoint ? net.dimensions : 0);
    stream = take(stream_units);
    parameters = take(outputs);
    single = take(1);
    bins = take(2 * net.bins);
    for (int l = 0; l < net.hidden; ++l) values.push_back(take(net.layer[l].units));
    if (adjoint) {
      for (int l = 0; l <= net.hidden; ++l) cotangents.push_back(take(net.layer[l].units));
      cotangents.push_back(take(net.dimensions));  // of x
    }
    log_det.resize(lanes);
  }
};

// rows of `from`, one of `columns` numbers a sample, to units side by side; empty lanes get zeros.
template <class T>
void load_units(const T* from, int64_t stride, int64_t columns, int64_t count, int64_t lanes,
                T* to) {
  for (int64_t s = 0; s < count; ++s) {
    for (int64_t u = 0; u < columns; ++u) to[u * lanes + s] = from[s * stride + u];
  }
  for (int64_t s = count; s < lanes; ++s) {
    for (int64_t u = 0; u < columns; ++u) to[u * lanes + s] = T(0);
  }
}

template <class T>
void store_units(const T* from, int64_t columns, int64_t count, int64_t lanes, T* to,
                 int64_t stride) {
  for (int64_t s = 0; s < count; ++s) {
    for (int64_t u = 0; u < columns; ++u) to[s * stride + u] = from[u * lanes + s];
  }
}

template <class T>
struct Tile {
  const MaskedNetwork& net;
  const std::vector<Block>& blocks;
  Room<T>& room;
  int64_t lanes, first, count;  // samples [first, first + count)

  const T* weight(int l, int64_t row, int64_t column) const {
    return static_cast<const T*>(net.layer[l].weight) + row * net.layer[l].weight_stride + column;
  }
  const T* values_below(int l) const { return l == 0 ? room.x : room.values[l - 1]; }

  // Sums of rows [begin, end) of layer l start with the bias.
  void start_rows(int l, int64_t begin, int64_t end, T* sums) const {
    const MaskedLayer& layer = net.layer[l];
    const T* bias = static_cast<const T*>(layer.bias);
    if (layer.bias_stride != 0) {
      load_units(bias + first * layer.bias_stride + begin, layer.bias_stride, end - begin, count,
                 lanes, sums);
      return;
    }
    for (int64_t u = begin; u < end; ++u, sums += lanes) std::fill_n(sums, lanes, bias[u]);
  }

  // Adds the values [from, to) of the layer below to rows [begin, end) of layer l.
  void add_values(int l, int64_t begin, int64_t end, int64_t from, int64_t to, T* sums) const {
    if (end <= begin || to <= from) return;
    multiply(weight(l, begin, from), net.layer[l].weight_stride, end - begin, to - from,
             values_below(l) + from * lanes, sums, lanes);
  }

  // From finished sums of units [begin, end) of layer l to what it passes on.
  void finish_units(int l, int64_t begin, int64_t end) const {
    T* values = room.values[l] + begin * lanes;
    const int64_t n = (end - begin) * lanes;
    if (net.on_stream(l)) {
      T* stream = room.stream + begin * lanes;
      if (l == 0) {
        std::copy_n(values, n, stream);
      } else {
        for (int64_t i = 0; i < n; ++i) values[i] = stream[i] += values[i];
      }
      if (net.passes_raw(l)) return;
    }
    activate(net.activation, n, values);
  }

  // All of a block that its dimensions' x are not needed for, then f(i) for each dimension once its
  // parameters are known. They are at `parameters`, whose first row is that of dimension `origin`.
  template <class F>
  void walk(const Block& block, T* parameters, int64_t origin, F f) const {
    const int64_t width = net.parameters;
    for (int l = 0; l <= net.hidden; ++l) {
      const int64_t begin = net.rows_below(l, block.begin), end = net.rows_below(l, block.end);
      if (end == begin) continue;
      T* sums = l == net.hidden ? parameters + (block.begin - origin) * width * lanes
                                : room.values[l] + begin * lanes;
      start_rows(l, begin, end, sums);
      add_values(l, begin, end, 0, net.known(l, block.begin), sums);
    }
    for (int64_t i = block.begin; i < block.end; ++i) {
      for (int l = 0; l < net.hidden; ++l) {
        const int64_t begin = net.first_unit(l, i), end = net.first_unit(l, i + 1);
        if (end == begin) continue;
        add_values(l, begin, end, net.known(l, block.begin), net.seen(l, i),
                   room.values[l] + begin * lanes);
        finish_units(l, begin, end);
      }
      const int l = net.hidden;
      T* of_dimension = parameters + (i - origin) * width * lanes;
      add_values(l, i * width, (i + 1) * width, net.known(l, block.begin), net.seen(l, i),
                 of_dimension);
      f(i, of_dimension);
    }
  }

  void solve(const T* z, T* x, T* log_det) const {
    const int64_t stride = net.dimensions;
    std::fill(room.log_det.begin(), room.log_det.end(), 0.0);
    for (const Block& block : blocks) {
      const int64_t offset = first * stride + block.begin, width = block.end - block.begin;
      T* const block_x = room.x + block.begin * lanes;
      load_units(z + offset, stride, width, count, lanes, block_x);
      walk(block, room.parameters, block.begin, [&](int64_t i, T* parameters) {
        invert_elements(net, lanes, parameters, room.x + i * lanes, room.bins, room.single);
        for (int64_t s = 0; s < lanes; ++s) room.log_det[s] += room.single[s];
      });
      store_units(block_x, width, count, lanes, x + offset, stride);
    }
    for (int64_t s = 0; s < count; ++s) log_det[first + s] = static_cast<T>(room.log_det[s]);
  }

  // All activations and parameters at a given x.
  void evaluate(const T* x) const {
    load_units(x + first * net.dimensions, net.dimensions, net.dimensions, count, lanes, room.x);
    for (const Block& block : blocks) walk(block, room.parameters, 0, [](int64_t, const T*) {});
  }

  // Adds, to the cotangents of the values of layer l - 1 that lie in [begin, end), what rows [from,
  // to) of layer l pass back.
  void add_cotangents(int l, int64_t begin, int64_t end, int64_t from, int64_t to, T* sums) const {
    if (end <= begin || to <= from) return;
    multiply_transposed(weight(l, from, begin), net.layer[l].weight_stride, end - begin, to - from,
                        room.cotangents[l] + from * lanes, sums, lanes);
  }

  // From finished cotangents of what units [begin, end) of layer l pass on to those of their sums.
  void finish_cotangents(int l, int64_t begin, int64_t end) const {
    T* cotangents = room.cotangents[l] + begin * lanes;
    const int64_t n = (end - begin) * lanes;
    if (net.passes_raw(l)) return;
    scale_by_slopes(net.activation, n, room.values[l] + begin * lanes, cotangents);
    if (net.on_stream(l)) {
      const T* stream = room.cotangents[l + 2] + begin * lanes;
      for (int64_t i = 0; i < n; ++i) cotangents[i] += stream[i];
    }
  }

  // Walks back over the degrees: what comes later is known first. Leaves the solution of J^T v = g
  // where the cotangents of x were, and the cotangents of all sums.
  void solve_adjoint(const AutoregressiveInverseAdjoint& p) const {
    const int64_t dimensions = net.dimensions, width = net.parameters;
    T* const of_x = room.cotangents.back();
    T* const grad_log_det = room.single;
    load_units(static_cast<const T*>(p.grad_x) + first * dimensions, dimensions, dimensions, count,
               lanes, of_x);
    load_units(static_cast<const T*>(p.z) + first * dimensions, dimensions, dimensions, count,
               lanes, room.z);
    load_units(static_cast<const T*>(p.grad_log_det) + first, 1, 1, count, lanes, grad_log_det);
    // The row of layer l from which on cotangents are known when the dimensions >= i are done.
    const auto known = [&](int l, int64_t i) { return net.rows_below(l, i); };
    for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
      const int64_t end = block->end;
      add_cotangents(0, block->begin, end, known(0, end), net.layer[0].units,
                     of_x + block->begin * lanes);
      for (int l = 1; l <= net.hidden; ++l) {
        const int64_t from = net.first_unit(l - 1, block->begin), to = net.first_unit(l - 1, end);
        T* sums = room.cotangents[l - 1] + from * lanes;
        std::fill_n(sums, (to - from) * lanes, T(0));
        add_cotangents(l, from, to, known(l, end), net.layer[l].units, sums);
      }
      for (int64_t i = end - 1; i >= block->begin; --i) {
        add_cotangents(0, i, i + 1, known(0, i + 1), known(0, end), of_x + i * lanes);
        adjoint_elements(net, lanes, room.parameters + i * width * lanes, room.z + i * lanes,
                         room.x + i * lanes, grad_log_det, room.bins, of_x + i * lanes,
                         room.cotangents[net.hidden] + i * width * lanes);
        for (int l = net.hidden; l > 0; --l) {
          const int64_t from = net.first_unit(l - 1, i), to = net.first_unit(l - 1, i + 1);
          if (to == from) continue;
          add_cotangents(l, from, to, known(l, i), known(l, end),
                         room.cotangents[l - 1] + from * lanes);
          finish_cotangents(l - 1, from, to);
        }
      }
    }
    store_units(of_x, dimensions, count, lanes, static_cast<T*>(p.grad_z) + first * dimensions,
                dimensions);
    for (int l = 0; l <= net.hidden; ++l) {
      const int64_t units = net.layer[l].units;
      store_units(room.cotangents[l], units, count, lanes,
                  static_cast<T*>(p.cotangents[l]) + first * units, units);
      if (l < net.hidden)
        store_units(room.values[l], units, count, lanes,
                    static_cast<T*>(p.values[l]) + first * units, units);
    }
  }
};

}  // namespace deepgen::cpu
