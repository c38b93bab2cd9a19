// bernoulli_log_prob on the CPU.
//
// Forward reads x and the logits, 8 bytes an element in float32 (4 and a bit where draws of one
// image share x, 5 where x is bytes), and writes a number a row; backward reads them again and
// writes one gradient, nothing else being kept: torch's way takes four tensors of that size. A
// thread owns whole rows, or pieces of long ones. What is not stored in the type of sums is
// converted in L1, x once for all the rows in turn that share it. Sums are over at most 1024
// elements in SIMD lanes of float, then in double, in an order that does not depend on the number
// of threads. In the caches the arithmetic bounds it, an exponential and a polynomial (backward: a
// division) an element; from memory, the bytes.
#include "../bernoulli_log_prob.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <vector>

#include "simd.h"

namespace deepgen::cpu {
namespace {

template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

constexpr int64_t run_elements = 1024;
constexpr int64_t piece_elements = 16384;

// ---- A run of elements side by side: the functions that exist once per instruction set.

template <class T>
DEEPGEN_INLINE T sum_of(int64_t n, const T* __restrict x, const T* __restrict logits) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += bernoulli_element(x[i], logits[i]);
  return sum;
}

template <class T>
DEEPGEN_INLINE void gradient_of(int64_t n, const T* __restrict x, const T* __restrict logits,
                                T grad_output, T* __restrict gradient) {
  for (int64_t i = 0; i < n; ++i) gradient[i] = bernoulli_slope(x[i], logits[i]) * grad_output;
}

#define DEEPGEN_RUNS(T)                                                                 \
  DEEPGEN_SIMD T sum_run(int64_t n, const T* x, const T* logits) {                      \
    return sum_of<T>(n, x, logits);                                                     \
  }                                                                                     \
  DEEPGEN_SIMD void gradient_run(int64_t n, const T* x, const T* logits, T grad_output, \
                                 T* gradient) {                                         \
    gradient_of<T>(n, x, logits, grad_output, gradient);                                \
  }
DEEPGEN_RUNS(float)
DEEPGEN_RUNS(double)
#undef DEEPGEN_RUNS

#define DEEPGEN_CONVERSION(From, To)                                                     \
  DEEPGEN_SIMD void convert(int64_t n, const From* __restrict from, To* __restrict to) { \
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);                    \
  }
DEEPGEN_CONVERSION(uint8_t, float)
DEEPGEN_CONVERSION(uint8_t, double)
DEEPGEN_CONVERSION(c10::BFloat16, float)
DEEPGEN_CONVERSION(c10::Half, float)
DEEPGEN_CONVERSION(float, c10::BFloat16)
DEEPGEN_CONVERSION(float, c10::Half)
#undef DEEPGEN_CONVERSION

// ---- Walking over rows.

// The numbers as they are, or converted into the buffer.
template <class T>
const T* in_compute_type(int64_t, const T* from, T*) {
  return from;
}
template <class From, class T>
const T* in_compute_type(int64_t n, const From* from, T* buffer) {
  convert(n, from, buffer);
  return buffer;
}

// A piece of x at a time; the last one is kept.
template <class X, class T>
class Targets {
 public:
  explicit Targets(const BernoulliLogProb& p)
      : buffer_(std::is_same_v<X, T> ? 0 : std::min(p.elements, piece_elements)) {}

  const T* piece(const X* from, int64_t n) {
    if constexpr (std::is_same_v<X, T>) {
      return from;
    } else {
      if (from != held_) convert(n, from, buffer_.data());
      held_ = from;
      return buffer_.data();
    }
  }

 private:
  std::vector<T> buffer_;
  const X* held_ = nullptr;
};

