// Glue of block_triangular_linear: checks the inputs once, allocates, calls the kernels, and ties
// the gradient to the op.
#include "block_triangular_linear.h"

#include <ATen/ops/empty.h>

#include <array>

#include "choice.h"
#include "glue.h"
#include "gradient.h"

namespace deepgen {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor with_dense_rows(const Tensor& t) {
  const bool dense = t.stride(1) == 1 && t.stride(0) >= t.size(1);
  return dense ? t : t.contiguous();
}

RowOperand operand_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0)};
}

void check_visible(const Tensor& visible, int64_t rows, int64_t columns) {
  TORCH_CHECK_TYPE(visible.scalar_type() == at::kLong, "visible must be an int64 tensor, got ",
                   visible.scalar_type());
  TORCH_CHECK_VALUE(visible.is_cpu() && visible.dim() == 1 && visible.size(0) == rows,
                    "visible must be a vector of ", rows, " numbers on the CPU, got ",
                    visible.sizes(), " on ", visible.device());
  const auto numbers = visible.accessor<int64_t, 1>();
  for (int64_t r = 0; r < rows; ++r) {
    TORCH_CHECK_VALUE(numbers[r] >= 0 && numbers[r] <= columns, "visible must lie in 0 ... ",
                      columns, ", got ", numbers[r]);
    TORCH_CHECK_VALUE(r == 0 || numbers[r] >= numbers[r - 1], "visible must be ascending, got ",
                      numbers[r], " after ", numbers[r - 1]);
  }
}

// What both directions share, but for the tensors' addresses.
BlockTriangularLinear checked(const Tensor& x, const Tensor& weight, const Tensor& visible) {
  const Storage storage = storage_of(x, "x");
  TORCH_CHECK_VALUE(x.dim() == 2, "x must have the shape (batch, columns), got ", x.sizes());
  check_same_type(weight, "weight", x, "x");
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(1) == x.size(1),
                    "weight must have the shape (rows, ", x.size(1), "), got ", weight.sizes());
  check_visible(visible, weight.size(0), weight.size(1));
  return {storage, x.size(0), weight.size(0), weight.size(1), nullptr, {}, {}, {}, {}};
}

bool goes_through_float(const BlockTriangularLinear& p, const Tensor& x) {
  const bool half = p.storage != Storage::f32 && p.storage != Storage::f64;
  if (half && !on_cuda_path(x)) note_choice("through float32", "half precision on a CPU");
  return half && !on_cuda_path(x);
}

Tensor block_triangular_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                               const Tensor& visible) {
  BlockTriangularLinear p = checked(x, weight, visible);
  if (bias) {
    check_same_type(*bias, "bias", x, "x");
    const bool shared = bias->dim() == 1;
    TORCH_CHECK_VALUE(
        (shared || (bias->dim() == 2 && bias->size(0) == p.batch)) && bias->size(-1) == p.rows,
        "bias must have the shape [", p.rows, "] or [", p.batch, ", ", p.rows, "], got ",
        bias->sizes());
  }
  if (goes_through_float(p, x)) {
    const auto wide = [](const Tensor& t) { return t.to(at::kFloat); };
    return block_triangular_linear(wide(x), wide(weight),
                                   bias ? OptionalTensor(wide(*bias)) : std::nullopt, visible)
        .to(x.scalar_type());
  }
  const Tensor y = at::empty({p.batch, p.rows}, x.options());
  if (y.numel() == 0) return y;
  const Tensor dense_x = with_dense_rows(x), dense_weight = with_dense_rows(weight);
  const Tensor here = visible.contiguous().to(x.device());
  Tensor dense_bias;
  p.visible = here.const_data_ptr<int64_t>();
  p.x = operand_of(dense_x);
  p.weight = operand_of(dense_weight);
  p.y = operand_of(y);
  if (bias) {
    dense_bias = bias->stride(-1) == 1 ? *bias : bias->contiguous();
    p.bias = {dense_bias.data_ptr(), bias->dim() == 1 ? 0 : dense_bias.stride(0)};
  }
  run(x, p, DEEPGEN_CPU_KERNEL(block_triangular_linear),
      DEEPGEN_CUDA_KERNEL(block_triangular_linear));
  return y;
}

