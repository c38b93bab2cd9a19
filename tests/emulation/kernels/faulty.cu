// One planted fault a kernel: the tests see each of them found. All compile under nvcc.
#include "boundary.h"
#include "cuda/launch.cuh"

using deepgen::cuda::launch;

namespace {

// Reverses 64 numbers through shared memory, without the barrier between writing and reading.
__global__ void dropped_barrier_kernel(const float* x, float* y) {
  DEEPGEN_SHARED(float, staged, 64);
  staged[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = staged[63 - threadIdx.x];
}

// Reads what the next lane wrote: wrong only where lanes run one after another from below.
__global__ void dropped_warp_barrier_kernel(const float* x, float* y) {
  DEEPGEN_SHARED(float, staged, 33);
  staged[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x == 31) staged[32] = x[0];
  y[threadIdx.x] = staged[threadIdx.x + 1];
}

// A second round overwrites what slower warps have yet to read.
__global__ void overwritten_kernel(const float* x, float* y, int rounds) {
  DEEPGEN_SHARED(float, first, 1);
  float sum = 0;
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x == 0) first[0] = x[round];
    __syncthreads();
    sum += first[0];
  }
  y[threadIdx.x] = sum;
}

__global__ void uninitialised_kernel(float* y) {
  DEEPGEN_SHARED(float, total, 1);
  if (threadIdx.x < 16) total[0] += 1;
  __syncthreads();
  y[threadIdx.x] = total[0];
}

__global__ void divergent_barrier_kernel(float* y) {
  if (threadIdx.x < 20) {
    y[threadIdx.x] = 1;
    __syncthreads();
  } else {
    y[threadIdx.x] = 2;
    __syncthreads();
  }
}

__global__ void returned_before_barrier_kernel(float* y, int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  y[threadIdx.x] = 1;
  __syncthreads();
}

__global__ void skipped_barrier_kernel(float* y, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    y[i] = 1;
    __syncthreads();  // not all threads have equally many rounds
  }
}

__global__ void absent_lanes_kernel(float* y) {
  y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, y[threadIdx.x], 1);
}

__global__ void returned_lanes_kernel(float* y) {
  if (threadIdx.x >= 24) return;
  y[threadIdx.x] = __shfl_down_sync(0xffffffffu, y[threadIdx.x], 1);
}

__global__ void not_in_own_mask_kernel(float* y) {
  y[threadIdx.x] = __shfl_sync(0x0000ffffu, y[threadIdx.x], 0);
}

__global__ void shuffle_outside_mask_kernel(float* y) {
  if (threadIdx.x < 8) y[threadIdx.x] = __shfl_down_sync(0x000000ffu, y[threadIdx.x], 1);
}

// Half of the warp shuffles, the other half waits at the barrier of the block.
__global__ void shuffle_against_barrier_kernel(float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, y[threadIdx.x], 1);
  __syncthreads();
}

__global__ void disagreeing_masks_kernel(float* y) {
  const unsigned mask = threadIdx.x == 0 ? 0xffffffffu : 0xfffffffeu | (threadIdx.x == 1);
  y[threadIdx.x] = __shfl_sync(mask, y[threadIdx.x], 1);
}

__global__ void too_much_shared_kernel(float* y) {
  DEEPGEN_DYNAMIC_SHARED(float, buffer);
  buffer[threadIdx.x] = y[threadIdx.x];
}

__global__ void global_overrun_kernel(float* y, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i <= n) y[i] = 1;
}

template <class T>
__device__ void fill(T* row, int n) {
  for (int i = 0; i < n; ++i) row[i] = static_cast<T>(i);
}

__global__ void static_shared_index_kernel(float* y, int index) {
  DEEPGEN_SHARED(float, row, 33);
  row[index] = 1;
  y[0] = row[index];
}

// An array of floats is aligned for floats; that it often lies better is luck.
__global__ void vector_load_of_float_array_kernel(float* y) {
  DEEPGEN_SHARED(float, row, 8);
  row[threadIdx.x] = 1;
  y[0] = reinterpret_cast<const float4*>(row)->x;
}

__global__ void too_much_static_shared_kernel(float* y) {
  DEEPGEN_SHARED(float, most, 12 * 1024);
  most[threadIdx.x] = y[threadIdx.x];
#if !defined(__CUDACC__)  // nvcc refuses it
  DEEPGEN_SHARED(float, one_more, 1);
  one_more[0] = most[0];
#endif
  y[threadIdx.x] = most[threadIdx.x];
}

__global__ void trap_kernel(float* y) {
  if (y[0] == 0) __trap();
}