// Calls each(row, piece, begin, x, n) in parallel, x being the n elements of a piece from `begin`.
template <class X, class T, class Each>
void for_each_piece(const BernoulliLogProb& p, Each each) {
  const int64_t pieces = std::max<int64_t>(1, (p.elements + piece_elements - 1) / piece_elements);
  const int64_t longest = std::max<int64_t>(1, std::min(p.elements, piece_elements));
  at::parallel_for(0, p.rows() * pieces, std::max<int64_t>(1, piece_elements / longest),
                   [&](int64_t first, int64_t last) {
                     Targets<X, T> targets(p);
                     for (int64_t item = first; item < last; ++item) {
                       const int64_t row = item / pieces, piece = item % pieces;
                       const int64_t begin = piece * piece_elements;
                       const int64_t n = std::min(p.elements - begin, piece_elements);
                       const X* x = static_cast<const X*>(p.x.data) + p.begin_of(p.x, row) + begin;
                       each(row, piece, begin, targets.piece(x, n), n);
                     }
                   });
}

template <class S, class X>
void forward(const BernoulliLogProb& p) {
  using T = Compute<S>;
  T* log_prob = static_cast<T*>(p.log_prob);
  const int64_t pieces = (p.elements + piece_elements - 1) / piece_elements;
  std::vector<double> partial_sums(pieces > 1 ? p.rows() * pieces : 0);
  for_each_piece<X, T>(p, [&](int64_t row, int64_t piece, int64_t begin, const T* x, int64_t n) {
    T buffer[run_elements];
    const S* logits = static_cast<const S*>(p.logits.data) + p.begin_of(p.logits, row) + begin;
    double sum = 0;
    for (int64_t i = 0; i < n; i += run_elements) {
      const int64_t length = std::min(run_elements, n - i);
      sum += sum_run(length, x + i, in_compute_type(length, logits + i, buffer));
    }
    if (pieces > 1) {
      partial_sums[row * pieces + piece] = sum;
    } else {
      log_prob[row] = static_cast<T>(sum);
    }
  });
  if (partial_sums.empty()) return;
  for (int64_t row = 0; row < p.rows(); ++row) {
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += partial_sums[row * pieces + piece];
    log_prob[row] = static_cast<T>(sum);
  }
}

template <class S, class X>
void backward(const BernoulliLogProbBackward& problem) {
  using T = Compute<S>;
  const BernoulliLogProb& p = problem.forward;
  for_each_piece<X, T>(p, [&](int64_t row, int64_t, int64_t begin, const T* x, int64_t n) {
    T buffer[run_elements], gradient_buffer[run_elements];
    const S* logits = static_cast<const S*>(p.logits.data) + p.begin_of(p.logits, row) + begin;
    S* gradient =
        static_cast<S*>(problem.grad_logits.data) + p.begin_of(problem.grad_logits, row) + begin;
    const T grad_output = static_cast<const T*>(problem.grad_output)[row];
    for (int64_t i = 0; i < n; i += run_elements) {
      const int64_t length = std::min(run_elements, n - i);
      const T* run = in_compute_type(length, logits + i, buffer);
      if constexpr (std::is_same_v<S, T>) {
        gradient_run(length, x + i, run, grad_output, gradient + i);
      } else {
        gradient_run(length, x + i, run, grad_output, gradient_buffer);
        convert(length, gradient_buffer, gradient + i);
      }
    }
  });
}

// Calls run(logit, x) with values of both storage types, to be used as decltype.
template <class Run>
void with_types(const BernoulliLogProb& p, Run run) {
  const auto with_target = [&](auto logit) {
    switch (p.target_storage) {
      case TargetStorage::bytes:
        return run(logit, uint8_t{});
      case TargetStorage::as_logits:
        return run(logit, logit);
      case TargetStorage::as_sums:
        return run(logit, Compute<decltype(logit)>{});
    }
  };
  switch (p.storage) {
    case Storage::f32:
      return with_target(float{});
    case Storage::f64:
      return with_target(double{});
    case Storage::bf16:
      return with_target(c10::BFloat16{});
    case Storage::f16:
      return with_target(c10::Half{});
  }
}

}  // namespace

void bernoulli_log_prob(const BernoulliLogProb& p) {
  with_types(p, [&](auto logit, auto x) { forward<decltype(logit), decltype(x)>(p); });
}

void bernoulli_log_prob_backward(const BernoulliLogProbBackward& p) {
  with_types(p.forward, [&](auto logit, auto x) { backward<decltype(logit), decltype(x)>(p); });
}

}  // namespace deepgen::cpu
