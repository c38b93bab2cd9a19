// bernoulli_log_prob on the GPU.
//
// Forward reads 8 bytes an element in float32 and writes a number a row, backward reads them again
// and writes 4: the copy bandwidth is the floor. Rows that share x, as the draws of one image do,
// follow one another and find it in the L2 cache. A group of threads owns a piece of a row
// (rows.cuh): short rows share a block, pieces of long ones leave sums that a second, tiny kernel
// adds in a fixed order. The logits come 16 bytes at a time, and x as many elements at once.
#include "../bernoulli_log_prob.h"
#include "rows.cuh"

namespace deepgen::cuda {
namespace {

__device__ __forceinline__ float to_compute(uint8_t v) {
  return v;
}
using deepgen::cuda::to_compute;

Extent extent_of(const BernoulliLogProb& p) {
  return {p.rows(), {1, 1, p.elements}};
}

template <class S>
__device__ __forceinline__ S* row_of(const BernoulliLogProb& p, const BatchOfRows& operand,
                                     const Piece& piece) {
  return static_cast<S*>(operand.data) + (piece.exists() ? p.begin_of(operand, piece.row) : 0);
}

template <class S, int V>
__device__ __forceinline__ Pack<S, V> pack_at(const S* from) {
  return *reinterpret_cast<const Pack<S, V>*>(from);
}

template <class S, class X, int V>
__global__ void __launch_bounds__(block_threads)
    forward_kernel(BernoulliLogProb p, Extent extent, Plan plan) {
  using T = Compute<S>;
  const Piece piece(extent, plan);
  const X* const x = row_of<X>(p, p.x, piece);
  const S* const logits = row_of<S>(p, p.logits, piece);
  T sum = 0;
  for (int64_t i = piece.begin + piece.lane * V; i < piece.end; i += plan.group * V) {
    const Pack<X, V> targets = pack_at<X, V>(x + i);
    const Pack<S, V> values = pack_at<S, V>(logits + i);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sum += bernoulli_element(static_cast<T>(to_compute(targets.values[v])),
                               to_compute(values.values[v]));
    }
  }
  sum = group_sum(sum, plan.group);
  if (piece.exists() && piece.lane == 0) {
    T* sums = static_cast<T*>(plan.pieces == 1 ? p.log_prob : p.partial_sums);
    sums[piece.row * plan.pieces + piece.index] = sum;
  }
}

template <class S, class X, int V>
__global__ void __launch_bounds__(block_threads)
    backward_kernel(BernoulliLogProbBackward problem, Extent extent, Plan plan) {
  using T = Compute<S>;
  const BernoulliLogProb& p = problem.forward;
  const Piece piece(extent, plan);
  if (!piece.exists()) return;
  const X* const x = row_of<X>(p, p.x, piece);
  const S* const logits = row_of<S>(p, p.logits, piece);
  S* const gradients = row_of<S>(p, problem.grad_logits, piece);
  const T grad_output = static_cast<const T*>(problem.grad_output)[piece.row];
  for (int64_t i = piece.begin + piece.lane * V; i < piece.end; i += plan.group * V) {
    const Pack<X, V> targets = pack_at<X, V>(x + i);
    const Pack<S, V> values = pack_at<S, V>(logits + i);
    Pack<S, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const T slope = bernoulli_slope(static_cast<T>(to_compute(targets.values[v])),
                                      to_compute(values.values[v]));
      result.values[v] = to_storage<S>(slope * grad_output);
    }
    *reinterpret_cast<Pack<S, V>*>(gradients + i) = result;
  }
}

// Whether every row begins at a whole pack.
template <class S, int V>
bool begins_at_packs(const BatchOfRows& operand) {
  for (const int64_t stride : operand.stride) {
    if (stride % V != 0) return false;
  }
  return reinterpret_cast<uintptr_t>(operand.data) % (sizeof(S) * V) == 0;
}

template <class S, class X, int V>
bool allows_packs(const BernoulliLogProb& p) {
  return p.elements % V == 0 && begins_at_packs<X, V>(p.x) && begins_at_packs<S, V>(p.logits);
}

template <class S, class X, int V>
void forward_with_packs(const BernoulliLogProb& p, cudaStream_t stream) {
  const Extent extent = extent_of(p);
  const Plan plan = plan_rows(extent, V);
  launch(forward_kernel<S, X, V>, dim3(plan.blocks), dim3(block_threads), 0, stream, p, extent,
         plan);
  if (plan.pieces > 1) {
    launch_add_pieces<Compute<S>>(p.partial_sums, p.rows(), plan.pieces, p.log_prob, stream);
  }
}

template <class S, class X>
void forward(const BernoulliLogProb& p, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(S);
  const bool packs = allows_packs<S, X, V>(p);
  note_packs(packs);
  packs ? forward_with_packs<S, X, V>(p, stream) : forward_with_packs<S, X, 1>(p, stream);
}

template <class S, class X, int V>
void backward_with_packs(const BernoulliLogProbBackward& p, cudaStream_t stream) {
  const Extent extent = extent_of(p.forward);
  const Plan plan = plan_rows(extent, V);
  launch(backward_kernel<S, X, V>, dim3(plan.blocks), dim3(block_threads), 0, stream, p, extent,
         plan);
}

template <class S, class X>
void backward(const BernoulliLogProbBackward& p, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(S);
  const bool packs = allows_packs<S, X, V>(p.forward) && begins_at_packs<S, V>(p.grad_logits);
  note_packs(packs);
  packs ? backward_with_packs<S, X, V>(p, stream) : backward_with_packs<S, X, 1>(p, stream);
}

// Calls run(logit, x) with values of both storage types, to be used as decltype.
template <class Run>
void with_types(const BernoulliLogProb& p, Run run) {
  with_storage(p.storage, [&](auto logit) {
    switch (p.target_storage) {
      case TargetStorage::bytes:
        return run(logit, uint8_t{});
      case TargetStorage::as_logits:
        return run(logit, logit);
      case TargetStorage::as_sums:
        return run(logit, Compute<decltype(logit)>{});
    }
  });
}

}  // namespace

int64_t bernoulli_log_prob_pieces(int64_t elements) {
  return pieces_of_row(elements);
}

void bernoulli_log_prob(const BernoulliLogProb& p, void* stream) {
  with_types(p, [&](auto logit, auto x) {
    forward<decltype(logit), decltype(x)>(p, static_cast<cudaStream_t>(stream));
  });
}

void bernoulli_log_prob_backward(const BernoulliLogProbBackward& p, void* stream) {
  with_types(p.forward, [&](auto logit, auto x) {
    backward<decltype(logit), decltype(x)>(p, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace deepgen::cuda
