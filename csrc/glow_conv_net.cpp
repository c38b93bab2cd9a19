// Glue of glow_conv_net: checks the inputs once, allocates, calls the CPU kernel, and ties the
// gradient to the op. On CUDA, and in half precision, it is the vendor's convolutions.
#include "glow_conv_net.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/relu.h>

#include <array>
#include <utility>

#include "choice.h"
#include "glue.h"
#include "gradient.h"

namespace deepgen {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

PixelOperand operand_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

bool in_own_kernel(const Tensor& x) {
#ifdef DEEPGEN_EMULATED
  return false;
#else
  return x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble);
#endif
}

struct Network {
  Tensor x, input_weight, input_bias, hidden_weight, hidden_bias, output_weight, output_bias,
      log_scale;
  OptionalTensor context_map;

  int64_t hidden() const { return input_weight.size(0); }
  int64_t outputs() const { return output_weight.size(0); }

  void check() const {
    storage_of(x, "x");
    TORCH_CHECK_VALUE(x.dim() == 4, "x must have the shape (batch, channels, height, width), got ",
                      x.sizes());
    TORCH_CHECK_VALUE(input_weight.dim() == 4 && input_weight.numel() > 0,
                      "input_weight must have the shape (hidden_channels, ", x.size(1),
                      ", 3, 3), got ", input_weight.sizes());
    TORCH_CHECK_VALUE(output_weight.dim() == 4 && output_weight.numel() > 0,
                      "output_weight must have the shape (out_channels, ", hidden(),
                      ", 3, 3), got ", output_weight.sizes());
    const auto expect = [&](const Tensor& t, const char* name, at::IntArrayRef shape) {
      check_same_type(t, name, x, "x");
      TORCH_CHECK_VALUE(t.sizes() == shape, name, " must have the shape ", shape, ", got ",
                        t.sizes());
    };
    expect(input_weight, "input_weight", {hidden(), x.size(1), 3, 3});
    expect(input_bias, "input_bias", {hidden()});
    expect(hidden_weight, "hidden_weight", {hidden(), hidden(), 1, 1});
    expect(hidden_bias, "hidden_bias", {hidden()});
    expect(output_weight, "output_weight", {outputs(), hidden(), 3, 3});
    expect(output_bias, "output_bias", {outputs()});
    expect(log_scale, "log_scale", {outputs()});
    if (context_map)
      expect(*context_map, "context_map", {x.size(0), hidden(), x.size(2), x.size(3)});
  }

  // The same in torch's operations.
  Tensor in_torch() const {
    const auto convolved = [](const Tensor& x, const Tensor& weight, const Tensor& bias,
                              int64_t padding) {
      return at::convolution(x, weight, bias, {1, 1}, {padding, padding}, {1, 1}, false, {0, 0}, 1);
    };
    Tensor a = convolved(x, input_weight, input_bias, 1);
    if (context_map) a = a.add(*context_map);
    const Tensor b = at::relu(convolved(at::relu(a), hidden_weight, hidden_bias, 0));
    const Tensor scale = log_scale.mul(3).exp();
    return convolved(b, output_weight.mul(scale.view({-1, 1, 1, 1})), output_bias.mul(scale), 1);
  }
};

// The kernel's operands, and what they point to where that is not an input itself.
struct Described {
  explicit Described(const Network& net) {
    const Tensor& x = net.x;
    p = {storage_of(x, "x"), x.size(0), x.size(1), net.hidden(),
         net.outputs(),      x.size(2), x.size(3)};
    p.x = operand_of(x);
    if (net.context_map) p.context = operand_of(*net.context_map);
    const auto dense = [&](const Tensor& t, at::MemoryFormat format) {
      kept.push_back(t.contiguous(format));
      return kept.back().const_data_ptr();
    };
    p.w_in = dense(net.input_weight, at::MemoryFormat::ChannelsLast);
    p.b_in = dense(net.input_bias, at::MemoryFormat::Contiguous);
    p.w_hidden = dense(net.hidden_weight, at::MemoryFormat::Contiguous);
    p.b_hidden = dense(net.hidden_bias, at::MemoryFormat::Contiguous);
    p.w_out = dense(net.output_weight, at::MemoryFormat::ChannelsLast);
    p.b_out = dense(net.output_bias, at::MemoryFormat::Contiguous);
    p.log_scale = dense(net.log_scale, at::MemoryFormat::Contiguous);
  }

