// Glue of masked_conv2d: checks the inputs once, allocates, calls the kernel of the device or the
// vendor's convolution, and ties the gradient to the op.
#include "masked_conv2d.h"

#include <ATen/ops/empty.h>

#include <array>

#include "choice.h"
#include "glue.h"
#include "gradient.h"
#include "vendor_convolution.h"

namespace deepgen {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

PixelOperand operand_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// What both directions share, but for the tensors' addresses.
MaskedConv2d checked(const Tensor& x, const Tensor& weight, std::string_view mask_type,
                     int64_t groups, int64_t dilation) {
  MaskedConv2d p{storage_of(x, "x")};
  TORCH_CHECK_VALUE(x.dim() == 4, "x must have the shape (batch, channels, height, width), got ",
                    x.sizes());
  check_same_type(weight, "weight", x, "x");
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(1) == x.size(1) && weight.numel() > 0,
                    "weight must have the shape (out_channels, ", x.size(1),
                    ", kernel height, kernel width), with the channels of x, got ", weight.sizes());
  TORCH_CHECK_VALUE(weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1,
                    "weight must have a kernel of odd height and width, got ", weight.size(2), "x",
                    weight.size(3));
  TORCH_CHECK_VALUE(mask_type == "A" || mask_type == "B",
                    "mask_type must be \"A\" (without the centre) or \"B\" (with it), got \"",
                    mask_type, "\"");
  TORCH_CHECK_VALUE(dilation >= 1, "dilation must be positive, got ", dilation);
  TORCH_CHECK_VALUE(groups >= 1, "groups_in_order must be positive, got ", groups);
  TORCH_CHECK_VALUE(weight.size(0) % groups == 0 && weight.size(1) % groups == 0,
                    "groups_in_order must divide the channels, ", weight.size(1), " in and ",
                    weight.size(0), " out, got ", groups);
  p.kernel = {weight.size(1), weight.size(0), weight.size(2),  weight.size(3),
              dilation,       groups,         mask_type == "B"};
  p.extent = {x.size(0), x.size(2), x.size(3)};
  return p;
}

enum class Route { kernel, vendor, through_float };

Route route(Route taken, const char* why) {
  const char* const names[] = {"own kernel", "vendor, cropped", "through float32"};
  note_choice(names[static_cast<int>(taken)], why);
  return taken;
}

Route route_of(const MaskedConv2d& p, const Tensor& x) {
#ifdef DEEPGEN_EMULATED
  return Route::kernel;
#else
  // cuDNN has tensor cores; few channels do not fill them. Owed a measurement on a GPU.
  if (!x.is_cpu()) {
    if (p.kernel.in_channels < 16) return route(Route::kernel, "fewer than 16 input channels");
    return route(Route::vendor, "16 input channels or more");
  }
  if (p.storage == Storage::f64) return route(Route::vendor, "float64");
  if (p.storage != Storage::f32) return route(Route::through_float, "half precision on a CPU");
  // Also where oneDNN has 512-bit vectors and ours 256: on an AMD EPYC with AVX-512 its cropped
  // convolutions take longer than one dense convolution at 3x3. No Intel CPU was measured.
  return route(Route::kernel, "float32 on a CPU");
#endif
}

Tensor masked_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                     std::string_view mask_type, int64_t groups_in_order, int64_t dilation) {
  MaskedConv2d p = checked(x, weight, mask_type, groups_in_order, dilation);
  if (bias) {
    check_same_type(*bias, "bias", x, "x");
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == weight.size(0),
                      "bias must have the shape [", weight.size(0), "], got ", bias->sizes());
  }
  Tensor y = at::empty({x.size(0), weight.size(0), x.size(2), x.size(3)},
                       x.options().memory_format(x.suggest_memory_format()));
  if (y.numel() == 0) return y;
  const Route route = route_of(p, x);
  if (route == Route::vendor) {
    const Tensor result = vendor_convolution(p, x, weight, bias);
    return result.strides() == y.strides() ? result : y.copy_(result);
  }
  if (route == Route::through_float) {
    const auto wide = [](const Tensor& t) { return t.to(at::kFloat); };
    return masked_conv2d(wide(x), wide(weight), bias ? OptionalTensor(wide(*bias)) : std::nullopt,
                         mask_type, groups_in_order, dilation)
        .to(x.scalar_type());
  }
  y = fresh_like(y);
  const Tensor dense_weight = weight.contiguous();
  const Tensor dense_bias = bias ? bias->contiguous() : Tensor();
  p.x = operand_of(x);
  p.y = operand_of(y);
  p.weight = dense_weight.data_ptr();
  p.bias = bias ? dense_bias.data_ptr() : nullptr;
  run(x, p, DEEPGEN_CPU_KERNEL(masked_conv2d), DEEPGEN_CUDA_KERNEL(masked_conv2d));
  return y;
}

