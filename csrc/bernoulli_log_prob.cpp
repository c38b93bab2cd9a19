// Glue of bernoulli_log_prob: checks the inputs once, allocates the outputs, calls the kernel of
// the device, and ties the gradient to the op.
#include "bernoulli_log_prob.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "choice.h"
#include "glue.h"
#include "gradient.h"

namespace deepgen {
namespace {

using at::Tensor;

void check(const Tensor& x, const Tensor& logits, int64_t batch_dims) {
  TORCH_CHECK_TYPE(!x.is_complex(), "x must be a real tensor, got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.device() == logits.device(), "x must be on the device of logits, ",
                    logits.device(), ", got ", x.device());
  TORCH_CHECK_VALUE(batch_dims >= 1 && batch_dims <= logits.dim(), "batch_dims must be 1 to ",
                    logits.dim(), ", the dimensions of logits, got ", batch_dims);
  bool broadcasts = x.dim() <= logits.dim();
  for (int64_t d = 1; broadcasts && d <= x.dim(); ++d) {
    broadcasts = x.size(-d) == logits.size(-d) || x.size(-d) == 1;
  }
  TORCH_CHECK_VALUE(broadcasts, "x must broadcast to the shape of logits, ", logits.sizes(),
                    ", got ", x.sizes());
}

// x in a type that the kernels read. Half types are read where the logits have the same.
Tensor readable(const Tensor& x, const Tensor& logits) {
  const auto type = x.scalar_type();
  const bool as_it_is = type == at::kBool || type == at::kByte || type == logits.scalar_type() ||
                        type == sum_type(logits);
  return as_it_is ? x : x.to(sum_type(logits));
}

TargetStorage target_storage_of(const Tensor& x, const Tensor& logits) {
  if (x.scalar_type() == at::kBool || x.scalar_type() == at::kByte) return TargetStorage::bytes;
  return x.scalar_type() == logits.scalar_type() ? TargetStorage::as_logits
                                                 : TargetStorage::as_sums;
}

// The dimensions of a row last, ordered as they lie in the memory of the logits.
std::vector<int64_t> order_of(const Tensor& logits, int64_t batch_dims) {
  std::vector<int64_t> order(logits.dim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin() + batch_dims, order.end(),
                   [&](int64_t a, int64_t b) { return logits.stride(a) > logits.stride(b); });
  return order;
}

bool has_dense_rows(const Tensor& t, int64_t batch_dims) {
  int64_t expected = 1;
  for (int64_t d = t.dim() - 1; d >= batch_dims; --d) {
    if (t.size(d) == 1) continue;
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

Tensor with_dense_rows(const Tensor& t, int64_t batch_dims) {
  return has_dense_rows(t, batch_dims) ? t : t.contiguous();
}

// Tensors that the kernel reads and writes, in an order of dimensions in which their rows are
// dense, and the problem that points to them.
struct Prepared {
  Prepared(const Tensor& given_x, const Tensor& given_logits, int64_t batch_dims,
           const Tensor& given_grad = {}) {
    problem.storage = storage_of(given_logits, "logits");
    check(given_x, given_logits, batch_dims);
    order = order_of(given_logits, batch_dims);
    logits = with_dense_rows(given_logits.permute(order), batch_dims);
    const Tensor target = readable(given_x, given_logits);
    problem.target_storage = target_storage_of(target, given_logits);
    // Whole rows of x, but each once, whatever part of the batch shares it.
    std::vector<int64_t> shape(given_logits.sizes().begin(), given_logits.sizes().end());
    for (int64_t d = 0; d < batch_dims; ++d) {
      const int64_t own = d - (given_logits.dim() - target.dim());
      shape[d] = own < 0 ? 1 : target.size(own);
    }
    x = with_dense_rows(target.expand(shape).permute(order), batch_dims).expand(logits.sizes());
    if (given_grad.defined()) {
      grad = given_grad.permute(order);
      if (!has_dense_rows(grad, batch_dims)) grad = at::empty(logits.sizes(), logits.options());
    }
    if (!group_batch(batch_dims)) {
      note_choice("contiguous copies first",
                  "more than three dimensions of the batch do not merge");
      logits = logits.contiguous();
      x = x.contiguous();
      if (grad.defined()) grad = at::empty(logits.sizes(), logits.options());
      group_batch(batch_dims);
    }
    problem.elements = 1;
    for (int64_t d = batch_dims; d < logits.dim(); ++d) problem.elements *= logits.size(d);
    problem.x = operand_of(x);
    problem.logits = operand_of(logits);
  }

  // Merges batch dimensions wherever all tensors allow; false where more than three remain.
  bool group_batch(int64_t batch_dims) {
    groups.clear();
    problem.batch[0] = problem.batch[1] = problem.batch[2] = 1;
    std::vector<int64_t> sizes;
    const auto joins = [&](const Tensor& t, int64_t outer, int64_t inner) {
      return !t.defined() || t.stride(outer) == t.stride(inner) * t.size(inner);
    };
    for (int64_t d = 0; d < batch_dims; ++d) {
      if (logits.size(d) == 1) continue;
      if (!groups.empty() && joins(x, groups.back(), d) && joins(logits, groups.back(), d) &&
          joins(grad, groups.back(), d)) {
        groups.back() = d;
        sizes.back() *= logits.size(d);
      } else {
        groups.push_back(d);
        sizes.push_back(logits.size(d));
      }
    }
    if (groups.size() > 3) return false;
    std::copy(sizes.begin(), sizes.end(), problem.batch + (3 - sizes.size()));
    return true;
  }

  BatchOfRows operand_of(const Tensor& t) const {
    BatchOfRows operand{t.data_ptr(), {0, 0, 0}};
    for (size_t g = 0; g < groups.size(); ++g) {
      operand.stride[3 - groups.size() + g] = t.stride(groups[g]);
    }
    return operand;
  }

  std::vector<int64_t> order, groups;  // groups: the innermost dimension of each
  Tensor x, logits, grad;
  BernoulliLogProb problem{};
};

Tensor bernoulli_log_prob(const Tensor& x, const Tensor& logits, int64_t batch_dims) {
  Prepared prepared(x, logits, batch_dims);
  BernoulliLogProb& p = prepared.problem;
  const auto options = logits.options().dtype(sum_type(logits));
  const Tensor log_prob = at::empty(logits.sizes().slice(0, batch_dims), options);
  p.log_prob = log_prob.data_ptr();
  Tensor partial_sums;
  int64_t (*const pieces)(int64_t) = DEEPGEN_CUDA_KERNEL(bernoulli_log_prob_pieces);
  if (on_cuda_path(logits) && pieces && pieces(p.elements) > 1) {
    p.pieces = pieces(p.elements);
    partial_sums = at::empty({p.rows(), p.pieces}, options);
    p.partial_sums = partial_sums.data_ptr();
  }
  run(logits, p, DEEPGEN_CPU_KERNEL(bernoulli_log_prob), DEEPGEN_CUDA_KERNEL(bernoulli_log_prob));
  return log_prob;
}

// The gradients of x and of the logits; of what is not wanted, an empty tensor.
std::tuple<Tensor, Tensor> bernoulli_log_prob_backward(const Tensor& grad_output, const Tensor& x,
                                                       const Tensor& logits,
                                                       std::array<bool, 2> wanted) {
  const int64_t batch_dims = grad_output.dim();
  TORCH_CHECK_VALUE(
      batch_dims <= logits.dim() && grad_output.sizes() == logits.sizes().slice(0, batch_dims),
      "grad_output must have the first dimensions of logits, ", logits.sizes(), ", got ",
      grad_output.sizes());
  const Tensor grad = grad_output.to(sum_type(logits)).contiguous();
  Tensor by_x = at::empty({0}, x.options()), by_logits = at::empty({0}, logits.options());
  if (wanted[1]) {
    by_logits = fresh_like(logits);
    const Prepared prepared(x, logits, batch_dims, by_logits);
    BernoulliLogProbBackward p{prepared.problem, grad.data_ptr(),
                               prepared.operand_of(prepared.grad)};
    run(logits, p, DEEPGEN_CPU_KERNEL(bernoulli_log_prob_backward),
        DEEPGEN_CUDA_KERNEL(bernoulli_log_prob_backward));
    if (by_logits.numel() > 0 && prepared.grad.data_ptr() != by_logits.data_ptr()) {
      by_logits.permute(prepared.order).copy_(prepared.grad);
    }
  } else {
    check(x, logits, batch_dims);
  }
  if (wanted[0]) {  // seldom: targets are data
    std::vector<int64_t> shape(logits.dim(), 1);
    std::copy(grad.sizes().begin(), grad.sizes().end(), shape.begin());
    const Tensor each = logits.to(sum_type(logits)).mul(grad.view(shape));
    by_x = at::empty_like(x);
    by_x.copy_(each.sum_to_size(x.sizes()));
  }
  return {by_x, by_logits};
}

void implement(torch::Library& library) {
  library.impl("bernoulli_log_prob", bernoulli_log_prob);
  library.impl("bernoulli_log_prob_backward", bernoulli_log_prob_backward);
}

#ifndef DEEPGEN_EMULATED
Tensor differentiable(const Tensor& x, const Tensor& logits, int64_t batch_dims) {
  static const auto op =
      registered_op<decltype(bernoulli_log_prob)>("deepgen_ext::bernoulli_log_prob");
  static const auto backward_op = registered_op<decltype(bernoulli_log_prob_backward)>(
      "deepgen_ext::bernoulli_log_prob_backward");
  return with_gradient(
      {x, logits}, [&]() -> Evaluated { return {{op.call(x, logits, batch_dims)}, {x, logits}}; },
      [](const Cotangents& given) -> std::vector<Tensor> {
        const auto& wanted = given.wanted;
        auto [by_x, by_logits] = backward_op.call(given.gradients[0], given.saved[0],
                                                  given.saved[1], {wanted[0], wanted[1]});
        return {wanted[0] ? by_x : Tensor(), wanted[1] ? by_logits : Tensor()};
      })[0];
}
#endif

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("bernoulli_log_prob", differentiable)

}  // namespace deepgen
