// block_triangular_linear on the GPU: three tiled products on CUDA cores, exact in float64.
//
// A block owns 64 x 64 results; 16 of the depth at a time go through shared memory, a thread keeps
// 4 x 4 sums. The depth is cut to what the tile sees: columns up to the last row's end (y), rows
// from the first that sees the tile's first column on (the gradient of x), the whole batch or, for
// a tile that is wholly masked, nothing (the gradient of W). What is masked inside of a tile is
// never read. The sums over the batch for the bias ride on the tiles of the first columns. Each sum
// is one thread's, in ascending order: deterministic.
//
// Bound by arithmetic: 16 FLOP a float read from shared memory, half of the dense product's. It has
// no tensor cores: whether cuBLAS on a masked copy is faster is owed a measurement on a GPU, and
// nn.MaskedLinear goes there until it is made.
#include "../block_triangular_linear.h"
#include "rows.cuh"

namespace deepgen::cuda {
namespace {

constexpr int side = 64;  // of a block's tile
constexpr int step = 16;  // of the depth
constexpr int each = 4;   // a thread's sums are each x each

template <class S>
__device__ Compute<S> read(const RowOperand& m, int64_t row, int64_t column) {
  return to_compute(static_cast<const S*>(m.data)[row * m.stride + column]);
}

template <class S>
__device__ void write(const RowOperand& m, int64_t row, int64_t column, Compute<S> value) {
  static_cast<S*>(m.data)[row * m.stride + column] = to_storage<S>(value);
}

// W with its mask.
template <class S>
__device__ Compute<S> read_weight(const BlockTriangularLinear& p, int64_t row, int64_t column) {
  return row < p.rows && column < p.visible[row] ? read<S>(p.weight, row, column) : Compute<S>(0);
}

// The rows from the result on see column `column`.
__device__ int64_t first_row_seeing(const BlockTriangularLinear& p, int64_t column) {
  int64_t low = 0, high = p.rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (p.visible[middle] > column) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// A thread's part of a tile: results (row + a, column + b).
template <class T>
struct Sums {
  int64_t row, column;
  T value[each][each] = {};

  __device__ Sums()
      : row(static_cast<int64_t>(blockIdx.x) * side + threadIdx.x / (side / each) * each),
        column(static_cast<int64_t>(blockIdx.y) * side + threadIdx.x % (side / each) * each) {}

  // Adds the depths [begin, end): left(depth, row) right(depth, column), both defined for all rows
  // and columns of the tile. `seen(left)` gets each piece of the left side, step x side.
  template <class Left, class Right, class Seen>
  __device__ void add(int64_t begin, int64_t end, Left left, Right right, Seen seen) {
    DEEPGEN_SHARED(T, lefts, step * side);
    DEEPGEN_SHARED(T, rights, step * side);
    const int lane = threadIdx.x % side;
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * side;
    const int64_t first_column = static_cast<int64_t>(blockIdx.y) * side;
    for (int64_t d = begin; d < end; d += step) {
      for (int k = threadIdx.x / side; k < step; k += block_threads / side) {
        const bool inside = d + k < end;
        lefts[k * side + lane] = inside ? left(d + k, first_row + lane) : T(0);
        rights[k * side + lane] = inside ? right(d + k, first_column + lane) : T(0);
      }
      __syncthreads();
      seen(lefts);
      const int r = threadIdx.x / (side / each) * each, c = threadIdx.x % (side / each) * each;
      for (int k = 0; k < step; ++k) {
#pragma unroll
        for (int a = 0; a < each; ++a) {
#pragma unroll
          for (int b = 0; b < each; ++b)
            value[a][b] += lefts[k * side + r + a] * rights[k * side + c + b];
        }
      }
      __syncthreads();
    }
  }

  // store(row, column, sum) for what lies inside.
  template <class Store>
  __device__ void store(int64_t rows, int64_t columns, Store store) const {
    for (int a = 0; a < each; ++a) {
      for (int b = 0; b < each; ++b) {
        if (row + a < rows && column + b < columns) store(row + a, column + b, value[a][b]);
      }
    }
  }
};

__device__ int64_t tile_end(unsigned tile, int64_t size) {
  const int64_t end = (static_cast<int64_t>(tile) + 1) * side;
  return end < size ? end : size;
}

// Tiles (samples, rows).
template <class S>
__global__ void __launch_bounds__(block_threads) forward_kernel(BlockTriangularLinear p) {
  using T = Compute<S>;
  Sums<T> sums;
  sums.add(
      0, p.visible[tile_end(blockIdx.y, p.rows) - 1],
      [&](int64_t c, int64_t n) { return n < p.batch ? read<S>(p.x, n, c) : T(0); },
      [&](int64_t c, int64_t r) { return read_weight<S>(p, r, c); }, [](const T*) {});
  sums.store(p.batch, p.rows, [&](int64_t n, int64_t r, T sum) {
    write<S>(p.y, n, r, p.bias.data ? sum + read<S>(p.bias, n, r) : sum);
  });
}

// Tiles (samples, columns).
template <class S>
__global__ void __launch_bounds__(block_threads)
    grad_x_kernel(BlockTriangularLinear p, RowOperand grad_x) {
  using T = Compute<S>;
  Sums<T> sums;
  sums.add(
      first_row_seeing(p, static_cast<int64_t>(blockIdx.y) * side), p.rows,
      [&](int64_t r, int64_t n) { return n < p.batch ? read<S>(p.y, n, r) : T(0); },
      [&](int64_t r, int64_t c) { return read_weight<S>(p, r, c); }, [](const T*) {});
  sums.store(p.batch, p.columns, [&](int64_t n, int64_t c, T sum) { write<S>(grad_x, n, c, sum); });
}

// Tiles (rows, columns); those of the first columns sum the gradient of the bias as well.
template <class S>
__global__ void __launch_bounds__(block_threads)
    grad_weight_kernel(BlockTriangularLinear p, RowOperand grad_weight, S* grad_bias) {
  using T = Compute<S>;
  const bool with_bias = grad_bias && blockIdx.y == 0;
  const bool masked =
      static_cast<int64_t>(blockIdx.y) * side >= p.visible[tile_end(blockIdx.x, p.rows) - 1];
  const bool multiplies = grad_weight.data && !masked;
  T bias_sum = 0;
  Sums<T> sums;
  sums.add(
      0, multiplies || with_bias ? p.batch : 0,
      [&](int64_t n, int64_t r) { return r < p.rows ? read<S>(p.y, n, r) : T(0); },
      [&](int64_t n, int64_t c) { return multiplies && c < p.columns ? read<S>(p.x, n, c) : T(0); },
      [&](const T* lefts) {
        for (int k = 0; with_bias && threadIdx.x < side && k < step; ++k)
          bias_sum += lefts[k * side + threadIdx.x];
      });
  const int64_t row = static_cast<int64_t>(blockIdx.x) * side + threadIdx.x;
  if (with_bias && threadIdx.x < side && row < p.rows) grad_bias[row] = to_storage<S>(bias_sum);
  if (!grad_weight.data) return;
  sums.store(p.rows, p.columns, [&](int64_t r, int64_t c, T sum) {
    write<S>(grad_weight, r, c, c < p.visible[r] ? sum : T(0));
  });
}

dim3 tiles(int64_t rows, int64_t columns) {
  return dim3((rows + side - 1) / side, (columns + side - 1) / side);
}

}  // namespace

void block_triangular_linear(const BlockTriangularLinear& p, void* stream) {
  with_storage(p.storage, [&](auto type) {
    launch(forward_kernel<decltype(type)>, tiles(p.batch, p.rows), dim3(block_threads), 0,
           static_cast<cudaStream_t>(stream), p);
  });
}

void block_triangular_linear_backward(const BlockTriangularLinearBackward& p, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const BlockTriangularLinear& forward = p.forward;
  with_storage(forward.storage, [&](auto type) {
    using S = decltype(type);
    if (p.grad_x.data) {
      launch(grad_x_kernel<S>, tiles(forward.batch, forward.columns), dim3(block_threads), 0,
             stream, forward, p.grad_x);
    }
    if (p.grad_weight.data || p.grad_bias) {
      launch(grad_weight_kernel<S>, tiles(forward.rows, p.grad_weight.data ? forward.columns : 1),
             dim3(block_threads), 0, stream, forward, p.grad_weight, static_cast<S*>(p.grad_bias));
    }
  });
}

}  // namespace deepgen::cuda
