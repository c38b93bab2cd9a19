// Glue of rational_quadratic_spline: checks the inputs once, allocates the outputs, calls the
// kernel of the device, and ties the gradient to the op.
#include "rational_quadratic_spline.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "glue.h"
#include "gradient.h"

namespace deepgen {
namespace {

using at::Tensor;

void check_minimum(double value, const char* name, int64_t bins) {
  TORCH_CHECK_VALUE(value > 0 && value * static_cast<double>(bins) <= 1, name,
                    " must lie in (0, 1 / number of bins], with ", bins, " bins, got ", value);
}

void check_options(const SplineOptions& o) {
  TORCH_CHECK_VALUE(o.bins >= 1 && o.bins <= most_spline_bins, "widths must have 1 to ",
                    most_spline_bins, " bins in its last dimension, got ", o.bins);
  check_minimum(o.min_bin_width, "min_bin_width", o.bins);
  check_minimum(o.min_bin_height, "min_bin_height", o.bins);
  TORCH_CHECK_VALUE(o.min_derivative > 0 && o.min_derivative < 1,
                    "min_derivative must lie in (0, 1), got ", o.min_derivative);
}

SplineInterval interval_of(double bound, at::ArrayRef<double> interval) {
  if (interval.empty()) {
    TORCH_CHECK_VALUE(bound > 0 && std::isfinite(bound),
                      "bound must be a finite number above 0, got ", bound);
    return SplineInterval::with_tails(bound);
  }
  TORCH_CHECK_VALUE(
      interval.size() == 4 && interval[0] < interval[1] && interval[2] < interval[3] &&
          std::all_of(
              interval.begin(), interval.end(), [](double end) { return std::isfinite(end); }),
      "interval must be left, right, bottom, top, finite, left below right and bottom "
      "below top, got ",
      interval);
  return {interval[0], interval[1], interval[2], interval[3], true};
}

void check_parameter(const Tensor& parameter, const char* name, const Tensor& x, int64_t values) {
  check_same_type(parameter, name, x, "x");
  TORCH_CHECK_VALUE(parameter.dim() == x.dim() + 1 &&
                        parameter.sizes().slice(0, x.dim()) == x.sizes() &&
                        parameter.size(-1) == values,
                    name, " must have the shape of x, ", x.sizes(), ", and one dimension more, of ",
                    values, ", got ", parameter.sizes());
}

SplineOptions options_of(const Tensor& x, const Tensor& widths, const Tensor& heights,
                         const Tensor& derivatives, bool inverse, double bound,
                         double min_bin_width, double min_bin_height, double min_derivative,
                         at::ArrayRef<double> interval) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must have a batch dimension, got a scalar");
  TORCH_CHECK_VALUE(widths.dim() >= 1, "widths must have a dimension of bins, got a scalar");
  const SplineOptions options{inverse,       widths.size(-1), interval_of(bound, interval),
                              min_bin_width, min_bin_height,  min_derivative};
  check_options(options);
  check_parameter(widths, "widths", x, options.bins);
  check_parameter(heights, "heights", x, options.bins);
  check_parameter(derivatives, "derivatives", x, options.slopes());
  return options;
}

// The first value of each element, of x's shape. One bin has no derivatives: the widths stand in.
Tensor first_of(const Tensor& parameter, const Tensor& widths) {
  return (parameter.size(-1) > 0 ? parameter : widths).select(-1, 0);
}

SplineParameters parameters_of(const std::vector<Operand>& operands, size_t at,
                               const Tensor& widths, const Tensor& heights,
                               const Tensor& derivatives) {
  return {{operands[at], widths.stride(-1)},
          {operands[at + 1], heights.stride(-1)},
          {operands[at + 2], derivatives.stride(-1)}};
}

std::tuple<Tensor, Tensor> rational_quadratic_spline(const Tensor& x, const Tensor& widths,
                                                     const Tensor& heights,
                                                     const Tensor& derivatives, bool inverse,
                                                     double bound, double min_bin_width,
                                                     double min_bin_height, double min_derivative,
                                                     at::ArrayRef<double> interval) {
  RationalQuadraticSpline p{
      storage_of(x, "x"), options_of(x, widths, heights, derivatives, inverse, bound, min_bin_width,
                                     min_bin_height, min_derivative, interval)};
  const Tensor y = fresh_like(x);
  const Tensor log_det = at::empty({x.size(0)}, x.options().dtype(sum_type(x)));
  const auto described = describe(
      {x, y, first_of(widths, widths), first_of(heights, widths), first_of(derivatives, widths)});
  if (!described) {
    const auto [dense_y, dense_log_det] = rational_quadratic_spline(
        x.contiguous(), widths.contiguous(), heights.contiguous(), derivatives.contiguous(),
        inverse, bound, min_bin_width, min_bin_height, min_derivative, interval);
    return {y.copy_(dense_y), dense_log_det};
  }
  p.extent = described->extent;
  p.x = described->operands[0];
  p.y = described->operands[1];
  p.parameters = parameters_of(described->operands, 2, widths, heights, derivatives);
  p.log_det = log_det.data_ptr();

  Tensor partial_sums;
  int64_t (*const pieces)(const Extent&) = DEEPGEN_CUDA_KERNEL(rational_quadratic_spline_pieces);
  if (on_cuda_path(x) && pieces && (p.pieces = pieces(p.extent)) > 1) {
    partial_sums = at::empty({x.size(0), p.pieces}, log_det.options());
    p.partial_sums = partial_sums.data_ptr();
  }
  run(x, p, DEEPGEN_CPU_KERNEL(rational_quadratic_spline),
      DEEPGEN_CUDA_KERNEL(rational_quadratic_spline));
  return {y, log_det};
}

// The gradients of x, widths, heights, derivatives.
std::tuple<Tensor, Tensor, Tensor, Tensor> rational_quadratic_spline_backward(
    const Tensor& grad_output, const Tensor& grad_log_det, const Tensor& x, const Tensor& widths,
    const Tensor& heights, const Tensor& derivatives, bool inverse, double bound,
    double min_bin_width, double min_bin_height, double min_derivative,
    at::ArrayRef<double> interval) {
  RationalQuadraticSplineBackward p{
      storage_of(x, "x"), options_of(x, widths, heights, derivatives, inverse, bound, min_bin_width,
                                     min_bin_height, min_derivative, interval)};
  check_same_shape(grad_output, "grad_output", x, "x");
  TORCH_CHECK_VALUE(grad_log_det.dim() == 1 && grad_log_det.size(0) == x.size(0),
                    "grad_log_det must have the shape [", x.size(0), "], got ",
                    grad_log_det.sizes());
  const Tensor grad_sum = grad_log_det.to(sum_type(x));
  const Tensor grad_input = fresh_like(x), grad_widths = fresh_like(widths),
               grad_heights = fresh_like(heights), grad_derivatives = fresh_like(derivatives);
  const auto described =
      describe({x, grad_output, grad_input, first_of(widths, widths), first_of(heights, widths),
                first_of(derivatives, widths), first_of(grad_widths, grad_widths),
                first_of(grad_heights, grad_widths), first_of(grad_derivatives, grad_widths)});
  if (!described) {
    const auto [by_x, by_widths, by_heights, by_derivatives] = rational_quadratic_spline_backward(
        grad_output.contiguous(), grad_log_det, x.contiguous(), widths.contiguous(),
        heights.contiguous(), derivatives.contiguous(), inverse, bound, min_bin_width,
        min_bin_height, min_derivative, interval);
    return {grad_input.copy_(by_x), grad_widths.copy_(by_widths), grad_heights.copy_(by_heights),
            grad_derivatives.copy_(by_derivatives)};
  }
  p.extent = described->extent;
  p.x = described->operands[0];
  p.grad_output = described->operands[1];
  p.grad_input = described->operands[2];
  p.parameters = parameters_of(described->operands, 3, widths, heights, derivatives);
  p.gradients = parameters_of(described->operands, 6, grad_widths, grad_heights, grad_derivatives);
  p.grad_log_det = grad_sum.data_ptr();
  p.grad_log_det_stride = grad_sum.stride(0);
  run(x, p, DEEPGEN_CPU_KERNEL(rational_quadratic_spline_backward),
      DEEPGEN_CUDA_KERNEL(rational_quadratic_spline_backward));
  return {grad_input, grad_widths, grad_heights, grad_derivatives};
}

void implement(torch::Library& library) {
  library.impl("rational_quadratic_spline", rational_quadratic_spline);
  library.impl("rational_quadratic_spline_backward", rational_quadratic_spline_backward);
}

#ifndef DEEPGEN_EMULATED
std::tuple<Tensor, Tensor> differentiable(const Tensor& x, const Tensor& widths,
                                          const Tensor& heights, const Tensor& derivatives,
                                          bool inverse, double bound, double min_bin_width,
                                          double min_bin_height, double min_derivative,
                                          at::ArrayRef<double> interval) {
  static const auto op =
      registered_op<decltype(rational_quadratic_spline)>("deepgen_ext::rational_quadratic_spline");
  static const auto backward_op = registered_op<decltype(rational_quadratic_spline_backward)>(
      "deepgen_ext::rational_quadratic_spline_backward");
  const auto outputs = with_gradient(
      {x, widths, heights, derivatives},
      [&]() -> Evaluated {
        auto [y, log_det] = op.call(x, widths, heights, derivatives, inverse, bound, min_bin_width,
                                    min_bin_height, min_derivative, interval);
        // The inverse is solved again in the backward pass: from its result, rounded to a half
        // type, another bin might come out.
        return {{y, log_det}, {x, widths, heights, derivatives}};
      },
      [inverse, bound, min_bin_width, min_bin_height, min_derivative,
       ends = interval.vec()](const Cotangents& given) -> std::vector<Tensor> {
        const auto& saved = given.saved;
        auto [by_x, by_widths, by_heights, by_derivatives] = backward_op.call(
            given.gradients[0], given.gradients[1], saved[0], saved[1], saved[2], saved[3], inverse,
            bound, min_bin_width, min_bin_height, min_derivative, ends);
        return {by_x, by_widths, by_heights, by_derivatives};
      });
  return {outputs[0], outputs[1]};
}
#endif

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("rational_quadratic_spline", differentiable)

}  // namespace deepgen
