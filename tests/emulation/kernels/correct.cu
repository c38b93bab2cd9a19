// Kernels without faults: they must agree with numpy in every order, and compile under nvcc.
#include <cuda_bf16.h>

#include "boundary.h"
#include "cuda/launch.cuh"

using deepgen::cuda::launch;

namespace {

// One block sums n numbers: a tree in shared memory.
__global__ void block_sum_kernel(const float* x, float* total, int n) {
  DEEPGEN_SHARED(float, partial, 256);
  const int t = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int i = t; i < n; i += static_cast<int>(blockDim.x)) sum += x[i];
  partial[t] = sum;
  __syncthreads();
  for (int half = 128; half > 0; half /= 2) {
    if (t < half) partial[t] += partial[t + half];
    __syncthreads();
  }
  if (t == 0) *total = partial[0];
}

// Each row of width columns is summed by one warp.
template <class T>
__global__ void warp_row_sum_kernel(const T* x, T* sums, int rows, int columns) {
  const int row = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y);
  if (row >= rows) return;
  T sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += 32) {
    sum += x[static_cast<int64_t>(row) * columns + i];
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (threadIdx.x == 0) sums[row] = sum;
}

// Prefix sum of one warp of any width up to 32, its mask made from the block's size.
__global__ void warp_scan_kernel(const int* x, int* sums) {
  const unsigned lanes = blockDim.x;
  const unsigned mask = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  int sum = x[threadIdx.x];
  for (unsigned offset = 1; offset < lanes; offset *= 2) {
    const int before = __shfl_up_sync(mask, sum, offset);
    if (threadIdx.x >= offset) sum += before;
  }
  sums[threadIdx.x] = sum;
}

__global__ void transpose_kernel(const float* x, float* y, int rows, int columns) {
  DEEPGEN_DYNAMIC_SHARED(float, tile);  // blockDim.y rows of blockDim.x + 1
  const unsigned stride = blockDim.x + 1;
  unsigned row = blockIdx.y * blockDim.y + threadIdx.y,
           column = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned n_rows = static_cast<unsigned>(rows), n_columns = static_cast<unsigned>(columns);
  if (row < n_rows && column < n_columns) {
    tile[threadIdx.y * stride + threadIdx.x] = x[row * n_columns + column];
  }
  __syncthreads();
  row = blockIdx.y * blockDim.y + threadIdx.x;  // square tiles
  column = blockIdx.x * blockDim.x + threadIdx.y;
  if (row < n_rows && column < n_columns) {
    y[column * n_rows + row] = tile[threadIdx.x * stride + threadIdx.y];
  }
}

__global__ void bf16_scale_kernel(const __nv_bfloat16* x, __nv_bfloat16* y, float scale, int n) {
  const int pair = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (2 * pair + 1 < n) {
    const float2 v = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(x)[pair]);
    reinterpret_cast<__nv_bfloat162*>(y)[pair] = __floats2bfloat162_rn(v.x * scale, v.y * scale);
  } else if (2 * pair < n) {
    y[2 * pair] = __float2bfloat16(__bfloat162float(x[2 * pair]) * scale);
  }
}

__global__ void histogram_kernel(const int* x, unsigned* counts, int n) {
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    atomicAdd(&counts[x[i]], 1u);
  }
}

// Writes how many, whether any and whether all of the block's numbers are positive.
__global__ void positive_kernel(const float* x, int* answers) {
  const int positive = x[threadIdx.x] > 0;
  const int count = __syncthreads_count(positive);
  const int any = __syncthreads_or(positive);
  const int all = __syncthreads_and(positive);
  const unsigned ballot = __ballot_sync(0xffffffffu, positive);
  if (threadIdx.x == 0) {
    answers[0] = count;
    answers[1] = any;
    answers[2] = all;
    answers[3] = __popc(ballot);
  }
}

}  // namespace

ENTRY block_sum(const float* x, float* total, int n) {
  return run([&] { launch(block_sum_kernel, 1, 256, 0, nullptr, x, total, n); });
}

ENTRY warp_row_sum(const double* x, double* sums, int rows, int columns) {
  return run([&] {
    launch(warp_row_sum_kernel<double>, (rows + 3) / 4, dim3(32, 4), 0, nullptr, x, sums, rows,
           columns);
  });
}

ENTRY warp_scan(const int* x, int* sums, int lanes) {
  return run([&] { launch(warp_scan_kernel, 1, lanes, 0, nullptr, x, sums); });
}

ENTRY transpose(const float* x, float* y, int rows, int columns) {
  return run([&] {
    launch(transpose_kernel, dim3((columns + 15) / 16, (rows + 15) / 16), dim3(16, 16),
           16 * 17 * sizeof(float), nullptr, x, y, rows, columns);
  });
}

ENTRY bf16_scale(const void* x, void* y, float scale, int n) {
  return run([&] {
    launch(bf16_scale_kernel, (n / 2 + 64) / 64, 64, 0, nullptr,
           static_cast<const __nv_bfloat16*>(x), static_cast<__nv_bfloat16*>(y), scale, n);
  });
}

ENTRY histogram(const int* x, unsigned* counts, int n, int blocks) {
  return run([&] { launch(histogram_kernel, blocks, 96, 0, nullptr, x, counts, n); });
}

ENTRY positive(const float* x, int* answers, int n) {
  return run([&] { launch(positive_kernel, 1, n, 0, nullptr, x, answers); });
}