  GlowConvNet p{};
  std::vector<Tensor> kept;
};

Tensor like_image(const Tensor& x, int64_t channels) {
  return fresh_like(at::empty({x.size(0), channels, x.size(2), x.size(3)}, x.options()));
}

std::pair<Tensor, Tensor> computed(const Network& net, bool keep) {
  const Tensor y = like_image(net.x, net.outputs());
  Tensor activations;
  if (keep)
    activations = fresh_like(at::empty(
        {2 * net.hidden() * net.x.size(0) * net.x.size(2) * net.x.size(3)}, net.x.options()));
  if (y.numel()) {
    Described described(net);
    described.p.y = operand_of(y);
    if (keep) described.p.activations = activations.data_ptr();
    run(net.x, described.p, DEEPGEN_CPU_KERNEL(glow_conv_net), nullptr);
  }
  return {y, activations};
}

Tensor glow_conv_net(const Tensor& x, const Tensor& input_weight, const Tensor& input_bias,
                     const Tensor& hidden_weight, const Tensor& hidden_bias,
                     const Tensor& output_weight, const Tensor& output_bias,
                     const Tensor& log_scale, const OptionalTensor& context_map) {
  const Network net{x,           input_weight,  input_bias,  hidden_weight,
                    hidden_bias, output_weight, output_bias, log_scale,
                    context_map};
  net.check();
  if (!in_own_kernel(x)) {
    note_choice("vendor's convolutions", "CUDA or half precision");
    return net.in_torch();
  }
  note_choice("own kernel", "float32 or float64 on a CPU");
  return computed(net, false).first;
}

std::tuple<Tensor, Tensor> glow_conv_net_keeping(
    const Tensor& x, const Tensor& input_weight, const Tensor& input_bias,
    const Tensor& hidden_weight, const Tensor& hidden_bias, const Tensor& output_weight,
    const Tensor& output_bias, const Tensor& log_scale, const OptionalTensor& context_map) {
  const Network net{x,           input_weight,  input_bias,  hidden_weight,
                    hidden_bias, output_weight, output_bias, log_scale,
                    context_map};
  net.check();
  TORCH_CHECK_TYPE(in_own_kernel(x), "activations are kept of float32 and float64 on the CPU only");
  return computed(net, true);
}

// Of x, the seven parameters and context_map; of what is not wanted, an empty tensor.
std::vector<Tensor> glow_conv_net_backward(const Tensor& grad_output, const Tensor& x,
                                           const Tensor& input_weight, const Tensor& input_bias,
                                           const Tensor& hidden_weight, const Tensor& hidden_bias,
                                           const Tensor& output_weight, const Tensor& output_bias,
                                           const Tensor& log_scale,
                                           const OptionalTensor& context_map,
                                           const Tensor& activations, std::array<bool, 3> wanted) {
  const Network net{x,           input_weight,  input_bias,  hidden_weight,
                    hidden_bias, output_weight, output_bias, log_scale,
                    context_map};
  net.check();
  TORCH_CHECK_TYPE(in_own_kernel(x), "this gradient is of float32 and float64 on the CPU only");
  check_same_type(grad_output, "grad_output", x, "x");
  check_same_type(activations, "activations", x, "x");
  const std::array<int64_t, 4> shape = {x.size(0), net.outputs(), x.size(2), x.size(3)};
  TORCH_CHECK_VALUE(grad_output.sizes() == at::IntArrayRef(shape),
                    "grad_output must have the shape ", at::IntArrayRef(shape), ", got ",
                    grad_output.sizes());
  const int64_t numbers = 2 * net.hidden() * x.size(0) * x.size(2) * x.size(3);
  TORCH_CHECK_VALUE(
      activations.dim() == 1 && activations.size(0) == numbers && activations.is_contiguous(),
      "activations must be the ", numbers, " numbers kept, got ", activations.sizes());
  const Tensor none = at::empty({0}, x.options());
  std::vector<Tensor> gradients(9, none);
  GlowConvNetBackward g{};
  if (wanted[0]) {
    gradients[0] = like_image(x, x.size(1));
    g.grad_x = operand_of(gradients[0]);
  }
  if (wanted[1]) {
    void** const places[] = {&g.w_in,  &g.b_in,  &g.w_hidden, &g.b_hidden,
                             &g.w_out, &g.b_out, &g.log_scale};
    const Tensor* const parameters[] = {&input_weight,  &input_bias,  &hidden_weight, &hidden_bias,
                                        &output_weight, &output_bias, &log_scale};
    for (int i = 0; i < 7; ++i) {
      const Tensor& t = *parameters[i];
      gradients[i + 1] = at::empty(
          t.sizes(), x.options().memory_format(t.dim() == 4 ? at::MemoryFormat::ChannelsLast
                                                            : at::MemoryFormat::Contiguous));
      *places[i] = gradients[i + 1].data_ptr();
    }
  }
  if (wanted[2]) {
    gradients[8] = like_image(x, net.hidden());
    g.grad_context = operand_of(gradients[8]);
  }
  if (grad_output.numel()) {
    Described described(net);
    described.p.y = operand_of(grad_output);
    described.p.activations = activations.data_ptr();
    g.forward = described.p;
    run(x, g, DEEPGEN_CPU_KERNEL(glow_conv_net_backward), nullptr);
  } else {
    for (Tensor& gradient : gradients) gradient.zero_();
  }
  return gradients;
}

