#include "glue.h"

#include <ATen/ops/empty_like.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "choice.h"

namespace deepgen {

Storage storage_of(const at::Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Storage::f32;
    case at::kDouble:
      return Storage::f64;
    case at::kBFloat16:
      return Storage::bf16;
    case at::kHalf:
      return Storage::f16;
    default:
      TORCH_CHECK_TYPE(false, name, " must be a float32, float64, bfloat16 or float16 tensor, got ",
                       tensor.scalar_type());
  }
}

at::ScalarType sum_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

void check_same_type(const at::Tensor& tensor, const char* name, const at::Tensor& like,
                     const char* like_name) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), name, " must have the dtype of ",
                   like_name, ", ", like.scalar_type(), ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, " must be on the device of ", like_name,
                    ", ", like.device(), ", got ", tensor.device());
}

void check_same_shape(const at::Tensor& tensor, const char* name, const at::Tensor& like,
                      const char* like_name) {
  check_same_type(tensor, name, like, like_name);
  TORCH_CHECK_VALUE(tensor.sizes() == like.sizes(), name, " must have the shape of ", like_name,
                    ", ", like.sizes(), ", got ", tensor.sizes());
}

at::Tensor fresh_like(const at::Tensor& tensor) {
  at::Tensor fresh = at::empty_like(tensor);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t huge_page = 2 << 20;
  const size_t bytes = fresh.nbytes();
  if (fresh.is_cpu() && bytes >= 2 * huge_page) {
    const auto begin = reinterpret_cast<uintptr_t>(fresh.data_ptr());
    const uintptr_t first = (begin + huge_page - 1) & ~(huge_page - 1);
    const uintptr_t last = (begin + bytes) & ~(huge_page - 1);
    // A hint: refused where the system has huge pages switched off, and nothing is lost then.
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return fresh;
}

std::optional<Described> describe(const std::vector<at::Tensor>& tensors) {
  const at::Tensor& first = tensors.front();
  std::vector<int64_t> order;
  for (int64_t d = 1; d < first.dim(); ++d) {
    if (first.size(d) != 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return first.stride(a) > first.stride(b); });
  std::vector<std::vector<int64_t>> groups;  // dimensions that merge into one, outermost first
  for (const int64_t d : order) {
    const bool joins =
        !groups.empty() && std::all_of(tensors.begin(), tensors.end(), [&](const auto& t) {
          return t.stride(groups.back().back()) == t.stride(d) * t.size(d);
        });
    if (!joins) groups.emplace_back();
    groups.back().push_back(d);
  }
  if (groups.size() > 3) {
    note_choice("contiguous copies first", "strides of more than three dimensions do not merge");
    return std::nullopt;
  }

  Described described;
  described.extent.batch = first.size(0);
  for (const at::Tensor& tensor : tensors) {
    described.operands.push_back({tensor.data_ptr(), tensor.stride(0), {0, 0, 0}});
  }
  for (size_t g = 0; g < groups.size(); ++g) {
    const size_t slot = 3 - groups.size() + g;
    for (const int64_t d : groups[g]) described.extent.size[slot] *= first.size(d);
    for (size_t i = 0; i < tensors.size(); ++i) {
      described.operands[i].stride[slot] = tensors[i].stride(groups[g].back());
    }
  }
  return described;
}

std::optional<ImageOperand> describe_image(const at::Tensor& tensor) {
  const int64_t height = tensor.size(2), width = tensor.size(3);
  if (height > 1 && width > 1 && tensor.stride(2) != width * tensor.stride(3)) return std::nullopt;
  return ImageOperand{tensor.data_ptr(), tensor.stride(0), tensor.stride(1),
                      width > 1 ? tensor.stride(3) : tensor.stride(2)};
}

bool on_cuda_path(const at::Tensor& tensor) {
#ifdef DEEPGEN_EMULATED
  return true;
#else
  return !tensor.is_cpu();
#endif
}

void* stream_of(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return nullptr;
  const c10::impl::VirtualGuardImpl guard(tensor.device().type());
  return reinterpret_cast<void*>(guard.getStream(tensor.device()).native_handle());
}

}  // namespace deepgen
