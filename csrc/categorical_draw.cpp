// Glue of categorical_draw: checks the inputs once, allocates the result, calls the kernel of the
// device. Integers have no gradient.
#include "categorical_draw.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "glue.h"

namespace deepgen {
namespace {

using at::Tensor;

Tensor categorical_draw(const Tensor& logits, const Tensor& uniforms, int64_t n_levels,
                        double temperature) {
  CategoricalDraw p{storage_of(logits, "logits"), n_levels};
  TORCH_CHECK_VALUE(n_levels >= 2, "n_levels must be 2 or more, got ", n_levels);
  TORCH_CHECK_VALUE(temperature > 0 && std::isfinite(temperature),
                    "temperature must be positive and finite, got ", temperature);
  TORCH_CHECK_VALUE(logits.dim() == 4 && logits.size(1) % n_levels == 0,
                    "logits must have the shape (n, C * ", n_levels, ", H, W), got ",
                    logits.sizes());
  const int64_t channels = logits.size(1) / n_levels;
  const std::vector<int64_t> shape{logits.size(0), channels, logits.size(2), logits.size(3)};
  TORCH_CHECK_TYPE(uniforms.scalar_type() == at::kFloat || uniforms.scalar_type() == at::kDouble,
                   "uniforms must be a float32 or float64 tensor, got ", uniforms.scalar_type());
  TORCH_CHECK_VALUE(uniforms.sizes() == at::IntArrayRef(shape), "uniforms must have the shape ",
                    at::IntArrayRef(shape), ", one a channel and pixel, got ", uniforms.sizes());
  TORCH_CHECK_VALUE(uniforms.device() == logits.device(),
                    "uniforms must be on the device of logits, ", logits.device(), ", got ",
                    uniforms.device());
  const Tensor levels = at::empty(shape, logits.options().dtype(at::kLong));
  const Tensor dense_uniforms = uniforms.to(sum_type(logits)).contiguous();
  const auto described = describe_image(logits);
  const Tensor dense_logits = described ? logits : logits.contiguous();
  // 1 / temperature has to be finite in float.
  p.temperature = std::max(temperature, 1e-30);
  p.batch = shape[0];
  p.channels = channels;
  p.positions = shape[2] * shape[3];
  p.logits = described ? *described : *describe_image(dense_logits);
  p.uniforms = dense_uniforms.data_ptr();
  p.levels = levels.data_ptr<int64_t>();
  run(logits, p, DEEPGEN_CPU_KERNEL(categorical_draw), DEEPGEN_CUDA_KERNEL(categorical_draw));
  return levels;
}

void implement(torch::Library& library) {
  library.impl("categorical_draw", categorical_draw);
}

}  // namespace

DEEPGEN_REGISTER(implement)

}  // namespace deepgen
