// The few functions of the CUDA runtime that launchers call, for one emulated device. Weak and,
// with the build's hidden visibility, seen by nobody else.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#define DEEPGEN_RUNTIME extern "C" __attribute__((weak, visibility("hidden"))) cudaError_t

DEEPGEN_RUNTIME cudaGetLastError() {
  return cudaSuccess;
}
DEEPGEN_RUNTIME cudaPeekAtLastError() {
  return cudaSuccess;
}
DEEPGEN_RUNTIME cudaDeviceSynchronize() {
  return cudaSuccess;
}
DEEPGEN_RUNTIME cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
DEEPGEN_RUNTIME cudaSetDevice(int) {
  return cudaSuccess;
}
DEEPGEN_RUNTIME cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
DEEPGEN_RUNTIME cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}
DEEPGEN_RUNTIME cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
DEEPGEN_RUNTIME cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
DEEPGEN_RUNTIME cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int,
                                                              size_t) {
  *blocks = 2;
  return cudaSuccess;
}
// Few multiprocessors, so that persistent kernels loop even in small tests.
DEEPGEN_RUNTIME cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 3;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 * 1024;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 * 1024;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 228 * 1024;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 0;
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}
extern "C" __attribute__((weak, visibility("hidden"))) const char* cudaGetErrorString(
    cudaError_t status) {
  return status == cudaSuccess ? "no error" : "error of the emulated CUDA runtime";
}
#undef DEEPGEN_RUNTIME
