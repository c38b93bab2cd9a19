// Glue of autoregressive_inverse: checks the network once, counts its units by degree, calls the
// kernels, and ties the gradient to the op.
#include "autoregressive_inverse.h"

#include <ATen/ops/empty.h>

#include <string>
#include <utility>

#include "choice.h"
#include "glue.h"
#include "gradient.h"
#ifndef DEEPGEN_EMULATED
#include <ATen/ops/arange.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#endif

namespace deepgen {
namespace {

using at::Tensor;
using at::TensorList;

// What is not a tensor, as the schema orders it.
#define DEEPGEN_OPTIONS                                                               \
  std::string_view element, std::string_view scale_map, double clamp, int64_t n_bins, \
      double bound, std::string_view activation, bool residual
#define DEEPGEN_OPTION_NAMES element, scale_map, clamp, n_bins, bound, activation, residual

// The place of the name among the choices.
int chosen(const char* option, std::string_view name,
           std::initializer_list<std::string_view> choices) {
  std::string all;
  int place = 0;
  for (const std::string_view choice : choices) {
    if (choice == name) return place;
    all.append(place++ ? ", '" : "'").append(choice).append("'");
  }
  TORCH_CHECK_VALUE(false, option, " must be one of ", all, ", got '", name, "'");
}

// A network for the kernels, with the tensors that its pointers lie in.
struct Network {
  MaskedNetwork net{};
  std::vector<Tensor> kept;
};

void set_options(MaskedNetwork& net, DEEPGEN_OPTIONS) {
  // In the order of the enumerations.
  net.element =
      static_cast<ElementMap>(chosen("element", element, {"affine", "spline", "softclip_spline"}));
  net.scale_map = static_cast<ScaleMap>(
      chosen("scale_map", scale_map,
             {"exp", "tanh", "sigmoid", "atan", "softclip", "softplus", "floored_sigmoid"}));
  net.activation =
      static_cast<Activation>(chosen("activation", activation, {"relu", "elu", "tanh"}));
  net.residual = residual;
  TORCH_CHECK_VALUE(clamp > 0 && std::isfinite(clamp),
                    "clamp must be a finite number above 0, got ", clamp);
  net.clamp = clamp;
  net.bins = 0;
  net.parameters = 2;
  if (net.element != ElementMap::affine) {
    TORCH_CHECK_VALUE(n_bins >= 1 && n_bins <= most_spline_bins, "n_bins must lie in 1 ... ",
                      most_spline_bins, ", got ", n_bins);
    TORCH_CHECK_VALUE(bound > 0 && std::isfinite(bound),
                      "bound must be a finite number above 0, got ", bound);
    net.bins = static_cast<int>(n_bins);
    net.parameters = static_cast<int>(3 * n_bins - 1);
  }
  net.bound = bound;
}

void check_degrees(const Tensor& degrees, size_t l, int64_t dimensions) {
  TORCH_CHECK_TYPE(degrees.scalar_type() == at::kLong, "degrees[", l,
                   "] must be an int64 tensor, got ", degrees.scalar_type());
  TORCH_CHECK_VALUE(degrees.is_cpu() && degrees.dim() == 1, "degrees[", l,
                    "] must be a vector on the CPU, got ", degrees.sizes(), " on ",
                    degrees.device());
  const Tensor dense = degrees.contiguous();
  const int64_t* values = dense.const_data_ptr<int64_t>();
  for (int64_t u = 0; u < dense.numel(); ++u) {
    TORCH_CHECK_VALUE(values[u] >= 0 && values[u] < dimensions, "degrees[", l,
                      "] must lie in 0 ... ", dimensions - 1, ", got ", values[u]);
    TORCH_CHECK_VALUE(u == 0 || values[u] >= values[u - 1], "degrees[", l,
                      "] must be ascending, got ", values[u], " after ", values[u - 1]);
  }
}

Network network_of(const Tensor& z, const char* name, TensorList weights, TensorList biases,
                   TensorList degrees, DEEPGEN_OPTIONS) {
  Network network;
  MaskedNetwork& net = network.net;
  set_options(net, DEEPGEN_OPTION_NAMES);
  net.storage = storage_of(z, name);
  TORCH_CHECK_TYPE(net.storage == Storage::f32 || net.storage == Storage::f64, name,
                   " must be a float32 or float64 tensor, got ", z.scalar_type());
  TORCH_CHECK_VALUE(z.dim() == 2 && z.size(1) >= 1, name,
                    " must have the shape (batch, dimensions), got ", z.sizes());
  const size_t hidden = degrees.size();
  TORCH_CHECK_VALUE(hidden >= 1 && hidden < most_masked_layers,
                    "degrees must have an entry for each of 1 to ", most_masked_layers - 1,
                    " hidden layers, got ", hidden);
  TORCH_CHECK_VALUE(weights.size() == hidden + 1 && biases.size() == hidden + 1,
                    "weights and biases must have one entry more than degrees, ", hidden + 1,
                    ", got ", weights.size(), " and ", biases.size());
  TORCH_CHECK_VALUE(!net.residual || hidden % 2 == 1,
                    "degrees must have an odd number of entries for residual=True, the input layer "
                    "and pairs, got ",
                    hidden);
  net.batch = z.size(0);
  net.dimensions = z.size(1);
  net.hidden = static_cast<int>(hidden);

  const Tensor table = at::empty({static_cast<int64_t>(hidden), net.dimensions + 1},
                                 at::TensorOptions().dtype(at::kInt));
  int64_t below = net.dimensions;
  for (size_t l = 0; l <= hidden; ++l) {
    MaskedLayer& layer = net.layer[l];
    if (l < hidden) {
      check_degrees(degrees[l], l, net.dimensions);
      TORCH_CHECK_VALUE(!net.residual || l == 0 || degrees[l].equal(degrees[0]), "degrees[", l,
                        "] must equal degrees[0] for residual=True");
      layer.units = degrees[l].size(0);
      const Tensor dense = degrees[l].contiguous();
      const int64_t* values = dense.const_data_ptr<int64_t>();
      int* first = table.data_ptr<int>() + l * (net.dimensions + 1);
      for (int64_t d = 0, u = 0; d <= net.dimensions; ++d) {
        while (u < layer.units && values[u] < d) ++u;
        first[d] = static_cast<int>(u);
      }
    } else {
      layer.units = net.dimensions * net.parameters;
    }
    const std::string weight_name = "weights[" + std::to_string(l) + "]";
    const std::string bias_name = "biases[" + std::to_string(l) + "]";
    check_same_type(weights[l], weight_name.c_str(), z, name);
    check_same_type(biases[l], bias_name.c_str(), z, name);
    TORCH_CHECK_VALUE(
        weights[l].dim() == 2 && weights[l].size(0) == layer.units && weights[l].size(1) == below,
        weight_name, " must have the shape [", layer.units, ", ", below, "], got ",
        weights[l].sizes());
    const bool shared = biases[l].dim() == 1;
    TORCH_CHECK_VALUE((shared || (biases[l].dim() == 2 && biases[l].size(0) == net.batch)) &&
                          biases[l].size(-1) == layer.units,
                      bias_name, " must have the shape [", layer.units, "] or [", net.batch, ", ",
                      layer.units, "], got ", biases[l].sizes());
    const Tensor weight = weights[l].stride(1) == 1 ? weights[l] : weights[l].contiguous();
    const Tensor bias = biases[l].stride(-1) == 1 ? biases[l] : biases[l].contiguous();
    layer.weight = weight.const_data_ptr();
    layer.weight_stride = weight.stride(0);
    layer.bias = bias.const_data_ptr();
    layer.bias_stride = shared ? 0 : bias.stride(0);
    network.kept.push_back(weight);
    network.kept.push_back(bias);
    below = layer.units;
  }
  network.kept.push_back(table.to(z.device()));
  net.first = network.kept.back().const_data_ptr<int>();
  return network;
}

// Room in global memory for the blocks of a CUDA kernel that do not find enough shared memory.
template <class Problem>
Tensor scratch_for(Problem& p, const Tensor& like, bool adjoint) {
  int64_t (*const size)(const MaskedNetwork&, bool) =
      DEEPGEN_CUDA_KERNEL(autoregressive_inverse_scratch);
  if (!on_cuda_path(like) || !size) return Tensor();
  p.scratch_per_block = size(p.net, adjoint);
  if (p.scratch_per_block == 0) {
    note_choice("tile in shared memory", "its activations fit");
    return Tensor();
  }
  note_choice("tile in global memory", "its activations do not fit into shared memory");
  const int64_t blocks = (p.net.batch + masked_samples - 1) / masked_samples;
  const Tensor scratch = at::empty({blocks * p.scratch_per_block}, like.options());
  p.scratch = scratch.data_ptr();
  return scratch;
}

std::tuple<Tensor, Tensor> autoregressive_inverse(const Tensor& z, TensorList weights,
                                                  TensorList biases, TensorList degrees,
                                                  DEEPGEN_OPTIONS) {
  const Network network = network_of(z, "z", weights, biases, degrees, DEEPGEN_OPTION_NAMES);
  const Tensor dense = z.contiguous();
  const Tensor x = fresh_like(dense), log_det = at::empty({z.size(0)}, z.options());
  AutoregressiveInverse p{network.net, dense.const_data_ptr(), x.data_ptr(), log_det.data_ptr()};
  const Tensor scratch = scratch_for(p, z, false);
  run(z, p, DEEPGEN_CPU_KERNEL(autoregressive_inverse),
      DEEPGEN_CUDA_KERNEL(autoregressive_inverse));
  return {x, log_det};
}

// grad_z, then what each hidden layer passes on at x, then the cotangents of all layers' sums.
std::vector<Tensor> autoregressive_inverse_adjoint(const Tensor& grad_x, const Tensor& grad_log_det,
                                                   const Tensor& z, const Tensor& x,
                                                   TensorList weights, TensorList biases,
                                                   TensorList degrees, DEEPGEN_OPTIONS) {
  const Network network = network_of(x, "x", weights, biases, degrees, DEEPGEN_OPTION_NAMES);
  const MaskedNetwork& net = network.net;
  check_same_shape(grad_x, "grad_x", x, "x");
  check_same_shape(z, "z", x, "x");
  check_same_type(grad_log_det, "grad_log_det", x, "x");
  TORCH_CHECK_VALUE(grad_log_det.dim() == 1 && grad_log_det.size(0) == x.size(0),
                    "grad_log_det must have the shape [", x.size(0), "], got ",
                    grad_log_det.sizes());
  const Tensor dense_z = z.contiguous(), dense_x = x.contiguous(),
               dense_grad_x = grad_x.contiguous(), dense_grad_log_det = grad_log_det.contiguous();
  AutoregressiveInverseAdjoint p{net, dense_z.const_data_ptr(), dense_x.const_data_ptr(),
                                 dense_grad_x.const_data_ptr(),
                                 dense_grad_log_det.const_data_ptr()};
  std::vector<Tensor> results{at::empty(x.sizes(), x.options())};
  p.grad_z = results[0].data_ptr();
  for (int l = 0; l < net.hidden; ++l) {
    results.push_back(at::empty({net.batch, net.layer[l].units}, x.options()));
    p.values[l] = results.back().data_ptr();
  }
  for (int l = 0; l <= net.hidden; ++l) {
    results.push_back(at::empty({net.batch, net.layer[l].units}, x.options()));
    p.cotangents[l] = results.back().data_ptr();
  }
  const Tensor scratch = scratch_for(p, x, true);
  run(x, p, DEEPGEN_CPU_KERNEL(autoregressive_inverse_adjoint),
      DEEPGEN_CUDA_KERNEL(autoregressive_inverse_adjoint));
  return results;
}

void implement(torch::Library& library) {
  library.impl("autoregressive_inverse", autoregressive_inverse);
  library.impl("autoregressive_inverse_adjoint", autoregressive_inverse_adjoint);
}

#ifndef DEEPGEN_EMULATED
// Which weights of layer l are used.
Tensor mask_of(size_t l, const Tensor& weight, int64_t dimensions,
               const std::vector<Tensor>& degrees) {
  const Tensor order = at::arange(dimensions, at::TensorOptions().dtype(at::kLong));
  const int64_t parameters = weight.size(0) / dimensions;
  const Tensor rows =
      l < degrees.size() ? degrees[l] : order.unsqueeze(1).expand({-1, parameters}).reshape({-1});
  // x_j counts as degree j + 1.
  const Tensor columns = l == 0 ? order.add(1) : degrees[l - 1];
  return rows.unsqueeze(1).ge(columns.unsqueeze(0)).to(weight.device());
}

// The implicit function theorem: with y(x, p) = z for parameters p, grad_z = v solves J^T v = g,
// and the gradient of p is -v^T dy/dp plus that of log det. The adjoint finds v and, on its way,
// the cotangents of every layer's sums; the gradient of a weight is their product with the values
// below.
using Options = std::tuple<std::string, std::string, double, int64_t, double, std::string, bool>;

std::vector<Tensor> gradients_of(const Cotangents& given, int64_t hidden, const Options& options) {
  static const auto op = registered_op<decltype(autoregressive_inverse_adjoint)>(
      "deepgen_ext::autoregressive_inverse_adjoint");
  const int64_t layers = hidden + 1;
  const Tensor &x = given.saved[0], &z = given.saved[1];
  auto next = given.saved.begin() + 2;
  const auto part = [&next](int64_t count) {
    const auto first = std::exchange(next, next + count);
    return std::vector<Tensor>(first, next);
  };
  const std::vector<Tensor> weights = part(layers), biases = part(layers), degrees = part(hidden);
  const std::vector<Tensor> found = std::apply(
      [&](const auto&... option) {
        return op.call(given.gradients[0], given.gradients[1], z, x, weights, biases, degrees,
                       option...);
      },
      options);
  std::vector<Tensor> result(1 + 2 * layers);
  result[0] = found[0];
  for (int64_t l = 0; l < layers; ++l) {
    const Tensor& cotangents = found[1 + hidden + l];
    if (given.wanted[1 + l]) {
      const Tensor product = at::mm(cotangents.t(), l == 0 ? x : found[l]);
      result[1 + l] = at::where(mask_of(l, weights[l], x.size(1), degrees), product,
                                at::zeros({}, product.options()));
    }
    if (given.wanted[1 + layers + l])
      result[1 + layers + l] = biases[l].dim() == 1 ? cotangents.sum(0) : cotangents;
  }
  return result;
}

std::tuple<Tensor, Tensor> differentiable(const Tensor& z, TensorList weights, TensorList biases,
                                          TensorList degrees, DEEPGEN_OPTIONS) {
  static const auto op =
      registered_op<decltype(autoregressive_inverse)>("deepgen_ext::autoregressive_inverse");
  std::vector<Tensor> inputs{z};
  for (const TensorList list : {weights, biases})
    inputs.insert(inputs.end(), list.begin(), list.end());
  const auto outputs = with_gradient(
      inputs,
      [&]() -> Evaluated {
        auto [x, log_det] = op.call(z, weights, biases, degrees, DEEPGEN_OPTION_NAMES);
        std::vector<Tensor> saved{x};
        saved.insert(saved.end(), inputs.begin(), inputs.end());
        saved.insert(saved.end(), degrees.begin(), degrees.end());
        return {{x, log_det}, std::move(saved)};
      },
      [hidden = static_cast<int64_t>(degrees.size()), options = Options(DEEPGEN_OPTION_NAMES)](
          const Cotangents& given) { return gradients_of(given, hidden, options); });
  return {outputs[0], outputs[1]};
}
#endif

}  // namespace

DEEPGEN_REGISTER(implement)
DEEPGEN_REGISTER_AUTOGRAD("autoregressive_inverse", differentiable)

}  // namespace deepgen
