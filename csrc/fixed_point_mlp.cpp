// Glue of fixed_point_mlp: checks the network once, calls the kernel of the device.
#include "fixed_point_mlp.h"

#include <ATen/ops/empty.h>

#include <string>

#include "choice.h"
#include "glue.h"

namespace deepgen {
namespace {

using at::Tensor;
using at::TensorList;

MlpActivation activation_named(std::string_view name) {
  constexpr std::string_view names[] = {"relu", "elu",      "tanh",       "lipswish", "silu",
                                        "sin",  "softplus", "leaky_relu", "sigmoid"};
  std::string known;
  for (size_t i = 0; i < std::size(names); ++i) {
    if (names[i] == name) return static_cast<MlpActivation>(i);
    known += (i ? ", " : "") + std::string(names[i]);
  }
  TORCH_CHECK_VALUE(false, "activation must be one of ", known, ", got '", name, "'");
}

// Puts the layers into the problem; what their pointers lie in goes to `kept`.
void describe_layers(FixedPointMlp& p, const Tensor& y, TensorList weights, TensorList biases,
                     std::vector<Tensor>& kept) {
  TORCH_CHECK_VALUE(!weights.empty() && weights.size() <= most_mlp_layers,
                    "weights must be those of 1 to ", most_mlp_layers, " layers, got ",
                    weights.size());
  TORCH_CHECK_VALUE(biases.size() == weights.size(),
                    "biases must have an entry for each of the weights, ", weights.size(), ", got ",
                    biases.size());
  p.layers = static_cast<int>(weights.size());
  for (int l = 0; l < p.layers; ++l) {
    const std::string weight_name = "weights[" + std::to_string(l) + "]";
    const std::string bias_name = "biases[" + std::to_string(l) + "]";
    check_same_type(weights[l], weight_name.c_str(), y, "y");
    check_same_type(biases[l], bias_name.c_str(), y, "y");
    TORCH_CHECK_VALUE(weights[l].dim() == 2 && weights[l].size(1) == p.inputs(l) &&
                          (l < p.layers - 1 || weights[l].size(0) == p.features),
                      weight_name, " must have the shape [",
                      l < p.layers - 1 ? "units" : std::to_string(p.features), ", ", p.inputs(l),
                      "], got ", weights[l].sizes());
    const int64_t units = weights[l].size(0);
    TORCH_CHECK_VALUE(biases[l].dim() == 1 && biases[l].size(0) == units, bias_name,
                      " must have the shape [", units, "], got ", biases[l].sizes());
    kept.push_back(weights[l].stride(1) == 1 ? weights[l] : weights[l].contiguous());
    const Tensor& weight = kept.back();
    p.layer[l].weight = weight.const_data_ptr();
    p.layer[l].weight_stride = weight.stride(0);
    kept.push_back(biases[l].contiguous());
    p.layer[l].bias = kept.back().const_data_ptr();
    p.layer[l].units = units;
  }
}

// Room in global memory for the blocks of the CUDA kernel that do not find enough shared memory.
Tensor scratch_for(FixedPointMlp& p, const Tensor& like) {
  int64_t (*const size)(const FixedPointMlp&) = DEEPGEN_CUDA_KERNEL(fixed_point_mlp_scratch);
  if (!on_cuda_path(like) || !size) return Tensor();
  p.scratch_per_block = size(p);
  if (p.scratch_per_block == 0) {
    note_choice("tile in shared memory", "its history fits");
    return Tensor();
  }
  note_choice("tile in global memory", "its history does not fit into shared memory");
  const int64_t blocks = (p.batch + fixed_point_samples - 1) / fixed_point_samples;
  const Tensor scratch = at::empty({blocks * p.scratch_per_block}, like.options());
  p.scratch = scratch.data_ptr();
  return scratch;
}

std::tuple<Tensor, Tensor, Tensor> fixed_point_mlp(const Tensor& y, const Tensor& x0,
                                                   const Tensor& tolerance, TensorList weights,
                                                   TensorList biases, const Tensor& betas,
                                                   std::string_view activation, double lipschitz,
                                                   double rounding, int64_t max_iterations,
                                                   int64_t memory) {
  FixedPointMlp p{storage_of(y, "y"), activation_named(activation)};
  TORCH_CHECK_TYPE(p.storage == Storage::f32 || p.storage == Storage::f64,
                   "y must be a float32 or float64 tensor, got ", y.scalar_type());
  TORCH_CHECK_VALUE(y.dim() == 2, "y must have the shape (batch, features), got ", y.sizes());
  check_same_shape(x0, "x0", y, "y");
  TORCH_CHECK_TYPE(tolerance.scalar_type() == at::kDouble,
                   "tolerance must be a float64 tensor, got ", tolerance.scalar_type());
  TORCH_CHECK_VALUE(
      tolerance.dim() == 1 && tolerance.size(0) == y.size(0) && tolerance.device() == y.device(),
      "tolerance must have the shape [", y.size(0), "] on the device of y, got ", tolerance.sizes(),
      " on ", tolerance.device());
  TORCH_CHECK_VALUE(lipschitz > 0 && lipschitz < 1, "lipschitz must lie in (0, 1), got ",
                    lipschitz);
  TORCH_CHECK_VALUE(rounding >= 0 && std::isfinite(rounding),
                    "rounding must be a finite number, at least 0, got ", rounding);
  TORCH_CHECK_VALUE(max_iterations >= 1 && max_iterations <= INT32_MAX,
                    "max_iterations must be at least 1, got ", max_iterations);
  TORCH_CHECK_VALUE(memory >= 0 && memory != 1 && memory <= most_memory,
                    "memory must be 0 or 2 to ", most_memory, ", got ", memory);
  p.batch = y.size(0);
  p.features = y.size(1);
  std::vector<Tensor> kept;
  describe_layers(p, y, weights, biases, kept);
  check_same_type(betas, "betas", y, "y");
  TORCH_CHECK_VALUE(betas.dim() == 1 && betas.size(0) == p.layers - 1,
                    "betas must have the shape [", p.layers - 1,
                    "], a number for each hidden "
                    "layer, got ",
                    betas.sizes());
  const Tensor dense_y = y.contiguous(), dense_x0 = x0.contiguous(),
               dense_tolerance = tolerance.contiguous(), dense_betas = betas.contiguous();
  const auto numbers = y.options().dtype(at::kDouble);
  const Tensor x = at::empty(y.sizes(), y.options()),
               record = at::empty({p.batch, iteration::numbers}, numbers),
               state = at::empty({p.batch, iteration::words}, numbers.dtype(at::kInt));
  p.betas = dense_betas.const_data_ptr();
  p.lipschitz = lipschitz;
  p.rounding = rounding;
  p.max_iterations = static_cast<int>(max_iterations);
  p.memory = static_cast<int>(memory);
  p.y = dense_y.const_data_ptr();
  p.x0 = dense_x0.const_data_ptr();
  p.tolerance = dense_tolerance.const_data_ptr<double>();
  p.x = x.data_ptr();
  p.record = record.data_ptr<double>();
  p.state = state.data_ptr<int32_t>();
  const Tensor scratch = scratch_for(p, y);
  run(y, p, DEEPGEN_CPU_KERNEL(fixed_point_mlp), DEEPGEN_CUDA_KERNEL(fixed_point_mlp));
  return {x, record, state};
}

void implement(torch::Library& library) {
  library.impl("fixed_point_mlp", fixed_point_mlp);
}

}  // namespace

DEEPGEN_REGISTER(implement)

}  // namespace deepgen
