// fixed_point_step on the GPU.
//
// A block of 256 threads owns a sample: its elements are walked over twice, once for p, r, the
// norms and the scalar products with the r_j, once, mostly from L2, for the mixture of the p_j;
// memory bounds it. Between the two one thread judges and solves the small system, some
// microseconds in double that other blocks on the multiprocessor cover. A stopped sample's block
// reads a word. The host learns nothing here, so it need not wait. Sums go through shuffles and
// shared memory in a fixed order.
#include "../fixed_point_step.h"
#include "rows.cuh"

namespace deepgen::cuda {
namespace {

// The sum over the block, in every thread. `room` holds a number for each warp.
__device__ double block_sum(double value, double* room) {
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < block_threads / 32; ++warp) sum += room[warp];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    step_kernel(const __grid_constant__ FixedPointStep p) {
  DEEPGEN_SHARED(double, room, block_threads / 32);
  DEEPGEN_SHARED(double, weights, most_memory);
  DEEPGEN_SHARED(double, dots, most_memory);
  DEEPGEN_SHARED(int32_t, decision, 2);  // next, and the valid slots
  const int64_t sample = blockIdx.x, n = p.features;
  int32_t* const state = p.state + sample * iteration::words;
  if (state[iteration::status] != iteration::running) return;
  const int memory = p.memory;
  T* const x = static_cast<T*>(p.x) + sample * n;
  const T* const g = static_cast<const T*>(p.g_x) + sample * n;
  const T* const y = static_cast<const T*>(p.y) + sample * n;
  T* const images = static_cast<T*>(p.images) + sample * memory * n;
  T* const residuals = static_cast<T*>(p.residuals) + sample * memory * n;
  const int slot = memory ? next_slot(state, memory) : 0;
  const int newest = state[iteration::newest];
  const int32_t valid = state[iteration::valid];

  StepSums sums = {};
  double products[most_memory] = {};
  for (int64_t i = threadIdx.x; i < n; i += block_threads) {
    const T image = y[i] - g[i], residual = image - x[i];
    sums.r += static_cast<double>(residual) * residual;
    sums.x += static_cast<double>(x[i]) * x[i];
    sums.y += static_cast<double>(y[i]) * y[i];
    if (valid) {
      const double last = images[newest * n + i];
      const double dx = x[i] - (last - residuals[newest * n + i]), dp = image - last;
      sums.moved += dx * dx;
      sums.of_g += dp * dp;
    }
    if (memory) {
      images[slot * n + i] = image;
      residuals[slot * n + i] = residual;
#pragma unroll
      for (int j = 0; j < most_memory; ++j) {
        if (j < memory && j != slot && (valid >> j & 1))
          products[j] += static_cast<double>(residual) * residuals[j * n + i];
      }
    }
  }
  sums.r = block_sum(sums.r, room);
  sums.x = block_sum(sums.x, room);
  sums.y = block_sum(sums.y, room);
  if (valid) {
    sums.moved = block_sum(sums.moved, room);
    sums.of_g = block_sum(sums.of_g, room);
  }
#pragma unroll
  for (int j = 0; j < most_memory; ++j) {
    if (j < memory && j != slot && (valid >> j & 1)) {
      const double dot = block_sum(products[j], room);
      if (threadIdx.x == 0) dots[j] = dot;
    }
  }
  if (threadIdx.x == 0) {
    dots[slot] = sums.r;
    const Next next = judge(sums, p.lipschitz, p.rounding, memory, slot,
                            p.record + sample * iteration::numbers, state);
    decision[0] = static_cast<int32_t>(next);
    decision[1] = state[iteration::valid];
    double* const gram = p.gram + sample * memory * memory;
    if (memory && (decision[1] >> slot & 1)) {
      for (int j = 0; j < memory; ++j) {
        if (decision[1] >> j & 1) gram[slot * memory + j] = gram[j * memory + slot] = dots[j];
      }
    }
    if (next == Next::mixture) anderson_weights(gram, memory, decision[1], slot, weights);
  }
  __syncthreads();
  const Next next = static_cast<Next>(decision[0]);
  if (next == Next::keep) return;
  for (int64_t i = threadIdx.x; i < n; i += block_threads) {
    if (next == Next::mixture) {
      T sum = 0;
      for (int j = 0; j < memory; ++j) {
        if (decision[1] >> j & 1) sum += static_cast<T>(weights[j]) * images[j * n + i];
      }
      x[i] = sum;
    } else {
      x[i] = next == Next::back ? images[newest * n + i] : y[i] - g[i];
    }
  }
}

}  // namespace

void fixed_point_step(const FixedPointStep& p, void* stream) {
  const auto kernel = p.storage == Storage::f64 ? step_kernel<double> : step_kernel<float>;
  launch(kernel, dim3(static_cast<unsigned>(p.batch)), dim3(block_threads), 0,
         static_cast<cudaStream_t>(stream), p);
}

}  // namespace deepgen::cuda
