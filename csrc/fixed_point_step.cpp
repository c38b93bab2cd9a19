// Glue of fixed_point_step: checks that the state belongs together, calls the kernel of the device.
#include "fixed_point_step.h"

#include "glue.h"

namespace deepgen {
namespace {

using at::Tensor;

void check(const Tensor& tensor, const char* name, at::ScalarType type, std::vector<int64_t> shape,
           const Tensor& x) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == type, name, " must be a ", type, " tensor, got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.sizes() == at::IntArrayRef(shape), name, " must have the shape ",
                    at::IntArrayRef(shape), ", got ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == x.device(), name, " must be on the device of x, ",
                    x.device(), ", got ", tensor.device());
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " must be contiguous");
}

void fixed_point_step(Tensor x, const Tensor& g_x, const Tensor& y, Tensor images, Tensor residuals,
                      Tensor gram, Tensor record, Tensor state, double lipschitz, double rounding) {
  FixedPointStep p{storage_of(x, "x")};
  TORCH_CHECK_TYPE(p.storage == Storage::f32 || p.storage == Storage::f64,
                   "x must be a float32 or float64 tensor, got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() == 2 && x.is_contiguous(),
                    "x must be contiguous and have the shape (batch, features), got ", x.sizes());
  TORCH_CHECK_VALUE(lipschitz > 0 && lipschitz < 1, "lipschitz must lie in (0, 1), got ",
                    lipschitz);
  TORCH_CHECK_VALUE(rounding >= 0 && std::isfinite(rounding),
                    "rounding must be a finite number, at least 0, got ", rounding);
  check_same_shape(g_x, "g_x", x, "x");
  check_same_shape(y, "y", x, "x");
  TORCH_CHECK_VALUE(images.dim() == 3, "images must have the shape (batch, memory, features), got ",
                    images.sizes());
  const int64_t n = x.size(0), features = x.size(1), memory = images.size(1);
  TORCH_CHECK_VALUE(memory != 1 && memory <= most_memory, "images must keep 0 or 2 to ",
                    most_memory, " of them a sample, got ", memory);
  check(images, "images", x.scalar_type(), {n, memory, features}, x);
  check(residuals, "residuals", x.scalar_type(), {n, memory, features}, x);
  check(gram, "gram", at::kDouble, {n, memory, memory}, x);
  check(record, "record", at::kDouble, {n, iteration::numbers}, x);
  check(state, "state", at::kInt, {n, iteration::words}, x);
  const Tensor dense_g = g_x.contiguous(), dense_y = y.contiguous();
  p.batch = n;
  p.features = features;
  p.memory = static_cast<int>(memory);
  p.lipschitz = lipschitz;
  p.rounding = rounding;
  p.x = x.data_ptr();
  p.g_x = dense_g.const_data_ptr();
  p.y = dense_y.const_data_ptr();
  p.images = images.data_ptr();
  p.residuals = residuals.data_ptr();
  p.gram = gram.data_ptr<double>();
  p.record = record.data_ptr<double>();
  p.state = state.data_ptr<int32_t>();
  run(x, p, DEEPGEN_CPU_KERNEL(fixed_point_step), DEEPGEN_CUDA_KERNEL(fixed_point_step));
}

void implement(torch::Library& library) {
  library.impl("fixed_point_step", fixed_point_step);
}

}  // namespace

DEEPGEN_REGISTER(implement)

}  // namespace deepgen