template <class T>
__global__ void static_shared_overrun_kernel(T* y, int n) {
  DEEPGEN_SHARED(T, row, 33);
  DEEPGEN_SHARED(T, other, 40);
  fill(row, n);
  other[0] = row[0];
  y[0] = other[0];
}

__global__ void dynamic_shared_overrun_kernel(float* y, int n) {
  DEEPGEN_DYNAMIC_SHARED(float, row);
  fill(row, n);
  y[0] = row[0];
}

__global__ void vector_load_kernel(const float* x, float* y) {
  const float4 v = *reinterpret_cast<const float4*>(x);
  y[0] = v.x + v.y + v.z + v.w;
}

__device__ float recurse(float* y, int depth) {  // NOLINT: the point is to overflow the stack
  volatile float page[256];
  page[depth % 256] = y[0];
  return depth == 0 ? page[0] : recurse(y, depth - 1) + page[depth % 256];
}
__global__ void deep_recursion_kernel(float* y, int depth) {
  y[0] = recurse(y, depth);
}

__global__ void empty_block_kernel(float* y) {
  y[0] = 1;
}

__global__ void endless_poll_kernel(volatile float* y) {
  while (y[0] == 0) __nanosleep(100);
}

}  // namespace

#define ON_ONE_ARRAY(name, threads)                                        \
  ENTRY name(float* y) {                                                   \
    return run([&] { launch(name##_kernel, 1, threads, 0, nullptr, y); }); \
  }
ON_ONE_ARRAY(uninitialised, 32)
ON_ONE_ARRAY(divergent_barrier, 64)
ON_ONE_ARRAY(absent_lanes, 20)
ON_ONE_ARRAY(returned_lanes, 32)
ON_ONE_ARRAY(not_in_own_mask, 32)
ON_ONE_ARRAY(shuffle_outside_mask, 32)
ON_ONE_ARRAY(shuffle_against_barrier, 64)
ON_ONE_ARRAY(disagreeing_masks, 32)
ON_ONE_ARRAY(endless_poll, 1)
ON_ONE_ARRAY(empty_block, 0)
ON_ONE_ARRAY(too_much_static_shared, 32)
ON_ONE_ARRAY(trap, 32)
ON_ONE_ARRAY(vector_load_of_float_array, 1)

ENTRY dropped_barrier(const float* x, float* y) {
  return run([&] { launch(dropped_barrier_kernel, 1, 64, 0, nullptr, x, y); });
}
ENTRY dropped_warp_barrier(const float* x, float* y) {
  return run([&] { launch(dropped_warp_barrier_kernel, 1, 32, 0, nullptr, x, y); });
}
ENTRY overwritten(const float* x, float* y, int rounds) {
  return run([&] { launch(overwritten_kernel, 1, 64, 0, nullptr, x, y, rounds); });
}
ENTRY returned_before_barrier(float* y, int n) {
  return run([&] { launch(returned_before_barrier_kernel, 1, 64, 0, nullptr, y, n); });
}
ENTRY skipped_barrier(float* y, int n) {
  return run([&] { launch(skipped_barrier_kernel, 1, 32, 0, nullptr, y, n); });
}
ENTRY too_much_shared(float* y) {
  return run([&] { launch(too_much_shared_kernel, 1, 32, 300 * 1024, nullptr, y); });
}
ENTRY empty_grid(float* y) {
  return run([&] { launch(global_overrun_kernel, dim3(4, 0), 32, 0, nullptr, y, 32); });
}
ENTRY global_overrun(float* y, int n) {
  return run([&] { launch(global_overrun_kernel, 1, 64, 0, nullptr, y, n); });
}
ENTRY static_shared_overrun(float* y, int n) {
  return run([&] { launch(static_shared_overrun_kernel<float>, 1, 1, 0, nullptr, y, n); });
}
ENTRY static_shared_index(float* y, int index) {
  return run([&] { launch(static_shared_index_kernel, 1, 1, 0, nullptr, y, index); });
}
ENTRY dynamic_shared_overrun(float* y, int n) {
  return run(
      [&] { launch(dynamic_shared_overrun_kernel, 1, 1, 33 * sizeof(float), nullptr, y, n); });
}
ENTRY vector_load(const float* x, float* y) {
  return run([&] { launch(vector_load_kernel, 1, 1, 0, nullptr, x, y); });
}
ENTRY deep_recursion(float* y, int depth) {
  return run([&] { launch(deep_recursion_kernel, 1, 1, 0, nullptr, y, depth); });
}
