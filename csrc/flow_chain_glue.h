// The glue that planar_chain and radial_chain share. `Chain` names the op and its kernels:
//   name, backward_name, vectors, on_cpu, on_cuda, backward_on_cpu, backward_on_cuda, scratch.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "flow_chain.h"
#include "glue.h"
#include "gradient.h"

namespace deepgen {

using ChainScratchOf = ChainScratch(Storage, int64_t batch, int64_t features);

template <class Chain>
void check_chain(const at::Tensor& z, const at::Tensor& parameters) {
  TORCH_CHECK_VALUE(z.dim() == 2 && z.size(1) >= 1, "z must have the shape (batch, features), got ",
                    z.sizes());
  TORCH_CHECK_TYPE(parameters.scalar_type() == sum_type(z), "parameters must be ", sum_type(z),
                   " for z of ", z.scalar_type(), ", got ", parameters.scalar_type());
  TORCH_CHECK_VALUE(parameters.device() == z.device(), "parameters must be on the device of z, ",
                    z.device(), ", got ", parameters.device());
  const int64_t width = Chain::vectors * z.size(1) + 2;
  TORCH_CHECK_VALUE(parameters.dim() == 2 && parameters.size(1) == width,
                    "parameters must have the shape (steps, ", width, "), got ",
                    parameters.sizes());
}

inline SampleOperand samples_of(const at::Tensor& tensor) {
  return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1)};
}

template <class Chain>
std::tuple<at::Tensor, at::Tensor> flow_chain(const at::Tensor& z, const at::Tensor& parameters) {
  FlowChain p{storage_of(z, "z"), 0, 0, 0, {}, {}, nullptr, nullptr};
  check_chain<Chain>(z, parameters);
  const at::Tensor dense = parameters.contiguous(), output = fresh_like(z);
  const at::Tensor log_det = at::empty({z.size(0)}, dense.options());
  p.batch = z.size(0);
  p.features = z.size(1);
  p.steps = dense.size(0);
  p.z = samples_of(z);
  p.output = samples_of(output);
  p.parameters = dense.data_ptr();
  p.log_det = log_det.data_ptr();
  run<FlowChain>(z, p, Chain::on_cpu, Chain::on_cuda);
  return {output, log_det};
}

// grad_z, grad_parameters.
template <class Chain>
std::tuple<at::Tensor, at::Tensor> flow_chain_backward(const at::Tensor& grad_output,
                                                       const at::Tensor& grad_log_det,
                                                       const at::Tensor& z,
                                                       const at::Tensor& parameters) {
  FlowChainBackward p{storage_of(z, "z"), 0, 0, 0, {}, {}, {}, nullptr, nullptr, nullptr};
  check_chain<Chain>(z, parameters);
  check_same_shape(grad_output, "grad_output", z, "z");
  TORCH_CHECK_VALUE(grad_log_det.dim() == 1 && grad_log_det.size(0) == z.size(0),
                    "grad_log_det must have the shape [", z.size(0), "], got ",
                    grad_log_det.sizes());
  const at::Tensor dense = parameters.contiguous();
  const at::Tensor by_log_det = grad_log_det.to(sum_type(z)).contiguous();
  const at::Tensor grad_z = fresh_like(z), grad_parameters = at::empty_like(dense);
  p.batch = z.size(0);
  p.features = z.size(1);
  p.steps = dense.size(0);
  p.grad_output = samples_of(grad_output);
  p.z = samples_of(z);
  p.grad_z = samples_of(grad_z);
  p.parameters = dense.data_ptr();
  p.grad_log_det = by_log_det.data_ptr();
  p.grad_parameters = grad_parameters.data_ptr();
  at::Tensor states, partial_sums;
  if (ChainScratchOf* const scratch = Chain::scratch(); on_cuda_path(z) && scratch) {
    const ChainScratch room = scratch(p.storage, p.batch, p.features);
    states = at::empty({room.blocks, room.rows, p.steps + 1, p.features}, dense.options());
    partial_sums = at::empty({room.blocks, p.steps, dense.size(1)}, dense.options());
    p.blocks = room.blocks;
    p.states = states.data_ptr();
    p.partial_sums = partial_sums.data_ptr();
  }
  run<FlowChainBackward>(z, p, Chain::backward_on_cpu, Chain::backward_on_cuda);
  return {grad_z, grad_parameters};
}

#ifndef DEEPGEN_EMULATED
template <class Chain>
std::tuple<at::Tensor, at::Tensor> differentiable_chain(const at::Tensor& z,
                                                        const at::Tensor& parameters) {
  static const auto op = registered_op<decltype(flow_chain<Chain>)>(Chain::name);
  static const auto backward_op =
      registered_op<decltype(flow_chain_backward<Chain>)>(Chain::backward_name);
  const auto outputs = with_gradient(
      {z, parameters},
      [&]() -> Evaluated {
        auto [output, log_det] = op.call(z, parameters);
        return {{output, log_det}, {z, parameters}};  // the states between are recomputed
      },
      [](const Cotangents& given) -> std::vector<at::Tensor> {
        auto [by_z, by_parameters] = backward_op.call(given.gradients[0], given.gradients[1],
                                                      given.saved[0], given.saved[1]);
        return {by_z, by_parameters};
      });
  return {outputs[0], outputs[1]};
}
#endif

}  // namespace deepgen