// The gradients of x, weight and a bias that all samples share; of what is not wanted, an empty
// tensor.
std::tuple<Tensor, Tensor, Tensor> block_triangular_linear_backward(const Tensor& grad_output,
                                                                    const Tensor& x,
                                                                    const Tensor& weight,
                                                                    const Tensor& visible,
                                                                    std::array<bool, 3> wanted) {
  BlockTriangularLinearBackward p{checked(x, weight, visible), {}, {}, nullptr};
  BlockTriangularLinear& forward = p.forward;
  check_same_type(grad_output, "grad_output", x, "x");
  TORCH_CHECK_VALUE(grad_output.dim() == 2 && grad_output.size(0) == forward.batch &&
                        grad_output.size(1) == forward.rows,
                    "grad_output must have the shape [", forward.batch, ", ", forward.rows,
                    "], got ", grad_output.sizes());
  if (goes_through_float(forward, x)) {
    const auto type = x.scalar_type();
    const auto [by_x, by_weight, by_bias] = block_triangular_linear_backward(
        grad_output.to(at::kFloat), x.to(at::kFloat), weight.to(at::kFloat), visible, wanted);
    return {by_x.to(type), by_weight.to(type), by_bias.to(type)};
  }
  const auto fresh = [&](bool is_wanted, at::IntArrayRef shape) {
    return at::empty(is_wanted ? shape : at::IntArrayRef(0), x.options());
  };
  const Tensor by_x = fresh(wanted[0], x.sizes()), by_weight = fresh(wanted[1], weight.sizes()),
               by_bias = fresh(wanted[2], {forward.rows});
  if (weight.numel() == 0 || forward.batch == 0) {
    by_x.zero_();
    by_weight.zero_();
    by_bias.zero_();
    if (wanted[2] && forward.batch) by_bias.copy_(grad_output.sum(0));  // no columns
    return {by_x, by_weight, by_bias};
  }
  const Tensor grad = with_dense_rows(grad_output), dense_x = with_dense_rows(x),
               dense_weight = with_dense_rows(weight);
  const Tensor here = visible.contiguous().to(x.device());
  forward.visible = here.const_data_ptr<int64_t>();
  forward.x = operand_of(dense_x);
  forward.weight = operand_of(dense_weight);
  forward.y = operand_of(grad);
  if (wanted[0]) p.grad_x = operand_of(by_x);
  if (wanted[1]) p.grad_weight = operand_of(by_weight);
  if (wanted[2]) p.grad_bias = by_bias.data_ptr();
  run(x, p, DEEPGEN_CPU_KERNEL(block_triangular_linear_backward),
      DEEPGEN_CUDA_KERNEL(block_triangular_linear_backward));
  return {by_x, by_weight, by_bias};
}

void implement(torch::Library& library) {
  library.impl("block_triangular_linear", block_triangular_linear);
  library.impl("block_triangular_linear_backward", block_triangular_linear_backward);
}

#ifndef DEEPGEN_EMULATED
Tensor differentiable(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                      const Tensor& visible) {
  static const auto op =
      registered_op<decltype(block_triangular_linear)>("deepgen_ext::block_triangular_linear");
  static const auto backward_op = registered_op<decltype(block_triangular_linear_backward)>(
      "deepgen_ext::block_triangular_linear_backward");
  return with_gradient(
      {x, weight, bias.value_or(Tensor())},
      [&]() -> Evaluated { return {{op.call(x, weight, bias, visible)}, {x, weight, visible}}; },
      [one_bias = bias && bias->dim() == 1](const Cotangents& given) -> std::vector<Tensor> {
        const auto& wanted = given.wanted;
        auto [by_x, by_weight, by_bias] =
            backward_op.call(given.gradients[0], given.saved[0], given.saved[1], given.saved[2],
                             {wanted[0], wanted[1], wanted[2] && one_bias});
        return {wanted[0] ? by_x : Tensor(), wanted[1] ? by_weight : Tensor(),
                !wanted[2] ? Tensor()
                : one_bias ? by_bias
                           : given.gradients[0]};
      })[0];
}
#endif

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("block_triangular_linear", differentiable)

}  // namespace deepgen
