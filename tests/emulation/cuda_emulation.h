// Makes a .cu file run on the CPU: g++ -std=c++20 -x c++ -include cuda_emulation.h kernel.cu
// For tests only; see README.md beside it for what it finds and what it cannot.
#pragma once

#if defined(__CUDACC__)
#error "cuda_emulation.h is for plain C++ compilers: nvcc needs no emulation"
#endif
#define DEEPGEN_CUDA_EMULATION 1

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <tuple>
#include <type_traits>

#include "arithmetic.h"
#include "half_types.h"
#include "intrinsics.h"
#include "runtime.h"
#include "scheduler.h"

#undef __global__
#define __global__
#undef __device__
#define __device__
#undef __host__
#define __host__
#undef __constant__
#define __constant__
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
// A plain __shared__ would silently become a variable of one thread.
#undef __shared__
#define __shared__ write_DEEPGEN_SHARED_or_DEEPGEN_DYNAMIC_SHARED_instead_of___shared__
#define __builtin_assume(condition) ((void)0)

namespace deepgen::emulation {

template <class... P, class... A>
void run_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A&&... args) {
  std::tuple<std::remove_cvref_t<P>...> parameters(static_cast<P>(std::forward<A>(args))...);
  auto body = [&] { std::apply(kernel, parameters); };
  scheduler.run(
      grid, block, shared_bytes,
      [](void* function) { (*static_cast<decltype(body)*>(function))(); }, &body);
}

}  // namespace deepgen::emulation
