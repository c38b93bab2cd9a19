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
  if (name == "reciprocal_sigmoid") return ScaleMap::reciprocal_sigmoid;
  TORCH_CHECK_VALUE(false,
                    "scale_map must be one of 'exp', 'tanh', 'sigmoid', 'atan', 'softclip', "
                    "'softplus', 'floored_sigmoid', 'reciprocal_sigmoid', got '",
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

// One map over tensors of one shape, as its callers have allocated them. `kept` is copied to
// `kept_copy` in the same pass.
struct Mapped {
  Tensor x, raw_scale, shift, y, log_det;
  OptionalTensor mask;
  Tensor kept, kept_copy;
};

void run_forward(AffineCoupling p, const Mapped& t) {
  std::vector<Tensor> tensors{t.x, t.raw_scale, t.shift, t.y, expanded_mask(t.mask, t.x)};
  if (t.kept.defined()) tensors.insert(tensors.end(), {t.kept, t.kept_copy});
  const auto described = describe(tensors);
  if (!described) {
    const Tensor dense_y = fresh_like(t.x.contiguous());
    run_forward(p, {t.x.contiguous(), t.raw_scale.contiguous(), t.shift.contiguous(), dense_y,
                    t.log_det, dense(t.mask, t.x)});
    t.y.copy_(dense_y);
    if (t.kept.defined()) t.kept_copy.copy_(t.kept);
    return;
  }
  p.extent = described->extent;
  p.x = described->operands[0];
  p.raw_scale = described->operands[1];
  p.shift = described->operands[2];
  p.y = described->operands[3];
  if (t.mask) p.mask = described->operands[4];
  if (t.kept.defined()) {
    p.kept = described->operands[5];
    p.kept_copy = described->operands[6];
  }
  p.log_det = t.log_det.data_ptr();

  Tensor partial_sums;
  int64_t (*const pieces)(const Extent&) = DEEPGEN_CUDA_KERNEL(affine_coupling_pieces);
  if (on_cuda_path(t.x) && pieces && (p.pieces = pieces(p.extent)) > 1) {
    partial_sums = at::empty({t.x.size(0), p.pieces}, t.log_det.options());
    p.partial_sums = partial_sums.data_ptr();
  }
  run(t.x, p, DEEPGEN_CPU_KERNEL(affine_coupling), DEEPGEN_CUDA_KERNEL(affine_coupling));
}

Tensor fresh_log_det(const Tensor& x) {
  return at::empty({x.size(0)}, x.options().dtype(sum_type(x)));
}

std::tuple<Tensor, Tensor> affine_coupling(const Tensor& x, const Tensor& raw_scale,
                                           const Tensor& shift, const OptionalTensor& mask,
                                           std::string_view scale_map, double clamp, bool inverse) {
  const AffineCoupling p{storage_of(x, "x"), scale_map_of(scale_map), clamp, inverse};
  check_clamp(clamp);
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must have a batch dimension, got a scalar");
  check_same_shape(raw_scale, "raw_scale", x, "x");
  check_same_shape(shift, "shift", x, "x");
  const Tensor y = fresh_like(x), log_det = fresh_log_det(x);
  run_forward(p, {x, raw_scale, shift, y, log_det, mask});
  return {y, log_det};
}

// grad_input, grad_raw_scale and, where it is wanted, grad_shift.
void run_backward(AffineCouplingBackward p, const Tensor& grad_output, const Tensor& grad_log_det,
                  const Tensor& x, const Tensor& raw_scale, const OptionalTensor& mask,
                  const std::vector<Tensor>& gradients) {
  const auto described = describe({x, grad_output, raw_scale, gradients[0], gradients[1],
                                   gradients.back(), expanded_mask(mask, x)});
  if (!described) {
    std::vector<Tensor> dense_gradients;
    for (const Tensor& gradient : gradients) {
      dense_gradients.push_back(at::empty(gradient.sizes(), gradient.options()));
    }
    run_backward(p, grad_output.contiguous(), grad_log_det, x.contiguous(), raw_scale.contiguous(),
                 dense(mask, x), dense_gradients);
    for (size_t i = 0; i < gradients.size(); ++i) gradients[i].copy_(dense_gradients[i]);
    return;
  }
  const Tensor grad_sum = grad_log_det.to(sum_type(x));
  p.extent = described->extent;
  p.x = described->operands[0];
  p.grad_output = described->operands[1];
  p.raw_scale = described->operands[2];
  p.grad_input = described->operands[3];
  p.grad_raw_scale = described->operands[4];
  if (gradients.size() > 2) p.grad_shift = described->operands[5];
  if (mask) p.mask = described->operands[6];
  p.grad_log_det = grad_sum.data_ptr();
  p.grad_log_det_stride = grad_sum.stride(0);
  run(x, p, DEEPGEN_CPU_KERNEL(affine_coupling_backward),
      DEEPGEN_CUDA_KERNEL(affine_coupling_backward));
}

void check_grad_log_det(const Tensor& grad_log_det, const Tensor& x) {
  TORCH_CHECK_VALUE(grad_log_det.dim() == 1 && grad_log_det.size(0) == x.size(0),
                    "grad_log_det must have the shape [", x.size(0), "], got ",
                    grad_log_det.sizes());
}

// [grad_input, grad_raw_scale] and, unless it is grad_output itself, grad_shift.
std::vector<Tensor> affine_coupling_backward(const Tensor& grad_output, const Tensor& grad_log_det,
                                             const Tensor& x, const Tensor& raw_scale,
                                             const OptionalTensor& mask, std::string_view scale_map,
                                             double clamp, bool inverse) {
  const AffineCouplingBackward p{storage_of(x, "x"), scale_map_of(scale_map), clamp, inverse};
  check_clamp(clamp);
  check_same_shape(grad_output, "grad_output", x, "x");
  check_same_shape(raw_scale, "raw_scale", x, "x");
  check_grad_log_det(grad_log_det, x);
  std::vector<Tensor> gradients{fresh_like(x), fresh_like(raw_scale)};
  if (mask || inverse) gradients.push_back(fresh_like(raw_scale));
  run_backward(p, grad_output, grad_log_det, x, raw_scale, mask, gradients);
  return gradients;
}

// Every second channel from the first or second on, or one half of them.
Tensor channels_of(const Tensor& whole, bool alternating, int64_t skipped, int64_t count) {
  return alternating ? whole.slice(1, skipped ? 1 : 0, std::nullopt, 2)
                     : whole.narrow(1, skipped, count);
}

// Raw scale and shift of what moves, where they lie in the parameters of a whole coupling layer.
std::pair<Tensor, Tensor> halves_of(const Tensor& parameters, const Tensor& moved,
                                    std::string_view order) {
  const bool in_pairs = order == "shift_scale_pairs",
             shift_first = in_pairs || order == "shift_scale";
  TORCH_CHECK_VALUE(shift_first || order == "scale_shift",
                    "order must be one of 'scale_shift', 'shift_scale', 'shift_scale_pairs', got '",
                    order, "'");
  TORCH_CHECK_VALUE(moved.dim() >= 2, "moved must have the shape (batch, channels, ...), got ",
                    moved.sizes());
  check_same_type(parameters, "parameters", moved, "moved");
  std::vector<int64_t> expected = moved.sizes().vec();
  expected[1] *= 2;
  TORCH_CHECK_VALUE(parameters.sizes() == expected, "parameters must have the shape ",
                    at::IntArrayRef(expected), ", two for each channel of moved, got ",
                    parameters.sizes());
  const int64_t channels = moved.size(1);
  const Tensor first = channels_of(parameters, in_pairs, 0, channels),
               second = channels_of(parameters, in_pairs, channels, channels);
  return shift_first ? std::pair(second, first) : std::pair(first, second);
}

std::tuple<Tensor, Tensor> half_coupling(const Tensor& visible, const Tensor& moved,
                                         const Tensor& parameters, bool moved_first,
                                         std::string_view scale_map, double clamp, bool inverse,
                                         std::string_view order, bool alternating) {
  const AffineCoupling p{storage_of(moved, "moved"), scale_map_of(scale_map), clamp, inverse};
  check_clamp(clamp);
  const auto [raw_scale, shift] = halves_of(parameters, moved, order);
  check_same_type(visible, "visible", moved, "moved");
  std::vector<int64_t> sizes = moved.sizes().vec();
  const int64_t moves = sizes[1], stays = visible.dim() == moved.dim() ? visible.size(1) : 0;
  sizes[1] = stays;
  TORCH_CHECK_VALUE(visible.sizes() == sizes,
                    "visible must have the shape of moved but for its channels, ", moved.sizes(),
                    ", got ", visible.sizes());
  TORCH_CHECK_VALUE(!alternating || stays == moves,
                    "alternating channels: visible and moved must have as many, got ", stays,
                    " and ", moves);
  sizes[1] = stays + moves;
  const Tensor y = at::empty(sizes, moved.options(), moved.suggest_memory_format());
  const Tensor log_det = fresh_log_det(moved);
  Mapped mapped{
      moved,   raw_scale,    shift,   channels_of(y, alternating, moved_first ? 0 : stays, moves),
      log_det, std::nullopt, visible, channels_of(y, alternating, moved_first ? moves : 0, stays)};
  if (stays != moves) {  // the kernel walks over one shape
    mapped.kept_copy.copy_(visible);
    mapped.kept = Tensor();
  }
  run_forward(p, mapped);
  return {y, log_det};
}

// grad_moved and grad_parameters; grad_output is that of the half that moved.
std::tuple<Tensor, Tensor> half_coupling_backward(const Tensor& grad_output,
                                                  const Tensor& grad_log_det, const Tensor& moved,
                                                  const Tensor& parameters,
                                                  std::string_view scale_map, double clamp,
                                                  bool inverse, std::string_view order) {
  const AffineCouplingBackward p{storage_of(moved, "moved"), scale_map_of(scale_map), clamp,
                                 inverse};
  check_clamp(clamp);
  check_same_shape(grad_output, "grad_output", moved, "moved");
  check_grad_log_det(grad_log_det, moved);
  const Tensor grad_moved = fresh_like(moved), grad_parameters = fresh_like(parameters);
  const auto [grad_raw_scale, grad_shift] = halves_of(grad_parameters, moved, order);
  run_backward(p, grad_output, grad_log_det, moved, halves_of(parameters, moved, order).first,
               std::nullopt, {grad_moved, grad_raw_scale, grad_shift});
  return {grad_moved, grad_parameters};
}

void implement(torch::Library& library) {
  library.impl("affine_coupling", affine_coupling);
  library.impl("affine_coupling_backward", affine_coupling_backward);
  library.impl("half_coupling", half_coupling);
  library.impl("half_coupling_backward", half_coupling_backward);
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

std::tuple<Tensor, Tensor> differentiable_half(const Tensor& visible, const Tensor& moved,
                                               const Tensor& parameters, bool moved_first,
                                               std::string_view scale_map, double clamp,
                                               bool inverse, std::string_view order,
                                               bool alternating) {
  static const auto op = registered_op<decltype(half_coupling)>("deepgen_ext::half_coupling");
  static const auto backward_op =
      registered_op<decltype(half_coupling_backward)>("deepgen_ext::half_coupling_backward");
  const auto outputs = with_gradient(
      {visible, moved, parameters},
      [&]() -> Evaluated {
        auto [y, log_det] = op.call(visible, moved, parameters, moved_first, scale_map, clamp,
                                    inverse, order, alternating);
        return {{y, log_det}, {inverse ? y : moved, parameters}};
      },
      [moved_first, scale_map = std::string(scale_map), clamp, inverse, order = std::string(order),
       alternating](const Cotangents& given) -> std::vector<Tensor> {
        const Tensor &grad_y = given.gradients[0], &parameters = given.saved[1];
        const int64_t moves = parameters.size(1) / 2, stays = grad_y.size(1) - moves;
        const auto moving = [&](const Tensor& whole) {
          return channels_of(whole, alternating, moved_first ? 0 : stays, moves);
        };
        auto [grad_moved, grad_parameters] = backward_op.call(
            moving(grad_y), given.gradients[1], inverse ? moving(given.saved[0]) : given.saved[0],
            parameters, scale_map, clamp, inverse, order);
        return {channels_of(grad_y, alternating, moved_first ? moves : 0, stays), grad_moved,
                grad_parameters};
      });
  return {outputs[0], outputs[1]};
}
#endif

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("affine_coupling", differentiable)
DEEPGEN_REGISTER_AUTOGRAD("half_coupling", differentiable_half)

}  // namespace deepgen
