// A chain of K flows of one kind, each moving a sample by one scalar of it: what planar_chain and
// radial_chain share.
//
// Step k has P = vectors * D + 2 parameters, its vectors first and then its two scalars. A `Step`
// (planar_chain.h, radial_chain.h) says what one of them does, on either device:
//   term      what element d adds to the sum that the step depends on
//   values    of the sum: the factor that moves the sample, and what it stretches volume by:
//             log det += log last + (D - 1) log others
//   move      element d of the next state
// and backward, from the gradient g of the next state and that of log det:
//   lever     what element d adds, times g, to the gradient of the factor
//   gradient  of the sums: the coefficient that pulls g back, and what the sample adds to the
//             gradients of the two scalars
//   pull      g of element d, and what the sample adds to the gradients of its vectors
#pragma once

#include "elementary.h"
#include "operand.h"

namespace deepgen {

// A tensor (batch, features), strides in elements.
struct SampleOperand {
  void* data = nullptr;
  int64_t row = 0, column = 0;
};

struct FlowChain {
  Storage storage;
  int64_t batch, features, steps;
  SampleOperand z, output;
  const void* parameters;  // (steps, P), contiguous, double for f64, else float
  void* log_det;           // (batch,), of the parameters' type
};

struct FlowChainBackward {
  Storage storage;
  int64_t batch, features, steps;
  SampleOperand grad_output, z, grad_z;
  const void* parameters;
  const void* grad_log_det;  // (batch,), contiguous, of the parameters' type
  void* grad_parameters;     // (steps, P)

  // CUDA only: room for the states of the samples at work, (blocks, rows, steps + 1, features), and
  // for the sums of each block, (blocks, steps, P).
  void* states = nullptr;
  void* partial_sums = nullptr;
  int64_t blocks = 0;
};

// Of that room: how many blocks there are, and samples of a block.
struct ChainScratch {
  int64_t blocks, rows;
};

DEEPGEN_HD float root_of(float x) {
#if defined(__CUDA_ARCH__)
  return sqrtf(x);
#else
  return __builtin_sqrtf(x);
#endif
}
DEEPGEN_HD double root_of(double x) {
#if defined(__CUDA_ARCH__)
  return sqrt(x);
#else
  return __builtin_sqrt(x);
#endif
}

}  // namespace deepgen
