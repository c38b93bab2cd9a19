// Glue of affine_coupling: checks the inputs once, allocates the outputs, calls the kernel of the
// device, and ties the gradient to the op: in C++, because torch's Python machinery for it costs 90
// us a call, more than a small coupling.
#include "affine_coupling.h"

#include <ATen/ops/empty.h>

#include "glue.h"
#include "gradient.h"

namespace deepgen {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

ScaleMap scale_map_of(std::string_view name) {
  if (name == "exp") return ScaleMap::exp;
  if (name == "tanh") return ScaleMap::tanh;
  if (name == "sigmoid") return ScaleMap::sigmoid;
  if (name == "atan") return ScaleMap::atan;
  if (name == "softclip") return ScaleMap::softclip;
  if (name == "softplus") return ScaleMap::softplus;
  if (name == "floored_sigmoid") return ScaleMap::floored_sigmoid;
  TORCH_CHECK_VALUE(false,
                    "scale_map must be one of 'exp', 'tanh', 'sigmoid', 'atan', 'softclip', "
                    "'softplus', 'floored_sigmoid', got '",
                    name, "'");
}

void check_clamp(double clamp) {
  TORCH_CHECK_VALUE(clamp > 0 && std::isfinite(clamp),
                    "clamp must be a finite number above 0, got ", clamp);
}

// The mask as an operand of x's shape, with stride 0 wherever it is broadcast; x itself stands in
// for no mask.
Tensor expanded_mask(const OptionalTensor& mask, const Tensor& x) {
  if (!mask) return x;
  TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, "mask must be a bool tensor, got ",
                   mask->scalar_type());
  TORCH_CHECK_VALUE(mask->device() == x.device(), "mask must be on the device of x, ", x.device(),
                    ", got ", mask->device());
  const auto sample = x.sizes().slice(1);
  bool fits = mask->dim() <= static_cast<int64_t>(sample.size());
  for (int64_t d = 1; fits && d <= mask->dim(); ++d) {
    fits = mask->size(-d) == 1 || mask->size(-d) == sample[sample.size() - d];
  }
  TORCH_CHECK_VALUE(fits, "mask must broadcast to one sample of x, ", sample, ", got ",
                    mask->sizes());
  return mask->expand(x.sizes());
}

// The mask of one whole sample, contiguous: it merges with contiguous tensors.
OptionalTensor dense(const OptionalTensor& mask, const Tensor& x) {
  if (!mask) return mask;
  return mask->expand(x.sizes().slice(1)).contiguous();
}

std::tuple<Tensor, Tensor> affine_coupling(const Tensor& x, const Tensor& raw_scale,
                                           const Tensor& shift, const OptionalTensor& mask,
                                           std::string_view scale_map, double clamp, bool inverse) {
  AffineCoupling p{storage_of(x, "x"), scale_map_of(scale_map), clamp, inverse};
  check_clamp(clamp);
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must have a batch dimension, got a scalar");
  check_same_shape(raw_scale, "raw_scale", x, "x");
  check_same_shape(shift, "shift", x, "x");
  const Tensor y = fresh_like(x);
  const Tensor log_det = at::empty({x.size(0)}, x.options().dtype(sum_type(x)));

  const auto described = describe({x, raw_scale, shift, y, expanded_mask(mask, x)});
  if (!described) {
    const auto [dense_y, dense_log_det] =
        affine_coupling(x.contiguous(), raw_scale.contiguous(), shift.contiguous(), dense(mask, x),
                        scale_map, clamp, inverse);
    return {y.copy_(dense_y), dense_log_det};
  }
  p.extent = described->extent;
  p.x = described->operands[0];
  p.raw_scale = described->operands[1];
  p.shift = described->operands[2];
  p.y = described->operands[3];
  if (mask) p.mask = described->operands[4];
  p.log_det = log_det.data_ptr();

  Tensor partial_sums;
  int64_t (*const pieces)(const Extent&) = DEEPGEN_CUDA_KERNEL(affine_coupling_pieces);
  if (on_cuda_path(x) && pieces && (p.pieces = pieces(p.extent)) > 1) {
    partial_sums = at::empty({x.size(0), p.pieces}, log_det.options());
    p.partial_sums = partial_sums.data_ptr();
  }
  run(x, p, DEEPGEN_CPU_KERNEL(affine_coupling), DEEPGEN_CUDA_KERNEL(affine_coupling));
  return {y, log_det};
}

