// The gradient of the scaled weights on the CPU. Floor: read G and W, read G again and write; G
// twice from memory where a matrix is larger than the cache, else once.
#pragma once

#include <vector>

#include "power_runs.h"

namespace deepgen::cpu {
namespace {

// ---- The gradient: <G, W> chunk by chunk, then the result, while G is in cache.

// The matrix's three dimensions in the order of memory, largest stride first. A step along one is a
// step of u, or of v.
struct Dimension {
  int64_t size, stride, u, v;
};

template <class S>
class GradientGroup {
  using T = Wide<S>;

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
                  : inner_product(static_cast<const S*>(matrix.grad) + piece.first * stride,
                                  static_cast<const S*>(matrix.weight.data) + piece.first * stride,
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
    const S* const grad = static_cast<const S*>(matrix.grad);
    S* const to = static_cast<S*>(matrix.grad_weight);
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
}  // namespace deepgen::cpu
