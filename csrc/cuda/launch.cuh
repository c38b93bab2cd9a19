// The one way kernels are launched, and how they declare shared memory. Free of torch.
//
// Under nvcc this is cudaLaunchKernelEx. Under a plain C++ compiler, in the tests, the same source
// runs on the CPU: tests/emulation/cuda_emulation.h is included before it and plays the device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__CUDACC__)

// DEEPGEN_SHARED(T, name, count): an array of the block, count known to the compiler.
// A T with a comma needs an alias first. Contents are undefined at the start.
#define DEEPGEN_SHARED(T, name, count) __shared__ T name[count]

// DEEPGEN_DYNAMIC_SHARED(T, name): a T* to the launch's shared_bytes, aligned to 128 bytes. One
// untyped buffer for all kernels, so that templates of several types do not clash.
#define DEEPGEN_DYNAMIC_SHARED(T, name)                                    \
  extern __shared__ __align__(128) unsigned char deepgen_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(deepgen_dynamic_shared)

// A device function that is called, so that each large part of a kernel has the registers for
// itself.
#define DEEPGEN_NOINLINE __noinline__

#elif !defined(DEEPGEN_CUDA_EMULATION)
#error "a .cu file is compiled by nvcc, or with -include tests/emulation/cuda_emulation.h"
#else
#define DEEPGEN_NOINLINE __attribute__((noinline))
#endif

namespace deepgen::cuda {

// Launches kernel<<<grid, block, shared_bytes, stream>>>(args...); an empty grid launches nothing.
// Throws std::runtime_error with CUDA's own words when the launch is refused.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "launch: as many arguments as the kernel takes");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(__CUDACC__)
  // More than 48 KiB has to be asked for, and static arrays, not known here, count towards it.
  constexpr size_t surely_granted = 16 * 1024;
  cudaError_t status = cudaSuccess;
  if (shared_bytes > surely_granted) {
    status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes));
  }
  if (status == cudaSuccess) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    status = cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
  }
  if (status != cudaSuccess) {
    cudaGetLastError();  // reported here: the next call must not see it again
    const auto size = [](dim3 d) {
      return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z);
    };
    throw std::runtime_error(std::string("CUDA kernel launch failed: ") +
                             cudaGetErrorString(status) + " (grid " + size(grid) + ", block " +
                             size(block) + ", " + std::to_string(shared_bytes) +
                             " bytes of dynamic shared memory)");
  }
#else
  (void)stream;
  deepgen::emulation::run_kernel(kernel, grid, block, shared_bytes, std::forward<A>(args)...);
#endif
}

}  // namespace deepgen::cuda