void implement(torch::Library& library) {
  library.impl("glow_conv_net", glow_conv_net);
  library.impl("glow_conv_net_keeping", glow_conv_net_keeping);
  library.impl("glow_conv_net_backward", glow_conv_net_backward);
}

#ifndef DEEPGEN_EMULATED
Tensor differentiable(const Tensor& x, const Tensor& input_weight, const Tensor& input_bias,
                      const Tensor& hidden_weight, const Tensor& hidden_bias,
                      const Tensor& output_weight, const Tensor& output_bias,
                      const Tensor& log_scale, const OptionalTensor& context_map) {
  static const auto op = registered_op<decltype(glow_conv_net)>("deepgen_ext::glow_conv_net");
  static const auto keeping_op =
      registered_op<decltype(glow_conv_net_keeping)>("deepgen_ext::glow_conv_net_keeping");
  static const auto backward_op =
      registered_op<decltype(glow_conv_net_backward)>("deepgen_ext::glow_conv_net_backward");
  const Network net{x,           input_weight,  input_bias,  hidden_weight,
                    hidden_bias, output_weight, output_bias, log_scale,
                    context_map};
  if (!in_own_kernel(x)) {
    net.check();
    return net.in_torch();  // torch's gradient
  }
  const std::vector<Tensor> inputs = {x,
                                      input_weight,
                                      input_bias,
                                      hidden_weight,
                                      hidden_bias,
                                      output_weight,
                                      output_bias,
                                      log_scale,
                                      context_map.value_or(Tensor())};
  bool keep = false;
  for (const Tensor& input : inputs) keep |= input.defined() && input.requires_grad();
  keep &= c10::GradMode::is_enabled();
  return with_gradient(
      inputs,
      [&]() -> Evaluated {
        const auto call = [&](const auto& op) {
          return op.call(x, input_weight, input_bias, hidden_weight, hidden_bias, output_weight,
                         output_bias, log_scale, context_map);
        };
        if (!keep) return {{call(op)}, {}};
        auto [y, activations] = call(keeping_op);
        std::vector<Tensor> saved = inputs;
        saved.push_back(activations);
        return {{y}, std::move(saved)};
      },
      [](const Cotangents& given) -> std::vector<Tensor> {
        const auto& s = given.saved;
        bool parameters = false;
        for (int i = 1; i < 8; ++i) parameters |= given.wanted[i];
        std::vector<Tensor> gradients =
            backward_op.call(given.gradients[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7],
                             s[8].defined() ? OptionalTensor(s[8]) : std::nullopt, s[9],
                             {given.wanted[0], parameters, given.wanted[8]});
        for (size_t i = 0; i < gradients.size(); ++i)
          if (!given.wanted[i]) gradients[i] = Tensor();
        return gradients;
      })[0];
}
#endif

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("glow_conv_net", differentiable)

}  // namespace deepgen
