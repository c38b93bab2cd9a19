// bernoulli_log_prob: log p(x | l) = sum over a row of x l - softplus(l), for logits l, and its
// gradient.
//
// What the glue, the CPU kernel and the CUDA kernel agree on. With e = exp(-|l|), which neither
// overflows nor loses what is small, and [l > 0] one or zero,
//   x l - softplus(l) = (x - [l > 0]) l - log(1 + e)
//   x - sigmoid(l) = (x - [l > 0]) +- e / (1 + e), plus where l > 0
// For bits x the first term of each is zero or of the sign of the second: nothing cancels, and a
// bit that is nearly certain keeps its relative precision.
#pragma once

#include "elementary.h"
#include "operand.h"

namespace deepgen {

// Rows of `elements` numbers side by side, over up to three batch dimensions, innermost last;
// strides in elements. x has stride 0 where it is shared, as by the draws of one image.
struct BatchOfRows {
  void* data = nullptr;
  int64_t stride[3] = {0, 0, 0};
};

// How x is stored: as bytes (bool or uint8), as the logits are, or in the type of sums.
enum class TargetStorage : int { bytes, as_logits, as_sums };

struct BernoulliLogProb {
  Storage storage;  // of the logits
  TargetStorage target_storage;
  int64_t batch[3];
  int64_t elements;

  BatchOfRows x, logits;
  void* log_prob;  // (rows,), double for f64, else float

  // Room for the sums of pieces of long rows, (rows, pieces), of log_prob's type. CUDA only; null
  // for one piece.
  void* partial_sums = nullptr;
  int64_t pieces = 1;

  DEEPGEN_HD int64_t rows() const { return batch[0] * batch[1] * batch[2]; }
  // Where a row begins, in elements.
  DEEPGEN_HD int64_t begin_of(const BatchOfRows& operand, int64_t row) const {
    const int64_t rest = row / batch[2];
    return rest / batch[1] * operand.stride[0] + rest % batch[1] * operand.stride[1] +
           row % batch[2] * operand.stride[2];
  }
};

// By the logits: (x - sigmoid(l)) g, with g the gradient of the row's log-probability.
struct BernoulliLogProbBackward {
  BernoulliLogProb forward;  // without log_prob
  const void* grad_output;   // (rows,), contiguous, of log_prob's type
  BatchOfRows grad_logits;   // stored as the logits are
};

namespace cpu {
void bernoulli_log_prob(const BernoulliLogProb&);
void bernoulli_log_prob_backward(const BernoulliLogProbBackward&);
}  // namespace cpu

namespace cuda {
void bernoulli_log_prob(const BernoulliLogProb&, void* stream);
void bernoulli_log_prob_backward(const BernoulliLogProbBackward&, void* stream);
// Into how many pieces the kernel cuts a row, so that few long rows still fill the device.
int64_t bernoulli_log_prob_pieces(int64_t elements);
}  // namespace cuda

// log(1 + e) for 0 <= e <= 1: e itself below 2^-30. Its powers would be subnormal numbers there,
// which a CPU multiplies fifty times as slowly, and logits of pixels that never change lie there.
// Masked by bits: a choice the compiler moves behind the products.
DEEPGEN_HD float log1p_of_decay(float e) {
  const int32_t mask = -static_cast<int32_t>(e > 9.31322575e-10f);
  const float large = polynomial::from_bits(polynomial::to_bits(e) & mask);
  return log1p_of_unit(large) + (e - large);
}
DEEPGEN_HD double log1p_of_decay(double e) {
  return log1p_of_unit(e);
}

template <class T>
DEEPGEN_HD T bernoulli_element(T x, T logit) {
  const T on = logit > T(0) ? T(1) : T(0);
  return (x - on) * logit - log1p_of_decay(decay_of(logit));
}

template <class T>
DEEPGEN_HD T bernoulli_slope(T x, T logit) {
  const T e = decay_of(logit);
  const T unlikelier = e / (T(1) + e);
  return logit > T(0) ? (x - T(1)) + unlikelier : x - unlikelier;
}

}  // namespace deepgen
