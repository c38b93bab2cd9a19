// block_triangular_linear: a linear map whose row r sees the first visible[r] columns alone.
//
//   y[n, r] = bias[r] + sum over c < visible[r] of w[r, c] x[n, c]
//
// visible does not descend, so that what is masked is a staircase above the diagonal: no weight in
// it is read, and whole blocks of it cost nothing.
#pragma once

#include "host_device.h"
#include "operand.h"

namespace deepgen {

// A matrix with contiguous rows.
struct RowOperand {
  void* data = nullptr;
  int64_t stride = 0;  // from row to row; 0 where all rows are the same
};

struct BlockTriangularLinear {
  Storage storage;
  int64_t batch, rows, columns;
  const int64_t* visible;  // (rows), ascending, each in 0 ... columns
  RowOperand x, weight, y;
  RowOperand bias;  // no data: none
};

// Gradients of y's gradient; those whose data is null are not wanted.
struct BlockTriangularLinearBackward {
  BlockTriangularLinear forward;  // x, weight; y is the gradient of y; no bias
  RowOperand grad_x, grad_weight;
  void* grad_bias;
};

namespace cpu {
// Storage::f32 and Storage::f64 only.
void block_triangular_linear(const BlockTriangularLinear&);
void block_triangular_linear_backward(const BlockTriangularLinearBackward&);
}  // namespace cpu

namespace cuda {
void block_triangular_linear(const BlockTriangularLinear&, void* stream);
void block_triangular_linear_backward(const BlockTriangularLinearBackward&, void* stream);
}  // namespace cuda

}  // namespace deepgen
