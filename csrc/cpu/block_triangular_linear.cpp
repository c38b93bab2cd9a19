// block_triangular_linear on the CPU.
//
// Rows are cut into up to 8 groups. A group sees all columns before those that its first row sees
// (a full block), a part of the next ones (the block on the diagonal), none after them: of all
// weights, 1/2 + 1/16 are multiplied. The full blocks are read where they lie; a diagonal block,
// small enough for L2, is copied without what is masked first. So no masked copy of W is made.
//
// Each block is one product of torch's BLAS on one thread, and a thread takes one task after
// another, the largest first: one parallel region for a forward pass, one for all its gradients.
// What is cut depends on the shape alone and each sum is made on one thread in one order, hence the
// results do not depend on the number of threads. Bound by the FMAs. On one core BLAS runs at the
// same 90 to 96 GFLOP/s on these blocks (64x400x128, 64x128x196) as on whole matrices, but at 12 to
// 20 as a call of its own on two threads; an own microkernel would have to beat that, and that of
// masked_product.h runs at 69. Measured against the dense products on one thread, 64 to 256
// samples, 784x512, 512x512, 512x1568: forward 0.63 to 0.69, gradient of x 0.69 to 0.82, of W 0.76
// to 0.92 (writing the gradient, zeros too, costs most at few samples).
#include "../block_triangular_linear.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <vector>

#include "../vendor_product.h"
#include "simd.h"

namespace deepgen::cpu {
namespace {

constexpr int64_t most_groups = 8, least_side = 48;  // of a block
constexpr int64_t tile_samples = 256;                // whose x stays in L2
constexpr int64_t bias_rows = 2048;                  // whose sums stay in L1
constexpr int64_t tile_columns = 400;                // of the weight's gradient

// Rows [begin, end) see all columns before `full`, a part of those before `seen`, none after them.
struct Group {
  int64_t begin, end, full, seen;

  int64_t rows() const { return end - begin; }
  int64_t width() const { return seen - full; }
};

std::vector<Group> groups_of(const BlockTriangularLinear& p) {
  const int64_t reach = p.rows ? p.visible[p.rows - 1] : 0;
  const int64_t count = std::clamp<int64_t>(std::min(p.rows, reach) / least_side, 1, most_groups);
  std::vector<Group> groups;
  for (int64_t k = 0, full = 0; k < count; ++k) {
    // Sizes that BLAS' own tiles like.
    const auto bound = [&](int64_t k) {
      return k == count ? p.rows : p.rows * k / count / 16 * 16;
    };
    const int64_t seen = bound(k + 1) ? p.visible[bound(k + 1) - 1] : 0;
    groups.push_back({bound(k), bound(k + 1), full, seen});
    full = seen;
  }
  return groups;
}

// each(task) for all tasks, in whichever order, on all threads. Opens a parallel region whatever
// their number, for BLAS to stay on its thread.
template <class F>
void for_each_task(int64_t tasks, F each) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) each(task);
  });
}

int64_t pieces(int64_t size, int64_t piece) {
  return (size + piece - 1) / piece;
}

// sums += each of `count` rows of n numbers.
template <class T>
DEEPGEN_INLINE void add_all_rows(const T* rows, int64_t stride, int64_t count, int64_t n,
                                 T* __restrict sums) {
  for (int64_t i = 0; i < count; ++i) {
    const T* __restrict row = rows + i * stride;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) sums[j] += row[j];
  }
}
DEEPGEN_SIMD void add_rows(const float* rows, int64_t stride, int64_t count, int64_t n,
                           float* sums) {
  add_all_rows(rows, stride, count, n, sums);
}
DEEPGEN_SIMD void add_rows(const double* rows, int64_t stride, int64_t count, int64_t n,
                           double* sums) {
  add_all_rows(rows, stride, count, n, sums);
}

template <class T>
class Product {
 public:
  explicit Product(const BlockTriangularLinear& p) : p_(p), groups_(groups_of(p)) {}

  void forward() const {
    const int64_t tiles = pieces(p_.batch, tile_samples), count = groups_.size();
    for_each_task(tiles * count, [&](int64_t task) {
      forward(groups_[count - 1 - task / tiles], task % tiles * tile_samples);
    });
  }

  void backward(const BlockTriangularLinearBackward& gradients) const {
    const int64_t tiles = pieces(p_.batch, tile_samples), count = groups_.size();
    const int64_t bands = pieces(p_.columns, tile_columns);
    const int64_t of_x = gradients.grad_x.data ? tiles * bands : 0;
    const int64_t of_weight = gradients.grad_weight.data ? bands * count : 0;
    const int64_t of_bias = gradients.grad_bias ? pieces(p_.rows, bias_rows) : 0;
    for_each_task(of_x + of_weight + of_bias, [&](int64_t task) {
      if (task < of_x)  // the first columns are seen by most rows
        return grad_x(gradients.grad_x, task % tiles * tile_samples, task / tiles * tile_columns);
      task -= of_x;
      if (task < of_weight)
        return grad_weight(gradients.grad_weight, groups_[count - 1 - task / bands],
                           task % bands * tile_columns);
      grad_bias(static_cast<T*>(gradients.grad_bias), (task - of_weight) * bias_rows);
    });
  }

 private:
  int64_t samples(int64_t first) const { return std::min(tile_samples, p_.batch - first); }

