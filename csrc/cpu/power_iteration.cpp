// power_iteration on the CPU.
//
// Floor: read W once for the iteration, read it and write the result for the scaling; memory bounds
// it. A chunk of rows is a piece of work: four rows at a time give their products with v, and are
// added to the chunk's v' while they are in L1 or L2. Matrices are taken in groups of a few MB, and
// scaled before the next group comes, so that where L3 holds a group W is read from memory once.
// Of a transpose, whose columns are dense, a chunk is a panel of the matrix that lies there: its
// lines are added up, weighted by v, and multiplied with that sum. Rows that do not lie side by
// side otherwise (transposed convolutions, channels-last weights), and those in half precision, are
// gathered into L2 chunk by chunk as floats. Chunks depend on shapes alone and
// are added in order: results do not depend on the number of threads.
//
// Measured on two cores, 20 convolutions of 12 M weights: 1.06 times a copy that reads W twice and
// writes it once, the norms alone 0.57 of it. What is left above the reads is the system's work of
// handing out zeroed pages for fresh outputs: half of the forward's time or more. Prefetching the
// next four rows while these are added made the iteration 10 % slower.
#include "../power_iteration.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../choice.h"
#include "power_gradient.h"
#include "power_runs.h"

namespace deepgen::cpu {
namespace {

constexpr int64_t column_block = 1024;
constexpr int64_t group_elements = 1024 * 1024;

template <class S>
void gather_rows(const MatrixOperand& w, int64_t first, int64_t last, Wide<S>* to) {
  const S* const data = static_cast<const S*>(w.data);
  const int64_t n = w.columns();
  // The longest dense runs that there are: of the columns, else of the rows.
  for (int64_t o = 0; o < w.outer; ++o) {
    for (int64_t i = first; i < last; ++i) {
      const S* const from = data + i * w.row_stride + o * w.outer_stride;
      widen(from, w.inner, w.inner_stride, to + (i - first) * n + o * w.inner);
    }
  }
}

// One matrix on its way.
template <class T>
struct State {
  std::vector<T> v;     // of the iteration at work
  std::vector<T> sums;  // (chunks, columns)
  std::vector<double> squares_u, squares_v;
};

template <class S>
class Group {
  using T = Wide<S>;

 public:
  Group(const PowerIteration& p, int64_t first, int64_t last)
      : p_(p), base_(first), states_(last - first) {
    for (int64_t m = first; m < last; ++m) {
      const MatrixOperand& w = p.matrices[m].weight;
      if (!std::is_same_v<S, T>)
        note_choice("gathered as floats", "half precision");
      else if (w.has_dense_rows())
        note_choice("rows in place", "they are dense");
      else if (w.has_dense_columns())
        note_choice("columns in place", "they are dense");
      else
        note_choice("rows gathered", "they do not lie side by side");
      const int64_t n = w.columns();
      const int64_t fewest = w.has_dense_columns() ? 64 : 8;
      const int64_t rows = std::max<int64_t>(fewest, ceil_div(chunk_elements, n) / 4 * 4);
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
    const T* const v = state.v.data();
    T* const u = static_cast<T*>(matrix.new_u) + piece.first;
    T* const sums = p_.iterations > 0 ? state.sums.data() + piece.index * n : nullptr;
    if (std::is_same_v<S, T> && !w.has_dense_rows() && w.has_dense_columns()) {
      iterate_columns(from, w.inner_stride, rows, n, v, u, sums);
    } else {
      int64_t stride = w.row_stride;
      std::vector<T> gathered;
      if (!std::is_same_v<S, T> || !w.has_dense_rows()) {
        gathered.resize(rows * n);
        gather_rows<S>(w, piece.first, piece.last, gathered.data());
        from = gathered.data();
        stride = n;
      }
      if (sums)
        iterate_rows(from, stride, rows, n, v, u, sums);
      else
        multiply_rows(from, stride, rows, n, v, u);
    }
    if (sums) {
      double square = 0;
      for (int64_t i = 0; i < rows; ++i) square += static_cast<double>(u[i]) * u[i];
      state.squares_u[piece.index] = square;
    } else {
      state.squares_u[piece.index] =
          inner_product(static_cast<const T*>(matrix.u) + piece.first, u, rows);
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
    scale_run(static_cast<const S*>(matrix.elements) + piece.first, piece.last - piece.first,
              factor, static_cast<S*>(matrix.scaled) + piece.first);
  }

  const PowerIteration& p_;
  const int64_t base_;
  std::vector<State<T>> states_;
  std::vector<Piece> row_pieces_, column_pieces_, element_pieces_;
};

// Calls run with a value of the type that weights are stored in.
template <class Run>
void with_stored(Storage storage, Run run) {
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

}  // namespace

void power_iteration(const PowerIteration& p) {
  for_each_group(p, group_elements, [&](int64_t first, int64_t last) {
    with_stored(p.storage, [&](auto s) { Group<decltype(s)>(p, first, last).run(); });
  });
}

void power_iteration_backward(const PowerIterationBackward& p) {
  for_each_group(p, group_elements / 2, [&](int64_t first, int64_t last) {
    with_stored(p.storage, [&](auto s) { GradientGroup<decltype(s)>(p, first, last).run(); });
  });
}

}  // namespace deepgen::cpu
