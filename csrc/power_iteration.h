// power_iteration: the largest singular value of each of many matrices, by u <- W v / |W v|,
// v <- W'u / |W'u|, and W scaled by it.
//
// One read of W does both halves of a step: a row gives u'_i = W_i v, and while it is in cache
// v' += u'_i W_i. The norms are scalars applied afterwards: u = u' / |u'|, v = v' / |v'| and
// sigma = u'Wv = |v'| / |u'|. Where |u'| is 0 (W = 0, or v in its kernel) sigma is 0, and u and v
// stay as they were, so that the iteration goes on when W moves away from 0.
//
// W is scaled by f = 1 / sigma, by 1 where sigma = 0; with a coefficient c by c / sigma where
// sigma > c, else by 1.
// With u and v held fixed and G of the scaled weight, g of sigma, the gradient of W is
//   f G + (g - f <G, W> / sigma) u v'    where f depends on sigma,    else    G + g u v'.
#pragma once

#include "host_device.h"
#include "operand.h"

namespace at {
class Tensor;
}

namespace deepgen {

// A matrix (rows, outer * inner): its columns are two dimensions of a tensor, so that the weights
// of transposed convolutions and of channels-last ones need no copy. Strides in elements.
struct MatrixOperand {
  const void* data = nullptr;
  int64_t rows = 0, outer = 0, inner = 0;
  int64_t row_stride = 0, outer_stride = 0, inner_stride = 0;

  DEEPGEN_HD int64_t columns() const { return outer * inner; }
  DEEPGEN_HD bool has_dense_rows() const {
    return inner_stride == 1 && (outer == 1 || outer_stride == inner);
  }
  DEEPGEN_HD bool has_dense_columns() const { return row_stride == 1 && outer == 1; }
  DEEPGEN_HD int64_t offset(int64_t column) const {
    return outer == 1 ? column * inner_stride
                      : column / inner * outer_stride + column % inner * inner_stride;
  }
};

struct PowerMatrix {
  MatrixOperand weight;
  const void *u, *v;               // contiguous
  void *new_u, *new_v;             // these hold u' and v' on the way
  const void* elements = nullptr;  // of W in the order of memory, and of the scaled W, or nothing
  void* scaled = nullptr;
  int64_t index = 0;        // of its sigma
  void* partial = nullptr;  // CUDA only: room, power_scratch() elements
};

struct PowerIteration {
  Storage storage;  // of the weights; u, v and sigma are double for f64 and float for the rest
  PowerMatrix* matrices;
  int64_t count;
  int64_t iterations;  // 0: sigma = u'Wv of the u and v given
  double eps;
  double coefficient;  // 0: none
  void* sigmas;        // (count,)
};

struct ScaledGradient {
  MatrixOperand weight;  // its strides are those of all three
  const void* grad;      // G
  void* grad_weight;
  const void *u, *v;
  int64_t index = 0;
  void* partial = nullptr;  // CUDA only: room, gradient_scratch() elements
};

struct PowerIterationBackward {
  Storage storage;
  ScaledGradient* matrices;
  int64_t count;
  double coefficient;
  const void *sigmas, *grad_sigmas;
};

// What f does: whether it depends on sigma, and its value. Of a u and v that were given sigma may
// be below 0; a NaN makes f one.
template <class T>
DEEPGEN_HD bool depends_on_sigma(T sigma, double coefficient) {
  return coefficient > 0 ? !(sigma <= static_cast<T>(coefficient)) : sigma != T(0);
}
template <class T>
DEEPGEN_HD T spectral_factor(T sigma, double coefficient) {
  const T most = coefficient > 0 ? static_cast<T>(coefficient) : T(1);
  return depends_on_sigma(sigma, coefficient) ? most / sigma : T(1);
}

// Of the squares of |u'| and |v'|: sigma, and what to multiply u' and v' by; as torch's normalize
// does it, no norm counts as less than eps.
struct PowerScales {
  double sigma, u, v;
  bool moves;
};
DEEPGEN_HD PowerScales power_scales(double square_u, double square_v, double eps) {
#if defined(__CUDA_ARCH__)
  const double norm_u = sqrt(square_u), norm_v = sqrt(square_v);
#else
  const double norm_u = __builtin_sqrt(square_u), norm_v = __builtin_sqrt(square_v);
#endif
  const double u = norm_u > eps ? norm_u : eps;
  const double reached = norm_v / u;
  const double v = reached > eps ? reached : eps;
  return {reached * reached / v, 1 / u, 1 / (u * v), norm_u > 0};
}

// A weight that was scaled without a graph, as if with one; coefficient as above. Below no op's
// name: it computes nothing, and its callers count microseconds.
at::Tensor known_scaled_weight(const at::Tensor& weight, const at::Tensor& scaled,
                               const at::Tensor& u, const at::Tensor& v, const at::Tensor& sigma,
                               double coefficient);

namespace cpu {
void power_iteration(const PowerIteration&);
void power_iteration_backward(const PowerIterationBackward&);
}  // namespace cpu

namespace cuda {
void power_iteration(const PowerIteration&, void* stream);
void power_iteration_backward(const PowerIterationBackward&, void* stream);
int64_t power_scratch(const MatrixOperand&);
int64_t gradient_scratch(const MatrixOperand&);
}  // namespace cuda

}  // namespace deepgen
