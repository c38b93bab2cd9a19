// power_iteration on the CPU.
//
// Floor: read W once for the iteration, read it and write the result for the scaling; memory bounds
// it. A chunk of rows is a piece of work: four rows at a time give their products with v, and are
// added to the chunk's v' while they are in L1 or L2. Matrices are taken in groups of a few MB, and
// scaled before the next group comes, so that where L3 holds a group W is read from memory once.
// Rows that do not lie side by side (transposed convolutions, channels-last weights) are gathered
// into L2 chunk by chunk. Chunks depend on shapes alone and are added in order: results do not
// depend on the number of threads.
#include "../power_iteration.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

namespace deepgen::cpu {
namespace {

constexpr int64_t chunk_elements = 128 * 1024;
constexpr int64_t column_block = 1024;
constexpr int64_t group_elements = 1024 * 1024;

// ---- Dense runs.

template <class T>
DEEPGEN_INLINE T dot_of(const T* __restrict a, const T* __restrict b, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

// u = W v.
template <class T>
DEEPGEN_INLINE void multiply_rows_of(const T* __restrict w, int64_t stride, int64_t rows, int64_t n,
                                     const T* __restrict v, T* __restrict u) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const T *w0 = w + i * stride, *w1 = w0 + stride, *w2 = w1 + stride, *w3 = w2 + stride;
    T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t k = 0; k < n; ++k) {
      s0 += w0[k] * v[k];
      s1 += w1[k] * v[k];
      s2 += w2[k] * v[k];
      s3 += w3[k] * v[k];
    }
    u[i] = s0, u[i + 1] = s1, u[i + 2] = s2, u[i + 3] = s3;
  }
  for (; i < rows; ++i) u[i] = dot_of(w + i * stride, v, n);
}

// u = W v, sums = W'u.
template <class T>
DEEPGEN_INLINE void iterate_rows_of(const T* __restrict w, int64_t stride, int64_t rows, int64_t n,
                                    const T* __restrict v, T* __restrict u, T* __restrict sums) {
  for (int64_t k = 0; k < n; ++k) sums[k] = 0;
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const T *w0 = w + i * stride, *w1 = w0 + stride, *w2 = w1 + stride, *w3 = w2 + stride;
    multiply_rows_of(w0, stride, 4, n, v, u + i);
    const T s0 = u[i], s1 = u[i + 1], s2 = u[i + 2], s3 = u[i + 3];
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
      sums[k] += (s0 * w0[k] + s1 * w1[k]) + (s2 * w2[k] + s3 * w3[k]);
    }
  }
  for (; i < rows; ++i) {
    const T* row = w + i * stride;
    const T s = u[i] = dot_of(row, v, n);
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) sums[k] += s * row[k];
  }
}

// sum = the sum of `count` vectors of n; returns its square.
template <class T>
DEEPGEN_INLINE double add_vectors_of(const T* __restrict vectors, int64_t count, int64_t stride,
                                     int64_t n, T* __restrict sum) {
  for (int64_t k = 0; k < n; ++k) sum[k] = vectors[k];
  for (int64_t c = 1; c < count; ++c) {
    const T* from = vectors + c * stride;
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) sum[k] += from[k];
  }
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t k = 0; k < n; ++k) square += static_cast<double>(sum[k]) * sum[k];
  return square;
}

// to = factor g + b a run of a rank-one matrix; `step` is that of b.
template <class T>
DEEPGEN_INLINE void gradient_run_of(const T* __restrict g, int64_t n, T factor, T a,
                                    const T* __restrict b, int64_t step, T* __restrict to) {
  if (step == 1) {
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) to[k] = factor * g[k] + a * b[k];
  } else {
    for (int64_t k = 0; k < n; ++k) to[k] = factor * g[k] + a * b[k * step];
  }
}