  static T* at(const RowOperand& m, int64_t row, int64_t column) {
    return static_cast<T*>(m.data) + row * m.stride + column;
  }
  static MatrixOperand part(const RowOperand& m, int64_t row, int64_t rows, int64_t column,
                            int64_t columns) {
    return {at(m, row, column), rows, columns, m.stride, 1};
  }

  // Columns [begin, end) of the block on the diagonal, what is masked as zeros.
  MatrixOperand diagonal(const Group& group, int64_t begin, int64_t end,
                         std::vector<T>& room) const {
    const int64_t width = end - begin;
    room.resize(group.rows() * width);
    T* to = room.data();
    for (int64_t r = group.begin; r < group.end; ++r, to += width) {
      const int64_t kept = std::clamp(p_.visible[r], begin, end) - begin;
      std::copy_n(at(p_.weight, r, begin), kept, to);
      std::fill(to + kept, to + width, T(0));
    }
    return {room.data(), group.rows(), width, width, 1};
  }

  void multiply(const MatrixOperand& a, const MatrixOperand& b, bool accumulate,
                const MatrixOperand& c) const {
    vendor_product(p_.storage, a, b, accumulate, c);
  }

  void forward(const Group& group, int64_t first) const {
    const int64_t count = samples(first);
    const MatrixOperand y = part(p_.y, first, count, group.begin, group.rows());
    for (int64_t n = first; n < first + count; ++n) {
      T* const sums = at(p_.y, n, group.begin);
      if (p_.bias.data) {
        std::copy_n(at(p_.bias, n, group.begin), group.rows(), sums);
      } else {
        std::fill_n(sums, group.rows(), T(0));
      }
    }
    if (group.full) {
      multiply(part(p_.x, first, count, 0, group.full),
               part(p_.weight, group.begin, group.rows(), 0, group.full).transposed(), true, y);
    }
    if (group.width()) {
      std::vector<T> room;
      multiply(part(p_.x, first, count, group.full, group.width()),
               diagonal(group, group.full, group.seen, room).transposed(), true, y);
    }
  }

  // `tile_columns` columns from `first` on, of `tile_samples` samples: what one group after another
  // passes back. Not a block of columns at a time: walking down a narrow one is slow.
  void grad_x(const RowOperand& grad, int64_t first_sample, int64_t first) const {
    const int64_t count = samples(first_sample);
    const int64_t end = std::min(first + tile_columns, p_.columns);
    std::vector<T> room;
    bool accumulate = false;  // the last group reaches all columns that any does
    for (auto group = groups_.rbegin(); group != groups_.rend(); ++group) {
      const MatrixOperand g = part(p_.y, first_sample, count, group->begin, group->rows());
      const int64_t full = std::clamp(group->full, first, end);
      const int64_t seen = std::clamp(group->seen, first, end);
      if (full > first) {
        multiply(g, part(p_.weight, group->begin, group->rows(), first, full - first), accumulate,
                 part(grad, first_sample, count, first, full - first));
      }
      if (seen > full) {
        multiply(g, diagonal(*group, full, seen, room), accumulate,
                 part(grad, first_sample, count, full, seen - full));
      }
      accumulate = true;
    }
    const int64_t reach = std::clamp(groups_.back().seen, first, end);
    for (int64_t n = first_sample; reach < end && n < first_sample + count; ++n)
      std::fill(at(grad, n, reach), at(grad, n, end), T(0));
  }

  // Of the group's rows, `tile_columns` columns from `first` on.
  void grad_weight(const RowOperand& grad, const Group& group, int64_t first) const {
    const int64_t end = std::min(first + tile_columns, p_.columns);
    const int64_t width = std::min(end, group.seen) - first;
    if (width > 0) {
      multiply(part(p_.y, 0, p_.batch, group.begin, group.rows()).transposed(),
               part(p_.x, 0, p_.batch, first, width), false,
               part(grad, group.begin, group.rows(), first, width));
    }
    for (int64_t r = group.begin; r < group.end; ++r) {
      const int64_t masked = std::clamp(p_.visible[r], first, end);
      std::fill(at(grad, r, masked), at(grad, r, end), T(0));
    }
  }

  // Of `bias_rows` rows from `first` on. In two steps, so that rounding does not grow with all of
  // the batch.
  void grad_bias(T* grad, int64_t first) const {
    constexpr int64_t few = 32;
    const int64_t count = std::min(bias_rows, p_.rows - first);
    std::vector<T> sums(count);
    std::fill_n(grad + first, count, T(0));
    for (int64_t n = 0; n < p_.batch; n += few) {
      std::fill(sums.begin(), sums.end(), T(0));
      add_rows(at(p_.y, n, first), p_.y.stride, std::min(few, p_.batch - n), count, sums.data());
      add_rows(sums.data(), 0, 1, count, grad + first);
    }
  }

  const BlockTriangularLinear& p_;
  const std::vector<Group> groups_;
};

template <class F>
void with_type(Storage storage, F f) {
  storage == Storage::f64 ? f(double{}) : f(float{});
}

}  // namespace

void block_triangular_linear(const BlockTriangularLinear& p) {
  with_type(p.storage, [&](auto type) { Product<decltype(type)>(p).forward(); });
}

void block_triangular_linear_backward(const BlockTriangularLinearBackward& p) {
  with_type(p.forward.storage, [&](auto type) { Product<decltype(type)>(p.forward).backward(p); });
}

}  // namespace deepgen::cpu
