// power_iteration on the GPU: all matrices in one launch for each of the three phases of a step.
//
// 1. A block owns a chunk of rows, eight at a time: a warp finds a row's product with v; then the
//    threads own columns and add the eight rows, which L1 and L2 still hold, to the chunk's v'. So
//    W is read from memory once. 2. A block adds the chunks of some columns. 3. A block a matrix
//    adds the squares and writes u, v and sigma. A last launch scales. Nothing is read back to the
//    host;
// what a kernel knows of the matrices goes with the launch. Partial sums lie where shapes say, and
// are added in order: no atomics, results repeat bit by bit.
#include "../power_iteration.h"
#include "rows.cuh"

namespace deepgen::cuda {
namespace {

constexpr int warps = block_threads / 32;
constexpr int64_t most_chunks = 64;
constexpr int64_t scale_elements = 8192;
// Tables are kernel arguments, of which there may be 4 KiB.
constexpr int most_matrices = 20;

template <class Matrix>
struct Table {
  Matrix matrices[most_matrices];
};

__host__ __device__ inline int64_t ceil_of(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
__host__ __device__ inline int64_t chunk_rows(const MatrixOperand& w) {
  return ceil_of(ceil_of(w.rows, most_chunks), warps) * warps;
}
__host__ __device__ inline int64_t chunks_of(const MatrixOperand& w) {
  return ceil_of(w.rows, chunk_rows(w));
}
__host__ __device__ inline int64_t blocks_of(const MatrixOperand& w) {
  return ceil_of(w.columns(), block_threads);
}

// A matrix's room: v' of each chunk, squares of u' of each chunk, squares of v' of each block.
template <class T>
struct Room {
  T *sums, *squares_u, *squares_v;
  __device__ explicit Room(const PowerMatrix& m)
      : sums(static_cast<T*>(m.partial)),
        squares_u(sums + chunks_of(m.weight) * m.weight.columns()),
        squares_v(squares_u + chunks_of(m.weight)) {}
};

// The sum of `count` values, in all threads.
template <class T>
__device__ T sum_of(const T* values, int64_t count) {
  T sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += block_threads) sum += values[i];
  sum = group_sum(sum, block_threads);
  DEEPGEN_SHARED(T, shared, 1);
  __syncthreads();
  if (threadIdx.x == 0) shared[0] = sum;
  __syncthreads();
  return shared[0];
}

// `given`: of the first step, u and v are those that came in. Later ones are read where they were
// written.
template <class S>
__global__ void __launch_bounds__(block_threads)
    multiply_kernel(Table<PowerMatrix> table, bool given, bool iterates) {
  using T = Compute<S>;
  const PowerMatrix& m = table.matrices[blockIdx.y];
  const MatrixOperand& w = m.weight;
  const int64_t chunk = blockIdx.x, first = chunk * chunk_rows(w), columns = w.columns();
  if (first >= w.rows) return;
  const int64_t end = first + chunk_rows(w), last = end < w.rows ? end : w.rows;
  const S* const data = static_cast<const S*>(w.data);
  const T* const v = static_cast<const T*>(given ? m.v : m.new_v);
  const T* const old_u = static_cast<const T*>(m.u);
  T* const u = static_cast<T*>(m.new_u);
  const Room<T> room(m);
  T* const sums = room.sums + chunk * columns;
  DEEPGEN_SHARED(T, products, warps);
  T square = 0;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int64_t row = first; row < last; row += warps) {
    T product = 0;
    if (row + warp < last) {
      const S* const from = data + (row + warp) * w.row_stride;
      for (int64_t k = lane; k < columns; k += 32) product += to_compute(from[w.offset(k)]) * v[k];
    }
    product = group_sum(product, 32);
    if (lane == 0) {
      products[warp] = product;
      // Without an iteration u stays, and the sum of squares is the product u'Wv.
      if (row + warp < last) {
        square += product * (iterates ? product : old_u[row + warp]);
        if (iterates) u[row + warp] = product;
      }
    }
    __syncthreads();
    if (iterates) {
      const int rows = static_cast<int>(last - row < warps ? last - row : warps);
      for (int64_t k = threadIdx.x; k < columns; k += block_threads) {
        const S* const from = data + row * w.row_stride + w.offset(k);
        T sum = row == first ? T(0) : sums[k];
        for (int i = 0; i < rows; ++i) sum += products[i] * to_compute(from[i * w.row_stride]);
        sums[k] = sum;
      }
    }
    __syncthreads();
  }
  square = group_sum(square, block_threads);
  if (threadIdx.x == 0) room.squares_u[chunk] = square;
}

// v' of the columns of a block; the v given is still needed where u' is 0, so the sum of the first
// chunk's place takes it.
template <class T>
__global__ void __launch_bounds__(block_threads) add_kernel(Table<PowerMatrix> table) {
  const PowerMatrix& m = table.matrices[blockIdx.y];
  const int64_t columns = m.weight.columns(), chunks = chunks_of(m.weight);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * block_threads;
  if (first >= columns) return;
  const Room<T> room(m);
  const int64_t k = first + threadIdx.x;
  T sum = 0;
  if (k < columns) {
    for (int64_t c = 0; c < chunks; ++c) sum += room.sums[c * columns + k];
    room.sums[k] = sum;
  }
  const T square = group_sum(sum * sum, block_threads);
  if (threadIdx.x == 0) room.squares_v[blockIdx.x] = square;
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    finish_kernel(Table<PowerMatrix> table, bool given, bool iterates, double eps, T* sigmas) {
  const PowerMatrix& m = table.matrices[blockIdx.x];
  const Room<T> room(m);
  const double square_u = sum_of(room.squares_u, chunks_of(m.weight));
  T *const u = static_cast<T*>(m.new_u), *const v = static_cast<T*>(m.new_v);
  const T *const old_u = static_cast<const T*>(m.u), *const old_v = static_cast<const T*>(m.v);
  PowerScales scales{square_u, 1, 1, false};
  if (iterates) scales = power_scales(square_u, sum_of(room.squares_v, blocks_of(m.weight)), eps);
  const bool moves = iterates && (scales.moves || square_u != square_u);
  if (threadIdx.x == 0) sigmas[m.index] = static_cast<T>(scales.sigma);
  for (int64_t i = threadIdx.x; i < m.weight.rows; i += block_threads)
    u[i] = moves ? static_cast<T>(u[i] * scales.u) : old_u[i];
  for (int64_t k = threadIdx.x; k < m.weight.columns(); k += block_threads) {
    if (moves)
      v[k] = static_cast<T>(room.sums[k] * scales.v);
    else if (given)
      v[k] = old_v[k];
  }
}

template <class S>
__global__ void __launch_bounds__(block_threads)
    scale_kernel(Table<PowerMatrix> table, const Compute<S>* sigmas, double coefficient) {
  using T = Compute<S>;
  const PowerMatrix& m = table.matrices[blockIdx.y];
  const int64_t count = m.weight.rows * m.weight.columns();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * scale_elements;
  const int64_t last = first + scale_elements < count ? first + scale_elements : count;
  const T factor = spectral_factor(sigmas[m.index], coefficient);
  const S* const from = static_cast<const S*>(m.elements);
  S* const to = static_cast<S*>(m.scaled);
  for (int64_t i = first + threadIdx.x; i < last; i += block_threads)
    to[i] = to_storage<S>(factor * to_compute(from[i]));
}

// ---- The gradient. A piece is some of the matrix's elements, row by row.

__host__ __device__ inline int64_t pieces_of(const MatrixOperand& w) {
  return ceil_of(w.rows * w.columns(), scale_elements);
}

// Calls each(offset, row, column) for a thread's elements of a piece.
template <class Each>
__device__ void for_each_element(const MatrixOperand& w, int64_t piece, Each each) {
  const int64_t columns = w.columns(), count = w.rows * columns;
  const int64_t end = (piece + 1) * scale_elements, last = end < count ? end : count;
  for (int64_t i = piece * scale_elements + threadIdx.x; i < last; i += block_threads) {
    const int64_t row = i / columns, column = i % columns;
    each(row * w.row_stride + w.offset(column), row, column);
  }
}

template <class S>
__global__ void __launch_bounds__(block_threads) product_kernel(Table<ScaledGradient> table) {
  using T = Compute<S>;
  const ScaledGradient& m = table.matrices[blockIdx.y];
  if (blockIdx.x >= pieces_of(m.weight)) return;
  const S *const g = static_cast<const S*>(m.grad), *const w = static_cast<const S*>(m.weight.data);
  T sum = 0;
  for_each_element(m.weight, blockIdx.x, [&](int64_t at, int64_t, int64_t) {
    sum += to_compute(g[at]) * to_compute(w[at]);
  });
  sum = group_sum(sum, block_threads);
  if (threadIdx.x == 0) static_cast<T*>(m.partial)[blockIdx.x] = sum;
}

template <class S>
__global__ void __launch_bounds__(block_threads)
    gradient_kernel(Table<ScaledGradient> table, const Compute<S>* sigmas,
                    const Compute<S>* grad_sigmas, double coefficient) {
  using T = Compute<S>;
  const ScaledGradient& m = table.matrices[blockIdx.y];
  if (blockIdx.x >= pieces_of(m.weight)) return;
  const T sigma = sigmas[m.index], factor = spectral_factor(sigma, coefficient);
  const T product = sum_of(static_cast<const T*>(m.partial), pieces_of(m.weight));
  T rank_one = grad_sigmas[m.index];
  if (depends_on_sigma(sigma, coefficient)) rank_one -= factor * product / sigma;
  const S* const g = static_cast<const S*>(m.grad);
  const T *const u = static_cast<const T*>(m.u), *const v = static_cast<const T*>(m.v);
  S* const to = static_cast<S*>(m.grad_weight);
  for_each_element(m.weight, blockIdx.x, [&](int64_t at, int64_t row, int64_t column) {
    to[at] = to_storage<S>(factor * to_compute(g[at]) + rank_one * u[row] * v[column]);
  });
}

// run(table, count, most) for tables of matrices; most(f) is the largest f(weight).
template <class Matrix, class Run>
void for_each_table(const Matrix* matrices, int64_t count, Run run) {
  static_assert(sizeof(Table<Matrix>) + 64 <= 4096);
  for (int64_t first = 0; first < count; first += most_matrices) {
    const int size =
        static_cast<int>(count - first < most_matrices ? count - first : most_matrices);
    Table<Matrix> table{};
    for (int i = 0; i < size; ++i) table.matrices[i] = matrices[first + i];
    run(table, size, [&](int64_t (*f)(const MatrixOperand&)) {
      int64_t most = 0;
      for (int i = 0; i < size; ++i) {
        const int64_t value = f(table.matrices[i].weight);
        if (value > most) most = value;
      }
      return static_cast<unsigned>(most);
    });
  }
}

template <class S>
void iterate(const PowerIteration& p, cudaStream_t stream) {
  using T = Compute<S>;
  T* const sigmas = static_cast<T*>(p.sigmas);
  for_each_table(p.matrices, p.count, [&](const Table<PowerMatrix>& table, int size, auto most) {
    const unsigned count = static_cast<unsigned>(size);
    const dim3 block(block_threads);
    const bool iterates = p.iterations > 0;
    for (int64_t k = 0; k < (iterates ? p.iterations : 1); ++k) {
      launch(multiply_kernel<S>, dim3(most(chunks_of), count), block, 0, stream, table, k == 0,
             iterates);
      if (iterates) launch(add_kernel<T>, dim3(most(blocks_of), count), block, 0, stream, table);
      launch(finish_kernel<T>, dim3(count), block, 0, stream, table, k == 0, iterates, p.eps,
             sigmas);
    }
    if (table.matrices[0].scaled) {
      launch(scale_kernel<S>, dim3(most(pieces_of), count), block, 0, stream, table,
             static_cast<const T*>(sigmas), p.coefficient);
    }
  });
}

template <class S>
void differentiate(const PowerIterationBackward& p, cudaStream_t stream) {
  for_each_table(p.matrices, p.count, [&](const Table<ScaledGradient>& table, int size, auto most) {
    const dim3 grid(most(pieces_of), static_cast<unsigned>(size)), block(block_threads);
    launch(product_kernel<S>, grid, block, 0, stream, table);
    launch(gradient_kernel<S>, grid, block, 0, stream, table,
           static_cast<const Compute<S>*>(p.sigmas), static_cast<const Compute<S>*>(p.grad_sigmas),
           p.coefficient);
  });
}

}  // namespace

int64_t power_scratch(const MatrixOperand& w) {
  return chunks_of(w) * (w.columns() + 1) + blocks_of(w);
}

int64_t gradient_scratch(const MatrixOperand& w) {
  return pieces_of(w);
}

void power_iteration(const PowerIteration& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  with_storage(p.storage, [&](auto s) { iterate<decltype(s)>(p, on); });
}

void power_iteration_backward(const PowerIterationBackward& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  with_storage(p.storage, [&](auto s) { differentiate<decltype(s)>(p, on); });
}

}  // namespace deepgen::cuda
