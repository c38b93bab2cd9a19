// Glue of ancestral_sample: checks the tensors against the program, calls the kernel of the device.
#include "ancestral_sample.h"

#include <algorithm>

#include "glue.h"

namespace deepgen {
namespace {

using at::Tensor;

// The words of the program, after checking that the counts of its header add up to its length:
// what they say is the business of nn.AncestralSampler, which is the only one to write them.
const int32_t* checked(const Tensor& program) {
  TORCH_CHECK_TYPE(program.scalar_type() == at::kInt, "program must be an int32 tensor, got ",
                   program.scalar_type());
  TORCH_CHECK_VALUE(program.device().is_cpu() && program.is_contiguous() && program.dim() == 1,
                    "program must be a contiguous vector on the CPU, got ", program.sizes(), " on ",
                    program.device());
  const auto* words = program.const_data_ptr<int32_t>();
  using namespace sampling;
  int64_t bytes = sizeof(Header);
  if (program.numel() * 4 >= bytes) {
    const auto& h = *reinterpret_cast<const Header*>(words);
    bytes += h.nodes * sizeof(Node) + (int64_t{h.row_steps} + h.pixel_steps) * sizeof(Step) +
             h.terms * sizeof(Term) + h.taps * sizeof(Tap);
  }
  TORCH_CHECK_VALUE(program.numel() * 4 == bytes, "program must have ", bytes / 4,
                    " words by its header, got ", program.numel());
  return words;
}

void check_dense(const Tensor& tensor, const char* name, const Tensor& like) {
  check_same_type(tensor, name, like, "weights");
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " must be contiguous");
}

void ancestral_sample(const Tensor& program, const Tensor& weights, at::TensorList conditions,
                      const Tensor& uniforms, const std::optional<Tensor>& known, Tensor levels,
                      Tensor caches, int64_t tile, int64_t n_levels, double temperature,
                      int64_t first_row, int64_t last_row) {
  AncestralSample p{storage_of(weights, "weights")};
  TORCH_CHECK_TYPE(p.storage == Storage::f32 || p.storage == Storage::f64,
                   "weights must be float32 or float64, got ", weights.scalar_type());
  const auto* words = checked(program);
  const auto& header = *reinterpret_cast<const sampling::Header*>(words);
  check_dense(uniforms, "uniforms", weights);
  check_dense(caches, "caches", weights);
  TORCH_CHECK_VALUE(uniforms.dim() == 4, "uniforms must be (n, channels, height, width), got ",
                    uniforms.sizes());
  const bool real = sampling::Program(words).draws_real();
  const at::ScalarType drawn = real ? weights.scalar_type() : at::kLong;
  TORCH_CHECK_TYPE(levels.scalar_type() == drawn, "levels must be ",
                   real ? "of the dtype of weights, the program draws real numbers, got "
                        : "an int64 tensor, got ",
                   levels.scalar_type());
  TORCH_CHECK_VALUE(levels.sizes() == uniforms.sizes() && levels.is_contiguous() &&
                        levels.device() == weights.device(),
                    "levels must be a contiguous tensor of the shape and device of uniforms, ",
                    uniforms.sizes(), ", got ", levels.sizes());
  if (known) {
    TORCH_CHECK_TYPE(known->scalar_type() == at::kBool, "known must be a bool tensor, got ",
                     known->scalar_type());
    TORCH_CHECK_VALUE(known->sizes() == uniforms.sizes() && known->is_contiguous() &&
                          known->device() == weights.device(),
                      "known must be a contiguous tensor of the shape and device of uniforms, ",
                      uniforms.sizes(), ", got ", known->sizes());
    p.known = known->const_data_ptr<bool>();
  }
  p.n = uniforms.size(0);
  p.channels = uniforms.size(1);
  p.height = uniforms.size(2);
  p.width = uniforms.size(3);
  TORCH_CHECK_VALUE(caches.numel() == p.n * header.cache_per_sample, "caches must have ",
                    header.cache_per_sample, " elements a sample, got ", caches.numel(), " for ",
                    p.n, " samples");
  TORCH_CHECK_VALUE(tile >= 1, "tile must be at least 1, got ", tile);
  TORCH_CHECK_VALUE(n_levels >= 2, "n_levels must be at least 2, got ", n_levels);
  TORCH_CHECK_VALUE(temperature > 0, "temperature must be positive, got ", temperature);
  TORCH_CHECK_VALUE(0 <= first_row && first_row <= last_row && last_row <= p.height,
                    "rows [first_row, last_row) must lie in [0, ", p.height, "), got [", first_row,
                    ", ", last_row, ")");
  TORCH_CHECK_VALUE(conditions.size() <= AncestralSample::max_conditions, "at most ",
                    AncestralSample::max_conditions, " conditions, got ", conditions.size());
  const void* condition_data[AncestralSample::max_conditions] = {};
  for (size_t i = 0; i < conditions.size(); ++i) {
    check_dense(conditions[i], "conditions", weights);
    condition_data[i] = conditions[i].const_data_ptr();
  }
  if (p.n == 0 || first_row == last_row) return;

  const Tensor on_device = on_cuda_path(weights) ? program.to(weights.device()) : program;
  p.program = on_device.const_data_ptr<int32_t>();
  p.weights = weights.const_data_ptr();
  p.conditions = condition_data;
  p.n_conditions = static_cast<int64_t>(conditions.size());
  p.n_levels = n_levels;
  p.temperature = temperature;
  p.uniforms = uniforms.const_data_ptr();
  p.levels = real ? nullptr : levels.mutable_data_ptr<int64_t>();
  p.values = real ? levels.mutable_data_ptr() : nullptr;
  p.caches = caches.mutable_data_ptr();
  p.tile = tile;
  p.first_row = first_row;
  p.last_row = last_row;
  run(weights, p, DEEPGEN_CPU_KERNEL(ancestral_sample), DEEPGEN_CUDA_KERNEL(ancestral_sample));
}

void implement(torch::Library& library) {
  library.impl("ancestral_sample", ancestral_sample);
}

}  // namespace

DEEPGEN_REGISTER(implement)

}  // namespace deepgen
