// Between torch and the kernels: what every op's glue needs to check tensors, describe them to a
// kernel as operands, allocate outputs, and choose the kernel of the device.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include <optional>
#include <type_traits>
#include <vector>

#include "operand.h"

// The emulation (tests/emulation) registers the same glue a second time, with the CUDA kernels run
// on the CPU.
#ifndef DEEPGEN_NAMESPACE
#define DEEPGEN_NAMESPACE deepgen_ext
#endif

#ifdef DEEPGEN_EMULATED
#define DEEPGEN_CPU_KERNEL(kernel) nullptr
#define DEEPGEN_CUDA_KERNEL(kernel) &deepgen::cuda::kernel
#elif defined(DEEPGEN_WITH_CUDA)
#define DEEPGEN_CPU_KERNEL(kernel) &deepgen::cpu::kernel
#define DEEPGEN_CUDA_KERNEL(kernel) &deepgen::cuda::kernel
#else
#define DEEPGEN_CPU_KERNEL(kernel) &deepgen::cpu::kernel
#define DEEPGEN_CUDA_KERNEL(kernel) nullptr
#endif

// Macro arguments that torch's registration macros would turn into strings have to be expanded
// first.
#define DEEPGEN_EXPANDED(macro, ...) macro(__VA_ARGS__)

// Registers the ops that `implement(torch::Library&)` names, for both devices.
#define DEEPGEN_REGISTER(implement)                                        \
  DEEPGEN_EXPANDED(TORCH_LIBRARY_IMPL, DEEPGEN_NAMESPACE, CPU, library) {  \
    implement(library);                                                    \
  }                                                                        \
  DEEPGEN_EXPANDED(TORCH_LIBRARY_IMPL, DEEPGEN_NAMESPACE, CUDA, library) { \
    implement(library);                                                    \
  }

// Registers `function` as the differentiable form of an op. The emulation tests kernels and needs
// none.
#ifdef DEEPGEN_EMULATED
#define DEEPGEN_REGISTER_AUTOGRAD(name, function)
#else
#define DEEPGEN_REGISTER_AUTOGRAD(name, function)                              \
  DEEPGEN_EXPANDED(TORCH_LIBRARY_IMPL, DEEPGEN_NAMESPACE, Autograd, library) { \
    library.impl(name, function);                                              \
  }
#endif

namespace deepgen {

// The registered op, to be called through the dispatcher as Python would.
template <class Signature>
c10::TypedOperatorHandle<Signature> registered_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// In a backward pass: skips the Python half of autograd, which knows the gradient's gradient and
// costs 50 us a call, unless a graph of the gradient is wanted (create_graph=True).
struct UnlessDifferentiatedAgain {
  UnlessDifferentiatedAgain() {
    if (!c10::GradMode::is_enabled()) below_autograd.emplace();
  }
  std::optional<at::AutoDispatchBelowADInplaceOrView> below_autograd;
};

// TypeError unless the tensor is floating-point of a type the kernels know.
Storage storage_of(const at::Tensor& tensor, const char* name);

// The type of log-dets and other sums: float64 for float64, else float32.
at::ScalarType sum_type(const at::Tensor& tensor);

// TypeError / ValueError unless dtype, device and shape are those of the reference tensor.
void check_same_type(const at::Tensor& tensor, const char* name, const at::Tensor& like,
                     const char* like_name);
void check_same_shape(const at::Tensor& tensor, const char* name, const at::Tensor& like,
                      const char* like_name);

// An output like the tensor, with its dimension order. Large ones on the CPU ask for huge pages:
// the page faults of fresh memory cost more than the arithmetic.
at::Tensor fresh_like(const at::Tensor& tensor);

// Tensors of one shape (batch, ...) as an elementwise kernel sees them: the dimensions behind the
// batch are ordered as in the first tensor and merged wherever all tensors allow. Nothing where
// more than three remain (five-dimensional tensors of mixed memory formats): contiguous ones always
// merge.
struct Described {
  Extent extent;
  std::vector<Operand> operands;
};
std::optional<Described> describe(const std::vector<at::Tensor>& tensors);

// A tensor (n, C, H, W) as kernels over positions see it; nothing where rows and columns do not
// merge into positions, as in a crop.
std::optional<ImageOperand> describe_image(const at::Tensor& tensor);

// Runs the kernel of the tensor's device, on the current stream.
bool on_cuda_path(const at::Tensor& tensor);
void* stream_of(const at::Tensor& tensor);

template <class Problem>
void run(const at::Tensor& where, const Problem& problem,
         std::type_identity_t<void (*)(const Problem&)> on_cpu,
         std::type_identity_t<void (*)(const Problem&, void*)> on_cuda) {
  if (!on_cuda_path(where)) return on_cpu(problem);
  TORCH_CHECK_NOT_IMPLEMENTED(
      on_cuda,
      "deepgen_ext was built without CUDA kernels: install it again where nvcc is found "
      "(`deepgen info` says what the build saw)");
  const c10::DeviceGuard guard(where.device());
  on_cuda(problem, stream_of(where));
}

}  // namespace deepgen