#define DEEPGEN_RUNS(T)                                                                            \
  DEEPGEN_SIMD void multiply_rows(const T* w, int64_t stride, int64_t rows, int64_t n, const T* v, \
                                  T* u) {                                                          \
    multiply_rows_of(w, stride, rows, n, v, u);                                                    \
  }                                                                                                \
  DEEPGEN_SIMD void iterate_rows(const T* w, int64_t stride, int64_t rows, int64_t n, const T* v,  \
                                 T* u, T* sums) {                                                  \
    iterate_rows_of(w, stride, rows, n, v, u, sums);                                               \
  }                                                                                                \
  DEEPGEN_SIMD double add_vectors(const T* vectors, int64_t count, int64_t stride, int64_t n,      \
                                  T* sum) {                                                        \
    return add_vectors_of(vectors, count, stride, n, sum);                                         \
  }                                                                                                \
  DEEPGEN_SIMD void scale_run(const T* __restrict x, int64_t n, T factor, T* __restrict y) {       \
    for (int64_t k = 0; k < n; ++k) y[k] = factor * x[k];                                          \
  }                                                                                                \
  DEEPGEN_SIMD double inner_product(const T* a, const T* b, int64_t n) {                           \
    double sum = 0;                                                                                \
    for (int64_t k = 0; k < n; k += 4096)                                                          \
      sum += dot_of(a + k, b + k, std::min<int64_t>(4096, n - k));                                 \
    return sum;                                                                                    \
  }                                                                                                \
  DEEPGEN_SIMD void gradient_run(const T* g, int64_t n, T factor, T a, const T* b, int64_t step,   \
                                 T* to) {                                                          \
    gradient_run_of(g, n, factor, a, b, step, to);                                                 \
  }
DEEPGEN_RUNS(float)
DEEPGEN_RUNS(double)
#undef DEEPGEN_RUNS

// ---- Pieces of work.

// each(piece) for all pieces, spread over the threads.
template <class Each>
void in_parallel(int64_t pieces, Each each) {
  at::parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) each(piece);
  });
}

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Calls run(first, last) for groups of matrices that are worked on together.
template <class Problem, class Run>
void for_each_group(const Problem& p, int64_t elements, Run run) {
  for (int64_t first = 0, last = 0; first < p.count; first = last) {
    int64_t size = 0;
    do {
      const MatrixOperand& w = p.matrices[last].weight;
      size += w.rows * w.columns();
      ++last;
    } while (last < p.count && size < elements);
    run(first, last);
  }
}

template <class T>
void gather_rows(const MatrixOperand& w, int64_t first, int64_t last, T* to) {
  const T* const data = static_cast<const T*>(w.data);
  const int64_t n = w.columns();
  // The longest dense runs that there are: of the columns, else of the rows.
  for (int64_t o = 0; o < w.outer; ++o) {
    for (int64_t i = first; i < last; ++i) {
      const T* const from = data + i * w.row_stride + o * w.outer_stride;
      T* const row = to + (i - first) * n + o * w.inner;
      for (int64_t k = 0; k < w.inner; ++k) row[k] = from[k * w.inner_stride];
    }
  }
}

// A piece of an iteration: a chunk of rows of a matrix, or a block of its columns.
struct Piece {
  int64_t matrix, index, first, last;
};

// One matrix on its way.
template <class T>
struct State {
  std::vector<T> v;     // of the iteration at work
  std::vector<T> sums;  // (chunks, columns)
  std::vector<double> squares_u, squares_v;
};

template <class T>
class Group {
 public:
  Group(const PowerIteration& p, int64_t first, int64_t last)
      : p_(p), base_(first), states_(last - first) {
    for (int64_t m = first; m < last; ++m) {
      const MatrixOperand& w = p.matrices[m].weight;
      const int64_t n = w.columns();
      const int64_t rows = std::max<int64_t>(8, ceil_div(chunk_elements, n) / 4 * 4);
      State<T>& state = states_[m - first];
      const T* const v = static_cast<const T*>(p.matrices[m].v);
      state.v.assign(v, v + n);
      const int64_t chunks = cut(m, w.rows, rows, row_pieces_);
      state.squares_u.resize(chunks);
      state.squares_v.resize(cut(m, n, column_block, column_pieces_));
      if (p.iterations > 0) state.sums.resize(chunks * n);
      if (p.matrices[m].scaled) cut(m, w.rows * n, chunk_elements, element_pieces_);
    }
  }

  void run() {
    for (int64_t k = 0; k < std::max<int64_t>(p_.iterations, 1); ++k) {
      in_parallel(row_pieces_.size(), [&](int64_t i) { multiply(row_pieces_[i]); });
      if (p_.iterations > 0)
        in_parallel(column_pieces_.size(), [&](int64_t i) { add(column_pieces_[i]); });
      for (size_t m = 0; m < states_.size(); ++m) finish(m, k + 1 >= p_.iterations);
    }
    in_parallel(element_pieces_.size(), [&](int64_t i) { scale(element_pieces_[i]); });
  }

 private:
  int64_t cut(int64_t matrix, int64_t size, int64_t length, std::vector<Piece>& pieces) {
    int64_t count = 0;
    for (int64_t i = 0; i < size; i += length)
      pieces.push_back({matrix, count++, i, std::min(i + length, size)});
    return count;
  }

