// Glue of channel_affine: checks the inputs once, allocates the outputs, calls the kernel of the
// device, and ties the gradient to the op.
#include "channel_affine.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "glue.h"
#include "gradient.h"

namespace deepgen {
namespace {

using at::Tensor;

void check_parameter(const Tensor& parameter, const char* name, const Tensor& x) {
  check_same_type(parameter, name, x, "x");
  TORCH_CHECK_VALUE(parameter.dim() == 1 && parameter.size(0) == x.size(1), name,
                    " must have the shape [", x.size(1), "], one value a channel of x, got ",
                    parameter.sizes());
}

void check_x(const Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() >= 2, "x must have the shape (batch, channels, ...), got ", x.sizes());
}

struct DescribedChannels {
  ChannelExtent extent;
  std::vector<ChannelOperand> operands;
};

// Which of the merged dimensions is the channel shows in a vector over channels, broadcast to all
// of x.
std::optional<DescribedChannels> describe_channels(std::vector<Tensor> tensors,
                                                   const Tensor& parameter) {
  std::vector<int64_t> shape(tensors.front().dim(), 1);
  shape[1] = parameter.size(0);
  tensors.push_back(parameter.view(shape).expand(tensors.front().sizes()));
  const auto described = describe(tensors);
  if (!described) return std::nullopt;
  DescribedChannels result;
  result.extent.batch = described->extent.batch;
  const Operand& marker = described->operands.back();
  int channel = -1, others[2] = {-1, -1}, found = 0;
  for (int slot = 2; slot >= 0; --slot) {
    if (described->extent.size[slot] == 1) continue;
    if (marker.stride[slot] != 0 && channel < 0) {
      channel = slot;
    } else if (found < 2) {
      others[found++] = slot;
    } else {
      return std::nullopt;
    }
  }
  const auto size = [&](int slot) { return slot < 0 ? 1 : described->extent.size[slot]; };
  result.extent.channels = size(channel);
  result.extent.inner = size(others[0]);
  result.extent.outer = size(others[1]);
  for (size_t i = 0; i + 1 < tensors.size(); ++i) {
    const Operand& operand = described->operands[i];
    const auto stride = [&](int slot) { return slot < 0 ? int64_t{0} : operand.stride[slot]; };
    result.operands.push_back({operand.data, operand.batch_stride, stride(channel),
                               stride(others[1]), stride(others[0])});
  }
  return result;
}

std::tuple<Tensor, Tensor> channel_affine(const Tensor& x, const Tensor& log_scale,
                                          const Tensor& shift, bool inverse) {
  ChannelAffine p{storage_of(x, "x"), inverse};
  check_x(x);
  check_parameter(log_scale, "log_scale", x);
  check_parameter(shift, "shift", x);
  const Tensor y = fresh_like(x);
  const Tensor log_det = at::empty({x.size(0)}, x.options().dtype(sum_type(x)));
  const Tensor dense_log_scale = log_scale.contiguous(), dense_shift = shift.contiguous();
  const auto described = describe_channels({x, y}, dense_log_scale);
  if (!described) {
    const auto [dense_y, dense_log_det] = channel_affine(x.contiguous(), log_scale, shift, inverse);
    return {y.copy_(dense_y), dense_log_det};
  }
  p.extent = described->extent;
  p.x = described->operands[0];
  p.y = described->operands[1];
  p.log_scale = dense_log_scale.data_ptr();
  p.shift = dense_shift.data_ptr();
  p.log_det = log_det.data_ptr();
  run(x, p, DEEPGEN_CPU_KERNEL(channel_affine), DEEPGEN_CUDA_KERNEL(channel_affine));
  return {y, log_det};
}

// grad_input, grad_log_scale, grad_shift.
std::tuple<Tensor, Tensor, Tensor> channel_affine_backward(const Tensor& grad_output,
                                                           const Tensor& grad_log_det,
                                                           const Tensor& x, const Tensor& log_scale,
                                                           bool inverse) {
  ChannelAffineBackward p{storage_of(x, "x"), inverse};
  check_x(x);
  check_same_shape(grad_output, "grad_output", x, "x");
  check_parameter(log_scale, "log_scale", x);
  TORCH_CHECK_VALUE(grad_log_det.dim() == 1 && grad_log_det.size(0) == x.size(0),
                    "grad_log_det must have the shape [", x.size(0), "], got ",
                    grad_log_det.sizes());
  const Tensor grad_sum = grad_log_det.to(sum_type(x)).contiguous();
  const Tensor dense_log_scale = log_scale.contiguous();
  const Tensor grad_input = fresh_like(x);
  const Tensor grad_log_scale = at::empty_like(dense_log_scale),
               grad_shift = at::empty_like(dense_log_scale);
  const auto described = describe_channels({x, grad_output, grad_input}, dense_log_scale);
  if (!described) {
    const auto [dense_input, other_log_scale, other_shift] = channel_affine_backward(
        grad_output.contiguous(), grad_log_det, x.contiguous(), log_scale, inverse);
    return {grad_input.copy_(dense_input), other_log_scale, other_shift};
  }
  p.extent = described->extent;
  p.x = described->operands[0];
  p.grad_output = described->operands[1];
  p.grad_input = described->operands[2];
  p.log_scale = dense_log_scale.data_ptr();
  p.grad_log_det = grad_sum.data_ptr();
  p.grad_log_scale = grad_log_scale.data_ptr();
  p.grad_shift = grad_shift.data_ptr();

  Tensor partial_sums;
  int64_t (*const pieces)(const ChannelExtent&) = DEEPGEN_CUDA_KERNEL(channel_affine_pieces);
  if (on_cuda_path(x) && pieces) {
    p.pieces = pieces(p.extent);
    partial_sums = at::empty({2, p.extent.channels, p.pieces}, grad_sum.options());
    p.partial_sums = partial_sums.data_ptr();
  }
  run(x, p, DEEPGEN_CPU_KERNEL(channel_affine_backward),
      DEEPGEN_CUDA_KERNEL(channel_affine_backward));
  return {grad_input, grad_log_scale, grad_shift};
}

void implement(torch::Library& library) {
  library.impl("channel_affine", channel_affine);
  library.impl("channel_affine_backward", channel_affine_backward);
}

#ifndef DEEPGEN_EMULATED
std::tuple<Tensor, Tensor> differentiable(const Tensor& x, const Tensor& log_scale,
                                          const Tensor& shift, bool inverse) {
  static const auto op = registered_op<decltype(channel_affine)>("deepgen_ext::channel_affine");
  static const auto backward_op =
      registered_op<decltype(channel_affine_backward)>("deepgen_ext::channel_affine_backward");
  const auto outputs = with_gradient(
      {x, log_scale, shift},
      [&]() -> Evaluated {
        auto [y, log_det] = op.call(x, log_scale, shift, inverse);
        return {{y, log_det}, {inverse ? y : x, log_scale}};
      },
      [inverse](const Cotangents& given) -> std::vector<Tensor> {
        auto [by_x, by_log_scale, by_shift] = backward_op.call(
            given.gradients[0], given.gradients[1], given.saved[0], given.saved[1], inverse);
        return {by_x, by_log_scale, by_shift};
      });
  return {outputs[0], outputs[1]};
}
#endif

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("channel_affine", differentiable)

}  // namespace deepgen
