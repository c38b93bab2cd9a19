// rational_quadratic_spline: a monotone piecewise rational-quadratic map with linear tails, or on
// an interval, its inverse, its gradient (Durkan et al. 2019). The formulas of one element are in
// rational_quadratic_spline_element.h.
#pragma once

#include "operand.h"
#include "rational_quadratic_spline_element.h"

namespace deepgen {

// Sizes the buffers of both kernels.
constexpr int64_t most_spline_values = 3 * most_spline_bins + 1;

// Widths, heights or derivatives: the first of each element, and how far apart those of one element
// lie.
struct SplineParameter {
  Operand first;
  int64_t stride = 0;
};

struct SplineParameters {
  SplineParameter widths, heights, derivatives;  // of x's storage type
};

struct SplineOptions {
  bool inverse;
  int64_t bins;
  SplineInterval interval;
  double min_bin_width, min_bin_height, min_derivative;

  // How many derivatives an element has, and how many parameters in all.
  DEEPGEN_HD int64_t slopes() const { return interval.is_all ? bins + 1 : bins - 1; }
  DEEPGEN_HD int64_t values() const { return 2 * bins + slopes(); }

  template <class C>
  SplineConstants<C> constants() const {
    return spline_constants<C>(bins, interval, min_bin_width, min_bin_height, min_derivative);
  }
};

struct RationalQuadraticSpline {
  Storage storage;
  SplineOptions options;
  Extent extent;
  Operand x, y;
  SplineParameters parameters;
  void* log_det;  // (batch,), double for f64, else float

  // Room for the sums of pieces, (batch, pieces), of log_det's type. CUDA only.
  void* partial_sums = nullptr;
  int64_t pieces = 1;
};

struct RationalQuadraticSplineBackward {
  Storage storage;
  SplineOptions options;
  Extent extent;
  Operand grad_output, x, grad_input;
  SplineParameters parameters, gradients;
  const void* grad_log_det;  // (batch,), of log_det's type
  int64_t grad_log_det_stride;
};

namespace cpu {
void rational_quadratic_spline(const RationalQuadraticSpline&);
void rational_quadratic_spline_backward(const RationalQuadraticSplineBackward&);
}  // namespace cpu

namespace cuda {
void rational_quadratic_spline(const RationalQuadraticSpline&, void* stream);
void rational_quadratic_spline_backward(const RationalQuadraticSplineBackward&, void* stream);
// Into how many pieces a row is cut.
int64_t rational_quadratic_spline_pieces(const Extent&);
}  // namespace cuda

}  // namespace deepgen
