// Glue of power_iteration and of W scaled by it: describes the weights as matrices, and ties the
// gradients to the ops.
#include "power_iteration.h"

#include <ATen/ops/alias.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <string>

#include "glue.h"
#include "gradient.h"

namespace deepgen {
namespace {

using at::Tensor;
using at::TensorList;
using Tensors = std::vector<Tensor>;

std::string at_index(const char* name, size_t index) {
  return std::string(name) + "[" + std::to_string(index) + "]";
}

// The dimensions behind the first, merged: nothing where more than two remain.
std::optional<MatrixOperand> describe_matrix(const Tensor& tensor) {
  MatrixOperand matrix{tensor.const_data_ptr(), tensor.size(0), 1, 1, tensor.stride(0), 0, 1};
  bool has_inner = false, has_outer = false;
  for (int64_t d = tensor.dim() - 1; d >= 1; --d) {
    const int64_t size = tensor.size(d), stride = tensor.stride(d);
    if (size == 1) continue;
    if (!has_inner) {
      has_inner = true, matrix.inner = size, matrix.inner_stride = stride;
    } else if (!has_outer && stride == matrix.inner * matrix.inner_stride) {
      matrix.inner *= size;
    } else if (!has_outer) {
      has_outer = true, matrix.outer = size, matrix.outer_stride = stride;
    } else if (stride == matrix.outer * matrix.outer_stride) {
      matrix.outer *= size;
    } else {
      return std::nullopt;
    }
  }
  return matrix;
}

// The tensor, in the order of memory and without gaps.
Tensor without_gaps(const Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? tensor : at::empty_like(tensor).copy_(tensor);
}

// As without_gaps, and with the strides of `like`.
Tensor in_order_of(const Tensor& tensor, const Tensor& like) {
  return tensor.strides() == like.strides() ? tensor : at::empty_like(like).copy_(tensor);
}

// float64 for float64 weights, else float32: a half u would spoil sigma in its third digit.
void check_sum_type(const Tensor& vector, const char* name, const Tensor& weight) {
  TORCH_CHECK_TYPE(vector.scalar_type() == sum_type(weight), name, " must be a ", sum_type(weight),
                   " tensor for weights of ", weight.scalar_type(), ", got ", vector.scalar_type());
  TORCH_CHECK_VALUE(vector.device() == weight.device(), name,
                    " must be on the device of the weights, ", weight.device(), ", got ",
                    vector.device());
}

void check_lists(TensorList weights, TensorList us, TensorList vs) {
  TORCH_CHECK_VALUE(!weights.empty(), "weights must hold at least one matrix");
  TORCH_CHECK_VALUE(us.size() == weights.size() && vs.size() == weights.size(),
                    "us and vs must have an entry for each of the ", weights.size(),
                    " weights, got ", us.size(), " and ", vs.size());
  for (size_t m = 0; m < weights.size(); ++m) {
    const Tensor& weight = weights[m];
    const std::string name = at_index("weights", m);
    storage_of(weight, name.c_str());
    if (m > 0) check_same_type(weight, name.c_str(), weights[0], "weights[0]");
    TORCH_CHECK_VALUE(weight.dim() >= 2 && weight.numel() > 0, name,
                      " must have the shape (out, in) or (out, ...), none of them 0, got ",
                      weight.sizes());
    const int64_t rows = weight.size(0), columns = weight.numel() / rows;
    const auto check_vector = [&](const char* list, const Tensor& vector, int64_t size) {
      const std::string vector_name = at_index(list, m);
      check_sum_type(vector, vector_name.c_str(), weight);
      TORCH_CHECK_VALUE(vector.dim() == 1 && vector.size(0) == size, vector_name,
                        " must have the shape [", size, "], got ", vector.sizes());
    };
    check_vector("us", us[m], rows);
    check_vector("vs", vs[m], columns);
  }
}

double checked_coefficient(std::optional<double> coefficient) {
  TORCH_CHECK_VALUE(!coefficient || (*coefficient > 0 && std::isfinite(*coefficient)),
                    "coefficient must be a finite number above 0, got ", coefficient.value_or(0));
  return coefficient.value_or(0);
}

// Scaled weights if wanted, new us, new vs, sigmas.
Tensors iterate(TensorList weights, TensorList us, TensorList vs, int64_t n_iterations, double eps,
                bool scaled, std::optional<double> coefficient) {
  check_lists(weights, us, vs);
  TORCH_CHECK_VALUE(n_iterations >= 0, "n_iterations must be 0 or more, got ", n_iterations);
  TORCH_CHECK_VALUE(eps >= 0 && std::isfinite(eps), "eps must be a finite number, 0 or more, got ",
                    eps);
  const size_t count = weights.size();
  const Tensor& like = weights[0];
  Tensors kept, results;
  std::vector<PowerMatrix> matrices(count);
  for (size_t m = 0; m < count; ++m) {
    PowerMatrix& matrix = matrices[m];
    const Tensor elements = without_gaps(weights[m]);
    kept.push_back(elements);
    auto described = describe_matrix(elements);
    if (!described) {
      kept.push_back(elements.contiguous());
      described = describe_matrix(kept.back());
    }
    matrix.weight = *described;
    matrix.index = static_cast<int64_t>(m);
    if (scaled) {
      results.push_back(fresh_like(elements));
      matrix.elements = elements.const_data_ptr();
      matrix.scaled = results.back().data_ptr();
    }
  }
  const auto with_new = [&](TensorList vectors, const void* PowerMatrix::* given,
                            void* PowerMatrix::* made) {
    for (size_t m = 0; m < count; ++m) {
      kept.push_back(vectors[m].contiguous());
      matrices[m].*given = kept.back().const_data_ptr();
      results.push_back(at::empty(vectors[m].sizes(), vectors[m].options()));
      matrices[m].*made = results.back().data_ptr();
    }
  };
  with_new(us, &PowerMatrix::u, &PowerMatrix::new_u);
  with_new(vs, &PowerMatrix::v, &PowerMatrix::new_v);
  const auto sums = like.options().dtype(sum_type(like));
  results.push_back(at::empty({static_cast<int64_t>(count)}, sums));
  if (int64_t (*const scratch)(const MatrixOperand&) = DEEPGEN_CUDA_KERNEL(power_scratch);
      on_cuda_path(like) && scratch) {
    for (PowerMatrix& matrix : matrices) {
      kept.push_back(at::empty({scratch(matrix.weight)}, sums));
      matrix.partial = kept.back().data_ptr();
    }
  }
  const PowerIteration p{storage_of(like, "weights[0]"),
                         matrices.data(),
                         static_cast<int64_t>(count),
                         n_iterations,
                         eps,
                         checked_coefficient(coefficient),
                         results.back().data_ptr()};
  run<PowerIteration>(like, p, DEEPGEN_CPU_KERNEL(power_iteration),
                      DEEPGEN_CUDA_KERNEL(power_iteration));
  return results;
}

Tensors power_iteration(TensorList weights, TensorList us, TensorList vs, int64_t n_iterations,
                        double eps) {
  return iterate(weights, us, vs, n_iterations, eps, false, std::nullopt);
}

Tensors spectral_normalize(TensorList weights, TensorList us, TensorList vs, int64_t n_iterations,
                           double eps, std::optional<double> coefficient) {
  return iterate(weights, us, vs, n_iterations, eps, true, coefficient);
}

Tensors spectral_normalize_backward(TensorList grads, const Tensor& grad_sigmas, TensorList weights,
                                    TensorList us, TensorList vs, const Tensor& sigmas,
                                    std::optional<double> coefficient) {
  check_lists(weights, us, vs);
  const size_t count = weights.size();
  TORCH_CHECK_VALUE(grads.size() == count, "grads must have an entry for each of the ", count,
                    " weights, got ", grads.size());
  for (const auto& [vector, name] : {std::pair(&sigmas, "sigmas"), {&grad_sigmas, "grad_sigmas"}}) {
    check_sum_type(*vector, name, weights[0]);
    TORCH_CHECK_VALUE(vector->dim() == 1 && vector->size(0) == static_cast<int64_t>(count), name,
                      " must have the shape [", count, "], got ", vector->sizes());
  }
  const Tensor dense_sigmas = sigmas.contiguous(), dense_grad_sigmas = grad_sigmas.contiguous();
  Tensors kept, results;
  std::vector<ScaledGradient> matrices(count);
  for (size_t m = 0; m < count; ++m) {
    check_same_shape(grads[m], at_index("grads", m).c_str(), weights[m],
                     at_index("weights", m).c_str());
    Tensor weight = without_gaps(weights[m]);
    auto described = describe_matrix(weight);
    if (!described) {
      weight = weight.contiguous();
      described = describe_matrix(weight);
    }
    const Tensor grad = in_order_of(grads[m], weight), u = us[m].contiguous(),
                 v = vs[m].contiguous();
    results.push_back(fresh_like(weight));
    matrices[m] = {*described,         grad.const_data_ptr(), results.back().data_ptr(),
                   u.const_data_ptr(), v.const_data_ptr(),    static_cast<int64_t>(m)};
    kept.insert(kept.end(), {weight, grad, u, v});
    if (int64_t (*const scratch)(const MatrixOperand&) = DEEPGEN_CUDA_KERNEL(gradient_scratch);
        on_cuda_path(weight) && scratch) {
      kept.push_back(at::empty({scratch(*described)}, sigmas.options()));
      matrices[m].partial = kept.back().data_ptr();
    }
  }
  const PowerIterationBackward p{
      storage_of(weights[0], "weights[0]"), matrices.data(),
      static_cast<int64_t>(count),          checked_coefficient(coefficient),
      dense_sigmas.const_data_ptr(),        dense_grad_sigmas.const_data_ptr()};
  run<PowerIterationBackward>(weights[0], p, DEEPGEN_CPU_KERNEL(power_iteration_backward),
                              DEEPGEN_CUDA_KERNEL(power_iteration_backward));
  for (size_t m = 0; m < count; ++m)
    results[m] = in_order_of(results[m], at::empty_like(weights[m]));
  return results;
}

void implement(torch::Library& library) {
  library.impl("power_iteration", power_iteration);
  library.impl("spectral_normalize", spectral_normalize);
  library.impl("spectral_normalize_backward", spectral_normalize_backward);
}

#ifndef DEEPGEN_EMULATED
Tensors part(const Tensors& all, size_t from, size_t count) {
  return {all.begin() + from, all.begin() + from + count};
}

// `all` are the results of an op: `differentiable` of them, us, vs, sigmas. Calls the op as a node
// whose outputs are those that carry a gradient; u and v are constants.
template <class Op>
Tensors with_constant_vectors(TensorList weights, bool keeps_weights, const Op& op,
                              Backward backward) {
  const size_t n = weights.size();
  Tensors vectors;
  Tensors results = with_gradient(
      weights.vec(),
      [&]() -> Evaluated {
        Tensors all = op();
        const size_t scaled = all.size() - 1 - 2 * n;
        vectors = part(all, scaled, 2 * n);
        Tensors outputs = part(all, 0, scaled), saved = vectors;
        outputs.push_back(all.back());
        if (keeps_weights) {
          saved.push_back(all.back());
          saved.insert(saved.end(), weights.begin(), weights.end());
        }
        return {outputs, saved};
      },
      std::move(backward));
  results.insert(results.end() - 1, vectors.begin(), vectors.end());
  return results;
}

Tensors differentiable_iteration(TensorList weights, TensorList us, TensorList vs,
                                 int64_t n_iterations, double eps) {
  static const auto op = registered_op<decltype(power_iteration)>("deepgen_ext::power_iteration");
  std::vector<std::vector<int64_t>> shapes;
  for (const Tensor& weight : weights) shapes.push_back(weight.sizes().vec());
  const at::ScalarType type = weights[0].scalar_type();
  return with_constant_vectors(
      weights, false, [&] { return op.call(weights, us, vs, n_iterations, eps); },
      [shapes, type](const Cotangents& given) {
        const size_t n = shapes.size();
        Tensors gradients(n);
        for (size_t m = 0; m < n; ++m) {
          if (!given.wanted[m]) continue;
          const Tensor u =
              given.saved[m].mul(given.gradients[0].select(0, static_cast<int64_t>(m)));
          gradients[m] = at::outer(u, given.saved[n + m]).view(shapes[m]).to(type);
        }
        return gradients;
      });
}

Tensors differentiable_normalize(TensorList weights, TensorList us, TensorList vs,
                                 int64_t n_iterations, double eps,
                                 std::optional<double> coefficient) {
  static const auto op =
      registered_op<decltype(spectral_normalize)>("deepgen_ext::spectral_normalize");
  static const auto backward_op = registered_op<decltype(spectral_normalize_backward)>(
      "deepgen_ext::spectral_normalize_backward");
  return with_constant_vectors(
      weights, true, [&] { return op.call(weights, us, vs, n_iterations, eps, coefficient); },
      [coefficient](const Cotangents& given) {
        const size_t n = given.gradients.size() - 1;
        return backward_op.call(part(given.gradients, 0, n), given.gradients[n],
                                part(given.saved, 2 * n + 1, n), part(given.saved, 0, n),
                                part(given.saved, n, n), given.saved[2 * n], coefficient);
      });
}
#endif

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("power_iteration", differentiable_iteration)
DEEPGEN_REGISTER_AUTOGRAD("spectral_normalize", differentiable_normalize)

#ifndef DEEPGEN_EMULATED
// Keeps what differentiable_normalize keeps of one weight, in its order: a checkpoint may meet the
// one in its first forward pass and the other in its second.
Tensor known_scaled_weight(const Tensor& weight, const Tensor& scaled, const Tensor& u,
                           const Tensor& v, const Tensor& sigma, double coefficient) {
  static const auto iteration =
      registered_op<decltype(power_iteration)>("deepgen_ext::power_iteration");
  static const auto backward_op = registered_op<decltype(spectral_normalize_backward)>(
      "deepgen_ext::spectral_normalize_backward");
  const auto forward = [&]() -> Evaluated { return {{at::alias(scaled)}, {u, v, sigma, weight}}; };
  const auto backward = [coefficient](const Cotangents& given) -> Tensors {
    const Tensor &u = given.saved[0], &v = given.saved[1], &w = given.saved[3];
    Tensor sigma = given.saved[2];
    const Tensor nothing = at::zeros_like(sigma);
    // The gradient's gradient goes through sigma too, which depends on the weight.
    if (c10::GradMode::is_enabled()) sigma = iteration.call({w}, {u}, {v}, 0, 0.0).back();
    const auto c = coefficient > 0 ? std::optional(coefficient) : std::nullopt;
    return backward_op.call(given.gradients, nothing, {w}, {u}, {v}, sigma, c);
  };
  return with_gradient({weight}, forward, backward)[0];
}
#endif

}  // namespace deepgen
