// Glue of discretized_logistic_mixture: checks the inputs once, allocates the outputs, calls the
// kernel of the device, and ties the gradient to the op.
#include "discretized_logistic_mixture.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "glue.h"
#include "gradient.h"

namespace deepgen {
namespace {

using at::Tensor;

// The layout, after checks of `parameters` against a tensor (n, C, H, W), levels or uniforms.
MixtureLayout check_parameters(const Tensor& parameters, const Tensor& pixels, const char* name,
                               int64_t n_levels, int64_t mixtures) {
  TORCH_CHECK_VALUE(n_levels >= 2 && n_levels <= 65536, "n_levels must be in [2, 65536], got ",
                    n_levels);
  TORCH_CHECK_VALUE(mixtures >= 1, "mixtures must be 1 or more, got ", mixtures);
  TORCH_CHECK_VALUE(pixels.dim() == 4 && pixels.size(1) >= 1, name,
                    " must have the shape (n, C, H, W), got ", pixels.sizes());
  const MixtureLayout layout{pixels.size(1), mixtures};
  TORCH_CHECK_VALUE(parameters.dim() == 4 && parameters.size(1) == layout.parameters(),
                    "parameters must have ", layout.parameters(), " channels for ", mixtures,
                    " mixtures of ", layout.channels, " channels, in the shape (n, ",
                    layout.parameters(), ", H, W), got ", parameters.sizes());
  TORCH_CHECK_VALUE(parameters.size(0) == pixels.size(0) && parameters.size(2) == pixels.size(2) &&
                        parameters.size(3) == pixels.size(3),
                    name, " must have the batch and image size of parameters, ", parameters.sizes(),
                    ", got ", pixels.sizes());
  TORCH_CHECK_VALUE(pixels.device() == parameters.device(), name,
                    " must be on the device of parameters, ", parameters.device(), ", got ",
                    pixels.device());
  return layout;
}

// Tensors that the kernel reads, dense where it needs that, and the problem that points to them.
struct Prepared {
  Prepared(const Tensor& given, const Tensor& given_levels, int64_t n_levels, int64_t mixtures) {
    problem.storage = storage_of(given, "parameters");
    TORCH_CHECK_TYPE(
        given_levels.scalar_type() == at::kByte || given_levels.scalar_type() == at::kLong,
        "levels must be a uint8 or int64 tensor, got ", given_levels.scalar_type());
    problem.layout = check_parameters(given, given_levels, "levels", n_levels, mixtures);
    problem.n_levels = n_levels;
    problem.batch = given.size(0);
    problem.positions = given.size(2) * given.size(3);
    parameters = describe_image(given) ? given : given.contiguous();
    levels = given_levels.contiguous();
    problem.parameters = *describe_image(parameters);
    problem.levels = levels.data_ptr();
    problem.levels_are_bytes = levels.scalar_type() == at::kByte;
  }