  void multiply(const Piece& piece) {
    const PowerMatrix& matrix = p_.matrices[piece.matrix];
    const MatrixOperand& w = matrix.weight;
    State<T>& state = states_[piece.matrix - base_];
    const int64_t n = w.columns(), rows = piece.last - piece.first;
    const T* from = static_cast<const T*>(w.data) + piece.first * w.row_stride;
    int64_t stride = w.row_stride;
    std::vector<T> gathered;
    if (!w.has_dense_rows()) {
      gathered.resize(rows * n);
      gather_rows(w, piece.first, piece.last, gathered.data());
      from = gathered.data();
      stride = n;
    }
    T* const u = static_cast<T*>(matrix.new_u) + piece.first;
    if (p_.iterations == 0) {
      multiply_rows(from, stride, rows, n, state.v.data(), u);
      state.squares_u[piece.index] =
          inner_product(static_cast<const T*>(matrix.u) + piece.first, u, rows);
    } else {
      iterate_rows(from, stride, rows, n, state.v.data(), u, state.sums.data() + piece.index * n);
      double square = 0;
      for (int64_t i = 0; i < rows; ++i) square += static_cast<double>(u[i]) * u[i];
      state.squares_u[piece.index] = square;
    }
  }

  void add(const Piece& piece) {
    const PowerMatrix& matrix = p_.matrices[piece.matrix];
    State<T>& state = states_[piece.matrix - base_];
    state.squares_v[piece.index] = add_vectors(
        state.sums.data() + piece.first, state.squares_u.size(), matrix.weight.columns(),
        piece.last - piece.first, static_cast<T*>(matrix.new_v) + piece.first);
  }

  // Norms u and v; on the last iteration, sigma.
  void finish(int64_t m, bool is_last) {
    const PowerMatrix& matrix = p_.matrices[base_ + m];
    State<T>& state = states_[m];
    const int64_t rows = matrix.weight.rows, n = matrix.weight.columns();
    T *const u = static_cast<T*>(matrix.new_u), *const v = static_cast<T*>(matrix.new_v);
    double square_u = 0, square_v = 0;
    for (const double square : state.squares_u) square_u += square;
    for (const double square : state.squares_v) square_v += square;
    PowerScales scales{square_u, 1, 1, false};
    if (p_.iterations > 0) scales = power_scales(square_u, square_v, p_.eps);
    if (scales.moves || std::isnan(square_u)) {
      for (int64_t i = 0; i < rows; ++i) u[i] = static_cast<T>(u[i] * scales.u);
      for (int64_t k = 0; k < n; ++k) v[k] = static_cast<T>(v[k] * scales.v);
      std::copy(v, v + n, state.v.begin());
    } else {
      std::copy_n(static_cast<const T*>(matrix.u), rows, u);
      std::copy(state.v.begin(), state.v.end(), v);
    }
    if (is_last) static_cast<T*>(p_.sigmas)[matrix.index] = static_cast<T>(scales.sigma);
  }

  void scale(const Piece& piece) {
    const PowerMatrix& matrix = p_.matrices[piece.matrix];
    const T factor =
        spectral_factor(static_cast<const T*>(p_.sigmas)[matrix.index], p_.coefficient);
    scale_run(static_cast<const T*>(matrix.elements) + piece.first, piece.last - piece.first,
              factor, static_cast<T*>(matrix.scaled) + piece.first);
  }

  const PowerIteration& p_;
  const int64_t base_;
  std::vector<State<T>> states_;
  std::vector<Piece> row_pieces_, column_pieces_, element_pieces_;
};

// ---- The gradient: <G, W> chunk by chunk, then the result, while G is in cache.

// The matrix's three dimensions in the order of memory, largest stride first. A step along one is a
// step of u, or of v.
struct Dimension {
  int64_t size, stride, u, v;
};

