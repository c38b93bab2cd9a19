// The Python module _C: loading it registers the ops; what it binds itself is information about the
// build and the CPU.
#include <pybind11/pybind11.h>

#include <string>

#ifdef DEEPGEN_WITH_CUDA
#include <cuda_runtime.h>
#endif

namespace {

// Which of the clones of cpu/simd.h this machine runs.
std::string simd_level() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return "avx512f";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2+fma";
  return "sse2";
#elif defined(__aarch64__)
  return "neon";
#else
  return "baseline of the compiler";
#endif
}

int cuda_runtime_version() {
#ifdef DEEPGEN_WITH_CUDA
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
#else
  return 0;
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("simd_level", &simd_level, "The instruction set of the CPU kernels on this machine.");
  m.def("cuda_runtime_version", &cuda_runtime_version,
        "As 1000 * major + 10 * minor; 0 in a build without CUDA.");
}