  Tensor parameters, levels;
  LogisticMixture problem{};
};

Tensor discretized_logistic_mixture(const Tensor& parameters, const Tensor& levels,
                                    int64_t n_levels, int64_t mixtures) {
  Prepared prepared(parameters, levels, n_levels, mixtures);
  const Tensor log_likelihood =
      at::empty({parameters.size(0), parameters.size(2), parameters.size(3)},
                parameters.options().dtype(sum_type(parameters)));
  prepared.problem.log_likelihood = log_likelihood.data_ptr();
  run(parameters, prepared.problem, DEEPGEN_CPU_KERNEL(discretized_logistic_mixture),
      DEEPGEN_CUDA_KERNEL(discretized_logistic_mixture));
  return log_likelihood;
}

Tensor discretized_logistic_mixture_backward(const Tensor& grad_output, const Tensor& parameters,
                                             const Tensor& levels, int64_t n_levels,
                                             int64_t mixtures) {
  const Prepared prepared(parameters, levels, n_levels, mixtures);
  TORCH_CHECK_VALUE(grad_output.dim() == 3 && grad_output.size(0) == parameters.size(0) &&
                        grad_output.size(1) == parameters.size(2) &&
                        grad_output.size(2) == parameters.size(3),
                    "grad_output must have the shape (n, H, W) of parameters, ", parameters.sizes(),
                    ", got ", grad_output.sizes());
  LogisticMixtureBackward p{prepared.problem};
  const Tensor dense_grad = grad_output.to(sum_type(parameters)).contiguous();
  const Tensor grad_parameters = fresh_like(parameters);
  const bool in_place = describe_image(grad_parameters).has_value();
  const Tensor dense =
      in_place ? grad_parameters : at::empty(parameters.sizes(), parameters.options());
  p.grad_output = dense_grad.data_ptr();
  p.grad_parameters = *describe_image(dense);
  run(parameters, p, DEEPGEN_CPU_KERNEL(discretized_logistic_mixture_backward),
      DEEPGEN_CUDA_KERNEL(discretized_logistic_mixture_backward));
  return in_place ? grad_parameters : grad_parameters.copy_(dense);
}

Tensor discretized_logistic_mixture_draw(const Tensor& parameters, const Tensor& uniforms,
                                         int64_t n_levels, int64_t mixtures, double temperature) {
  LogisticMixtureDraw p{storage_of(parameters, "parameters")};
  TORCH_CHECK_VALUE(temperature > 0 && std::isfinite(temperature),
                    "temperature must be positive and finite, got ", temperature);
  TORCH_CHECK_TYPE(uniforms.scalar_type() == at::kFloat || uniforms.scalar_type() == at::kDouble,
                   "uniforms must be a float32 or float64 tensor, got ", uniforms.scalar_type());
  p.layout = check_parameters(parameters, uniforms, "uniforms", n_levels, mixtures);
  p.n_levels = n_levels;
  p.batch = parameters.size(0);
  p.positions = parameters.size(2) * parameters.size(3);
  // 1 / temperature has to be finite in float.
  p.temperature = std::max(temperature, 1e-30);
  const auto operand = describe_image(parameters);
  const Tensor dense_parameters = operand ? parameters : parameters.contiguous();
  const Tensor dense_uniforms = uniforms.to(sum_type(parameters)).contiguous();
  const Tensor levels = at::empty(uniforms.sizes(), uniforms.options().dtype(at::kLong));
  p.parameters = operand ? *operand : *describe_image(dense_parameters);
  p.uniforms = dense_uniforms.data_ptr();
  p.levels = levels.data_ptr<int64_t>();
  run(parameters, p, DEEPGEN_CPU_KERNEL(discretized_logistic_mixture_draw),
      DEEPGEN_CUDA_KERNEL(discretized_logistic_mixture_draw));
  return levels;
}

void implement(torch::Library& library) {
  library.impl("discretized_logistic_mixture", discretized_logistic_mixture);
  library.impl("discretized_logistic_mixture_backward", discretized_logistic_mixture_backward);
  library.impl("discretized_logistic_mixture_draw", discretized_logistic_mixture_draw);
}

#ifndef DEEPGEN_EMULATED
Tensor differentiable(const Tensor& parameters, const Tensor& levels, int64_t n_levels,
                      int64_t mixtures) {
  static const auto op = registered_op<decltype(discretized_logistic_mixture)>(
      "deepgen_ext::discretized_logistic_mixture");
  static const auto backward_op = registered_op<decltype(discretized_logistic_mixture_backward)>(
      "deepgen_ext::discretized_logistic_mixture_backward");
  return with_gradient(
      {parameters},
      [&]() -> Evaluated {
        return {{op.call(parameters, levels, n_levels, mixtures)}, {parameters, levels}};
      },
      [n_levels, mixtures](const Cotangents& given) -> std::vector<Tensor> {
        return {backward_op.call(given.gradients[0], given.saved[0], given.saved[1], n_levels,
                                 mixtures)};
      })[0];
}
#endif

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("discretized_logistic_mixture", differentiable)

}  // namespace deepgen