template <class T>
class GradientGroup {
 public:
  GradientGroup(const PowerIterationBackward& p, int64_t first, int64_t last)
      : p_(p), base_(first), products_(last - first) {
    for (int64_t m = first; m < last; ++m) {
      const MatrixOperand& w = p.matrices[m].weight;
      std::vector<Dimension> order = {{w.rows, w.row_stride, 1, 0},
                                      {w.outer, w.outer_stride, 0, w.inner},
                                      {w.inner, w.inner_stride, 0, 1}};
      std::stable_sort(order.begin(), order.end(), [](const Dimension& a, const Dimension& b) {
        return (a.size == 1) != (b.size == 1) ? a.size == 1 : a.stride > b.stride;
      });
      // Those of one element have no stride; they count as a whole of what is below them.
      for (int d = 2; d >= 0; --d) {
        if (order[d].size == 1)
          order[d].stride = d == 2 ? 1 : order[d + 1].size * order[d + 1].stride;
      }
      int64_t at = 0;
      while (at < 2 && order[at].size == 1) ++at;
      orders_.push_back(order);
      cut_at_.push_back(at);
      const int64_t length = std::max<int64_t>(1, chunk_elements / order[at].stride);
      int64_t count = 0;
      for (int64_t i = 0; i < order[at].size; i += length)
        pieces_.push_back({m, count++, i, std::min(i + length, order[at].size)});
      products_[m - first].resize(count);
    }
  }

  void run() {
    in_parallel(pieces_.size(), [&](int64_t i) { multiply(pieces_[i]); });
    in_parallel(pieces_.size(), [&](int64_t i) { write(pieces_[i]); });
  }

 private:
  bool scales(const ScaledGradient& matrix) const {
    return depends_on_sigma(static_cast<const T*>(p_.sigmas)[matrix.index], p_.coefficient);
  }

  void multiply(const Piece& piece) {
    const ScaledGradient& matrix = p_.matrices[piece.matrix];
    const int64_t m = piece.matrix - base_, stride = orders_[m][cut_at_[m]].stride;
    double& product = products_[m][piece.index];
    product = !scales(matrix)
                  ? 0
                  : inner_product(static_cast<const T*>(matrix.grad) + piece.first * stride,
                                  static_cast<const T*>(matrix.weight.data) + piece.first * stride,
                                  (piece.last - piece.first) * stride);
  }

  void write(const Piece& piece) {
    const ScaledGradient& matrix = p_.matrices[piece.matrix];
    const int64_t m = piece.matrix - base_;
    const T sigma = static_cast<const T*>(p_.sigmas)[matrix.index];
    const T factor = spectral_factor(sigma, p_.coefficient);
    double rank_one = static_cast<const T*>(p_.grad_sigmas)[matrix.index];
    if (scales(matrix)) {
      double product = 0;
      for (const double part : products_[m]) product += part;
      rank_one -= factor * product / sigma;
    }
    Dimension d[3];
    std::copy(orders_[m].begin(), orders_[m].end(), d);
    const T *const u = static_cast<const T*>(matrix.u), *const v = static_cast<const T*>(matrix.v);
    const T* const grad = static_cast<const T*>(matrix.grad);
    T* const to = static_cast<T*>(matrix.grad_weight);
    int64_t first[3] = {0, 0, 0}, last[3] = {d[0].size, d[1].size, d[2].size};
    first[cut_at_[m]] = piece.first;
    last[cut_at_[m]] = piece.last;
    for (int64_t i = first[0]; i < last[0]; ++i) {
      for (int64_t j = first[1]; j < last[1]; ++j) {
        const int64_t k = first[2], n = last[2] - k;
        const int64_t at = i * d[0].stride + j * d[1].stride + k;
        const T* const from_u = u + i * d[0].u + j * d[1].u + k * d[2].u;
        const T* const from_v = v + i * d[0].v + j * d[1].v + k * d[2].v;
        const bool along_u = d[2].u != 0;
        const T a = static_cast<T>(rank_one * (along_u ? *from_v : *from_u));
        gradient_run(grad + at, n, factor, a, along_u ? from_u : from_v, along_u ? 1 : d[2].v,
                     to + at);
      }
    }
  }

  const PowerIterationBackward& p_;
  const int64_t base_;
  std::vector<std::vector<double>> products_;
  std::vector<std::vector<Dimension>> orders_;
  std::vector<int64_t> cut_at_;
  std::vector<Piece> pieces_;
};

}  // namespace

void power_iteration(const PowerIteration& p) {
  for_each_group(p, group_elements, [&](int64_t first, int64_t last) {
    if (p.storage == Storage::f64)
      Group<double>(p, first, last).run();
    else
      Group<float>(p, first, last).run();
  });
}

void power_iteration_backward(const PowerIterationBackward& p) {
  for_each_group(p, group_elements / 2, [&](int64_t first, int64_t last) {
    if (p.storage == Storage::f64)
      GradientGroup<double>(p, first, last).run();
    else
      GradientGroup<float>(p, first, last).run();
  });
}

}  // namespace deepgen::cpu
