// masked_conv2d by the vendor's convolutions (oneDNN, cuDNN): one of the rows above, one of the
// row's left part with the centre, and with ordered channels one of 1x1 a group. A whole kernel
// with its masked weights set to zero would multiply what it must not see, and 0 inf = nan.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "masked_conv2d.h"

namespace deepgen {

// Of the problem, kernel and extent; the addresses are not needed.
at::Tensor vendor_convolution(const MaskedConv2d& problem, const at::Tensor& x,
                              const at::Tensor& weight, const std::optional<at::Tensor>& bias);

// Fills grad_x and grad_weight where they are defined.
void vendor_convolution_backward(const MaskedConv2d& problem, const at::Tensor& grad_output,
                                 const at::Tensor& x, const at::Tensor& weight,
                                 const at::Tensor& grad_x, const at::Tensor& grad_weight);

}  // namespace deepgen
