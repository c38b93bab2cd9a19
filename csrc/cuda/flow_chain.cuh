// The GPU's walk through a chain of flows (flow_chain.h).
//
// A group of G threads, a power of two up to a warp, owns a sample: its state stays in shared
// memory (elements lane, lane + G, ..., each read by the thread that wrote it, so that no barrier
// is needed), its scalars in registers, the step's sum is added by shuffles. All K steps run there:
// device memory sees z, the result and log det once, parameters stream from L2.
// Backward runs forward again and writes the states of the block's samples to a scratch that it
// uses again for its next samples, so that it stays in L2; the sums over samples are added up per
// block, in order, and the blocks' sums by a second kernel. The number of blocks depends on the
// shape alone, so results repeat bit by bit on any device.
#pragma once

#include <algorithm>

#include "../flow_chain.h"
#include "rows.cuh"

namespace deepgen::cuda {

constexpr int64_t most_chain_blocks = 512;
// Of a block's dynamic shared memory: granted from sm_80 on.
constexpr int64_t most_chain_bytes = 96 * 1024;

struct ChainPlan {
  int group, rows;  // threads of a sample, samples of a block
  int64_t tiles;    // groups of `rows` samples

  int threads() const { return group * rows; }
};

// `arrays`: of D elements, kept in shared memory for each sample.
template <class T>
ChainPlan plan_chain(int64_t batch, int64_t features, int arrays) {
  ChainPlan plan{1, 0, 0};
  while (plan.group < 32 && plan.group < features) plan.group *= 2;
  plan.rows = block_threads / plan.group;
  const int64_t bytes = arrays * features * static_cast<int64_t>(sizeof(T));
  const int least = 32 / plan.group;
  while (plan.rows > least && plan.rows * bytes > most_chain_bytes) plan.rows /= 2;
  if (plan.rows * bytes > most_chain_bytes) {
    throw std::invalid_argument("z has too many features for one block's shared memory: " +
                                std::to_string(features));
  }
  plan.tiles = (batch + plan.rows - 1) / plan.rows;
  return plan;
}

template <class T>
__device__ __forceinline__ T sum_of_group(T value, int group) {
  for (int offset = group / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

DEEPGEN_HD float log_of(float x) {
  return logf(x);
}
DEEPGEN_HD double log_of(double x) {
  return log(x);
}

// One step of one sample; adds to log_det. Returns the sum that the step depends on.
template <class Step, class T>
__device__ __forceinline__ T chain_step(const T* v, int64_t features, int lane, int group, T* state,
                                        T* log_det) {
  T sum = 0;
  for (int64_t d = lane; d < features; d += group) {
    const T element[2] = {v[d], v[(Step::vectors - 1) * features + d]};
    sum += Step::term(element, state[d]);
  }
  sum = sum_of_group(sum, group);
  const T* scalars = v + Step::vectors * features;
  T factor = 0, last = 1, others = 1;
  Step::values(sum, scalars[0], scalars[1], factor, last, others);
  *log_det += log_of(last);
  if (Step::stretches_others) *log_det += static_cast<T>(features - 1) * log_of(others);
  for (int64_t d = lane; d < features; d += group) {
    const T element[2] = {v[d], v[(Step::vectors - 1) * features + d]};
    state[d] = Step::move(element, state[d], factor);
  }
  return sum;
}

template <class Step, class S>
__global__ void __launch_bounds__(block_threads) chain_kernel(FlowChain p, int group, int rows) {
  using T = Compute<S>;
  DEEPGEN_DYNAMIC_SHARED(T, shared);
  const int lane = threadIdx.x % group, row = threadIdx.x / group;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * rows + row;
  const bool exists = n < p.batch;
  T* state = shared + row * p.features;
  for (int64_t d = lane; d < p.features; d += group) {
    state[d] =
        exists ? to_compute(static_cast<const S*>(p.z.data)[n * p.z.row + d * p.z.column]) : T(0);
  }
  const int64_t width = Step::vectors * p.features + 2;
  const T* parameters = static_cast<const T*>(p.parameters);
  T log_det = 0;
  for (int64_t k = 0; k < p.steps; ++k) {
    chain_step<Step>(parameters + k * width, p.features, lane, group, state, &log_det);
  }
  if (!exists) return;
  for (int64_t d = lane; d < p.features; d += group) {
    static_cast<S*>(p.output.data)[n * p.output.row + d * p.output.column] =
        to_storage<S>(state[d]);
  }
  if (lane == 0) static_cast<T*>(p.log_det)[n] = log_det;
}

// Shared memory: g, then two arrays of what the samples add to the vectors' gradients, then two of
// what they add to the scalars'; each of (rows, D), the last of (rows).
template <class Step, class S>
__global__ void __launch_bounds__(block_threads)
    chain_backward_kernel(FlowChainBackward p, int group, int rows, int64_t tiles) {
  using T = Compute<S>;
  DEEPGEN_DYNAMIC_SHARED(T, shared);
  const int64_t features = p.features;
  const int lane = threadIdx.x % group, row = threadIdx.x / group;
  T* by_vectors = shared + rows * features;
  T* by_scalars = by_vectors + Step::vectors * rows * features;
  T* g = shared + row * features;
  const int64_t width = Step::vectors * features + 2;
  const T* parameters = static_cast<const T*>(p.parameters);
  T* sums = static_cast<T*>(p.partial_sums) + blockIdx.x * p.steps * width;
  // The states of this thread's sample: (steps + 1, D) of it.
  T* states = static_cast<T*>(p.states) + (blockIdx.x * rows + row) * (p.steps + 1) * features;
  for (int64_t j = threadIdx.x; j < p.steps * width; j += blockDim.x) sums[j] = 0;
  __syncthreads();
  for (int64_t tile = blockIdx.x; tile < tiles; tile += p.blocks) {
    const int64_t n = tile * rows + row;
    const bool exists = n < p.batch;
    for (int64_t d = lane; d < features; d += group) {
      states[d] =
          exists ? to_compute(static_cast<const S*>(p.z.data)[n * p.z.row + d * p.z.column]) : T(0);
      g[d] = exists ? to_compute(static_cast<const S*>(
                          p.grad_output.data)[n * p.grad_output.row + d * p.grad_output.column])
                    : T(0);
    }
    const T grad_log_det = exists ? static_cast<const T*>(p.grad_log_det)[n] : T(0);
    for (int64_t k = 0; k < p.steps; ++k) {
      T* next = states + (k + 1) * features;
      for (int64_t d = lane; d < features; d += group) next[d] = states[k * features + d];
      T unused = 0;
      chain_step<Step>(parameters + k * width, features, lane, group, next, &unused);
    }
    for (int64_t k = p.steps - 1; k >= 0; --k) {
      const T* v = parameters + k * width;
      const T* scalars = v + Step::vectors * features;
      const T* state = states + k * features;
      T sum = 0, pulled = 0;
      for (int64_t d = lane; d < features; d += group) {
        const T element[2] = {v[d], v[(Step::vectors - 1) * features + d]};
        sum += Step::term(element, state[d]);
        pulled += g[d] * Step::lever(element, state[d]);
      }
      sum = sum_of_group(sum, group);
      pulled = sum_of_group(pulled, group);
      T factor = 0, coefficient = 0, by_first = 0, by_second = 0;
      Step::gradient(sum, scalars[0], scalars[1], static_cast<T>(features), pulled, grad_log_det,
                     factor, coefficient, by_first, by_second);
      for (int64_t d = lane; d < features; d += group) {
        const T element[2] = {v[d], v[(Step::vectors - 1) * features + d]};
        T one = 0, two = 0;
        Step::pull(element, state[d], factor, coefficient, g[d], one, two);
        by_vectors[row * features + d] = one;
        if (Step::vectors == 2) by_vectors[(rows + row) * features + d] = two;
      }
      if (lane == 0) by_scalars[row] = by_first, by_scalars[rows + row] = by_second;
      __syncthreads();
      for (int64_t j = threadIdx.x; j < width; j += blockDim.x) {
        const bool is_vector = j < Step::vectors * features;
        const T* from = is_vector ? by_vectors + (j / features) * rows * features + j % features
                                  : by_scalars + (j - Step::vectors * features) * rows;
        const int64_t stride = is_vector ? features : 1;
        T total = 0;
        for (int r = 0; r < rows; ++r) total += from[r * stride];
        sums[k * width + j] += total;
      }
      __syncthreads();
    }
    if (!exists) continue;
    for (int64_t d = lane; d < features; d += group) {
      static_cast<S*>(p.grad_z.data)[n * p.grad_z.row + d * p.grad_z.column] = to_storage<S>(g[d]);
    }
  }
}

// The blocks' sums, in order: a thread a parameter.
template <class T>
__global__ void __launch_bounds__(block_threads)
    add_blocks_kernel(const T* partial_sums, int64_t blocks, int64_t size, T* sums) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (j >= size) return;
  T sum = 0;
  for (int64_t b = 0; b < blocks; ++b) sum += partial_sums[b * size + j];
  sums[j] = sum;
}

template <class Step, class S>
void launch_chain(const FlowChain& p, cudaStream_t stream) {
  using T = Compute<S>;
  const ChainPlan plan = plan_chain<T>(p.batch, p.features, 1);
  launch(chain_kernel<Step, S>, dim3(static_cast<unsigned>(plan.tiles)), dim3(plan.threads()),
         plan.rows * p.features * sizeof(T), stream, p, plan.group, plan.rows);
}

template <class Step, class T>
ChainScratch chain_scratch(int64_t batch, int64_t features) {
  const ChainPlan plan = plan_chain<T>(batch, features, 1 + Step::vectors);
  return {std::max<int64_t>(1, std::min(plan.tiles, most_chain_blocks)), plan.rows};
}

template <class Step, class S>
void launch_chain_backward(const FlowChainBackward& p, cudaStream_t stream) {
  using T = Compute<S>;
  const ChainPlan plan = plan_chain<T>(p.batch, p.features, 1 + Step::vectors);
  const size_t bytes =
      plan.rows * ((1 + Step::vectors) * p.features + 2) * static_cast<int64_t>(sizeof(T));
  launch(chain_backward_kernel<Step, S>, dim3(static_cast<unsigned>(p.blocks)),
         dim3(plan.threads()), bytes, stream, p, plan.group, plan.rows, plan.tiles);
  const int64_t size = p.steps * (Step::vectors * p.features + 2);
  launch(add_blocks_kernel<T>,
         dim3(static_cast<unsigned>((size + block_threads - 1) / block_threads)),
         dim3(block_threads), 0, stream, static_cast<const T*>(p.partial_sums), p.blocks, size,
         static_cast<T*>(p.grad_parameters));
}

}  // namespace deepgen::cuda
