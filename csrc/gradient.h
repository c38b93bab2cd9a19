// What ties a gradient to an op: one autograd node for all ops, given by two functions. Torch's
// header for such nodes takes ten seconds to compile, so that only gradient.cpp includes it.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace deepgen {

// What a forward pass returns, and what its backward pass will need of tensors. The saved ones are
// inputs or outputs, or carry no gradient.
struct Evaluated {
  std::vector<at::Tensor> outputs, saved;
};

// What a backward pass is given.
struct Cotangents {
  std::vector<at::Tensor> gradients;  // of the outputs; zeros where nothing flows back
  std::vector<at::Tensor> saved;
  std::vector<bool> wanted;  // of the inputs
};

using Forward = std::function<Evaluated()>;
using Backward = std::function<std::vector<at::Tensor>(const Cotangents&)>;

// The outputs of forward(), run below autograd. backward() returns a gradient for each of the
// `inputs`, an undefined tensor where there is none; it must keep no tensor but by `saved`. An
// input may be an undefined tensor. Under torch.func, and with forward-mode gradients, an error.
std::vector<at::Tensor> with_gradient(const std::vector<at::Tensor>& inputs, const Forward& forward,
                                      Backward backward);

}  // namespace deepgen
