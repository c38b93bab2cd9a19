#include "gradient.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <utility>

#include "glue.h"

namespace deepgen {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The node knows the inputs that are defined; backward() all of them.
struct KeptBackward : torch::CustomClassHolder {
  KeptBackward(Backward function, std::vector<bool> defined)
      : function(std::move(function)), defined(std::move(defined)) {}
  Backward function;
  std::vector<bool> defined;
};

struct Differentiable : torch::autograd::Function<Differentiable> {
  static variable_list forward(AutogradContext* context, at::TensorList /*defined inputs*/,
                               const Forward& forward, c10::intrusive_ptr<KeptBackward> backward) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    Evaluated evaluated = forward();
    context->save_for_backward(std::move(evaluated.saved));
    context->saved_data["backward"] = c10::IValue::make_capsule(std::move(backward));
    return std::move(evaluated.outputs);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const UnlessDifferentiatedAgain below_autograd;
    const auto capsule = context->saved_data["backward"].toCapsule();
    const auto& kept = static_cast<const KeptBackward&>(*capsule);
    Cotangents given{gradients, context->get_saved_variables(), {}};
    size_t edges = 0;
    for (const bool defined : kept.defined)
      given.wanted.push_back(defined && context->needs_input_grad(edges++));
    const variable_list all = kept.function(given);
    TORCH_INTERNAL_ASSERT(all.size() == kept.defined.size());
    variable_list result;
    for (size_t i = 0; i < all.size(); ++i) {
      if (kept.defined[i]) result.push_back(all[i]);
    }
    result.resize(edges + 2);  // of the two functions
    return result;
  }
};

// Whether torch would need the node: to build a graph, or to refuse forward-mode gradients.
bool is_differentiated(const at::Tensor& input) {
  return input.defined() &&
         ((c10::GradMode::is_enabled() && input.requires_grad()) || input._fw_grad(0).defined());
}

}  // namespace

std::vector<at::Tensor> with_gradient(const std::vector<at::Tensor>& inputs, const Forward& forward,
                                      Backward backward) {
  if (std::none_of(inputs.begin(), inputs.end(), is_differentiated)) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return forward().outputs;
  }
  std::vector<at::Tensor> edges;
  std::vector<bool> defined;
  for (const at::Tensor& input : inputs) {
    defined.push_back(input.defined());
    if (input.defined()) edges.push_back(input);
  }
  return Differentiable::apply(
      at::TensorList(edges), forward,
      c10::make_intrusive<KeptBackward>(std::move(backward), std::move(defined)));
}

}  // namespace deepgen