// [grad_input, grad_raw_scale] and, unless it is grad_output itself, grad_shift.
std::vector<Tensor> affine_coupling_backward(const Tensor& grad_output, const Tensor& grad_log_det,
                                             const Tensor& x, const Tensor& raw_scale,
                                             const OptionalTensor& mask, std::string_view scale_map,
                                             double clamp, bool inverse) {
  AffineCouplingBackward p{storage_of(x, "x"), scale_map_of(scale_map), clamp, inverse};
  check_clamp(clamp);
  check_same_shape(grad_output, "grad_output", x, "x");
  check_same_shape(raw_scale, "raw_scale", x, "x");
  TORCH_CHECK_VALUE(grad_log_det.dim() == 1 && grad_log_det.size(0) == x.size(0),
                    "grad_log_det must have the shape [", x.size(0), "], got ",
                    grad_log_det.sizes());
  const Tensor grad_sum = grad_log_det.to(sum_type(x));
  const bool own_shift = mask || inverse;
  std::vector<Tensor> gradients{fresh_like(x), fresh_like(raw_scale)};
  if (own_shift) gradients.push_back(fresh_like(raw_scale));

  const auto described = describe({x, grad_output, raw_scale, gradients[0], gradients[1],
                                   gradients.back(), expanded_mask(mask, x)});
  if (!described) {
    const auto dense_gradients =
        affine_coupling_backward(grad_output.contiguous(), grad_log_det, x.contiguous(),
                                 raw_scale.contiguous(), dense(mask, x), scale_map, clamp, inverse);
    for (size_t i = 0; i < gradients.size(); ++i) gradients[i].copy_(dense_gradients[i]);
    return gradients;
  }
  p.extent = described->extent;
  p.x = described->operands[0];
  p.grad_output = described->operands[1];
  p.raw_scale = described->operands[2];
  p.grad_input = described->operands[3];
  p.grad_raw_scale = described->operands[4];
  if (own_shift) p.grad_shift = described->operands[5];
  if (mask) p.mask = described->operands[6];
  p.grad_log_det = grad_sum.data_ptr();
  p.grad_log_det_stride = grad_sum.stride(0);
  run(x, p, DEEPGEN_CPU_KERNEL(affine_coupling_backward),
      DEEPGEN_CUDA_KERNEL(affine_coupling_backward));
  return gradients;
}

void implement(torch::Library& library) {
  library.impl("affine_coupling", affine_coupling);
  library.impl("affine_coupling_backward", affine_coupling_backward);
}

#ifndef DEEPGEN_EMULATED
std::tuple<Tensor, Tensor> differentiable(const Tensor& x, const Tensor& raw_scale,
                                          const Tensor& shift, const OptionalTensor& mask,
                                          std::string_view scale_map, double clamp, bool inverse) {
  static const auto op = registered_op<decltype(affine_coupling)>("deepgen_ext::affine_coupling");
  static const auto backward_op =
      registered_op<decltype(affine_coupling_backward)>("deepgen_ext::affine_coupling_backward");
  const auto outputs = with_gradient(
      {x, raw_scale, shift},
      [&]() -> Evaluated {
        auto [y, log_det] = op.call(x, raw_scale, shift, mask, scale_map, clamp, inverse);
        // The gradient's kernel wants the argument of s: of the inverse, its result.
        return {{y, log_det}, {inverse ? y : x, raw_scale, mask.value_or(Tensor())}};
      },
      [scale_map = std::string(scale_map), clamp, inverse](const Cotangents& given) {
        const Tensor& mask = given.saved[2];
        auto result = backward_op.call(
            given.gradients[0], given.gradients[1], given.saved[0], given.saved[1],
            mask.defined() ? OptionalTensor(mask) : std::nullopt, scale_map, clamp, inverse);
        if (result.size() == 2) result.push_back(given.gradients[0]);
        return result;
      });
  return {outputs[0], outputs[1]};
}
#endif

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("affine_coupling", differentiable)

}  // namespace deepgen