// The gradients of x, weight and bias; of what is not wanted, an empty tensor.
std::tuple<Tensor, Tensor, Tensor> masked_conv2d_backward(const Tensor& grad_output,
                                                          const Tensor& x, const Tensor& weight,
                                                          std::string_view mask_type,
                                                          int64_t groups_in_order, int64_t dilation,
                                                          std::array<bool, 3> wanted) {
  MaskedConv2dBackward p{checked(x, weight, mask_type, groups_in_order, dilation)};
  check_same_type(grad_output, "grad_output", x, "x");
  const std::array<int64_t, 4> shape = {x.size(0), weight.size(0), x.size(2), x.size(3)};
  TORCH_CHECK_VALUE(grad_output.sizes() == at::IntArrayRef(shape),
                    "grad_output must have the shape ", at::IntArrayRef(shape), ", got ",
                    grad_output.sizes());
  const Tensor none = at::empty({0}, x.options());
  const Route route = grad_output.numel() ? route_of(p.forward, x) : Route::vendor;
  if (route == Route::through_float) {
    const auto [by_x, by_weight, by_bias] =
        masked_conv2d_backward(grad_output.to(at::kFloat), x.to(at::kFloat), weight.to(at::kFloat),
                               mask_type, groups_in_order, dilation, wanted);
    const auto type = x.scalar_type();
    return {by_x.to(type), by_weight.to(type), by_bias.to(type)};
  }
  Tensor grad_x, grad_weight;
  if (wanted[0]) grad_x = fresh_like(x);
  if (wanted[1]) grad_weight = at::empty(weight.sizes(), weight.options());
  if (grad_output.numel() == 0) {
    if (wanted[1]) grad_weight.zero_();
  } else if (route == Route::vendor) {
    vendor_convolution_backward(p.forward, grad_output, x, weight, grad_x, grad_weight);
  } else if (wanted[0] || wanted[1]) {
    const Tensor dense_weight = weight.contiguous();
    p.forward.x = operand_of(x);
    p.forward.y = operand_of(grad_output);
    p.forward.weight = dense_weight.data_ptr();
    if (wanted[0]) p.grad_x = operand_of(grad_x);
    if (wanted[1]) p.grad_weight = grad_weight.data_ptr();
    Tensor partial_sums;
    int64_t (*const pieces)(const MaskedConv2d&) = DEEPGEN_CUDA_KERNEL(masked_conv2d_pieces);
    if (on_cuda_path(x) && pieces && wanted[1]) {
      p.pieces = pieces(p.forward);
      partial_sums =
          at::empty({p.pieces, weight.numel()}, weight.options().dtype(sum_type(weight)));
      p.partial_sums = partial_sums.data_ptr();
    }
    run(x, p, DEEPGEN_CPU_KERNEL(masked_conv2d_backward),
        DEEPGEN_CUDA_KERNEL(masked_conv2d_backward));
  }
  return {wanted[0] ? grad_x : none, wanted[1] ? grad_weight : none,
          wanted[2] ? grad_output.sum({0, 2, 3}) : none};
}

void implement(torch::Library& library) {
  library.impl("masked_conv2d", masked_conv2d);
  library.impl("masked_conv2d_backward", masked_conv2d_backward);
}

#ifndef DEEPGEN_EMULATED
Tensor differentiable(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                      std::string_view mask_type, int64_t groups_in_order, int64_t dilation) {
  static const auto op = registered_op<decltype(masked_conv2d)>("deepgen_ext::masked_conv2d");
  static const auto backward_op =
      registered_op<decltype(masked_conv2d_backward)>("deepgen_ext::masked_conv2d_backward");
  return with_gradient(
      {x, weight, bias.value_or(Tensor())},
      [&]() -> Evaluated {
        return {{op.call(x, weight, bias, mask_type, groups_in_order, dilation)}, {x, weight}};
      },
      [mask_type = std::string(mask_type), groups_in_order,
       dilation](const Cotangents& given) -> std::vector<Tensor> {
        const auto& wanted = given.wanted;
        auto [by_x, by_weight, by_bias] =
            backward_op.call(given.gradients[0], given.saved[0], given.saved[1], mask_type,
                             groups_in_order, dilation, {wanted[0], wanted[1], wanted[2]});
        return {wanted[0] ? by_x : Tensor(), wanted[1] ? by_weight : Tensor(),
                wanted[2] ? by_bias : Tensor()};
      })[0];
}
#endif

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("masked_conv2d", differentiable)

}  // namespace deepgen
