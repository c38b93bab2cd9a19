// Rows: how an elementwise kernel with a sum per row spreads over threads, reads its operands, and
// sums.
//
// A group of threads, a power of two from 1 to the whole block, owns a piece of a row: short rows
// (tabular data) share a block, long rows (images) are cut into pieces of fixed length, so that few
// samples still fill the device and sums do not depend on it. Where all operands are dense and
// aligned, a thread moves 16 bytes at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../choice.h"
#include "../operand.h"
#include "launch.cuh"

namespace deepgen::cuda {

constexpr int block_threads = 256;
constexpr int64_t piece_elements =
    2048;  // 8 floats a thread: two loads of 16 bytes in flight for each operand

// float for the half types, which are only stored.
template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

__device__ __forceinline__ float to_compute(float v) {
  return v;
}
__device__ __forceinline__ double to_compute(double v) {
  return v;
}
__device__ __forceinline__ float to_compute(__nv_bfloat16 v) {
  return __bfloat162float(v);
}
__device__ __forceinline__ float to_compute(__half v) {
  return __half2float(v);
}

template <class S>
__device__ __forceinline__ S to_storage(Compute<S> v) {
  return v;
}
template <>
__device__ __forceinline__ __nv_bfloat16 to_storage<__nv_bfloat16>(float v) {
  return __float2bfloat16(v);
}
template <>
__device__ __forceinline__ __half to_storage<__half>(float v) {
  return __float2half(v);
}

// Calls run(type) with a value of the storage type, to be used as decltype(type).
template <class Run>
void with_storage(Storage storage, Run run) {
  switch (storage) {
    case Storage::f32:
      return run(float{});
    case Storage::f64:
      return run(double{});
    case Storage::bf16:
      return run(__nv_bfloat16{});
    case Storage::f16:
      return run(__half{});
  }
}

// V values moved at once.
template <class S, int V>
struct alignas(sizeof(S) * V) Pack {
  S values[V];
};

// Who works on what; the same for every kernel of this kind.
struct Plan {
  int group;       // threads that share a piece
  int64_t pieces;  // of each row
  int64_t length;  // elements of a piece; the last one may be shorter
  unsigned blocks;
};

inline int64_t pieces_of_row(int64_t row) {
  return row <= 2 * piece_elements ? 1 : (row + piece_elements - 1) / piece_elements;
}

inline Plan plan_rows(const Extent& extent, int vector) {
  const int64_t row = extent.row();
  Plan plan{1, pieces_of_row(row), 0, 0};
  plan.length = plan.pieces == 1 ? row : piece_elements;
  while (plan.group < block_threads && plan.group * vector < plan.length) plan.group *= 2;
  const int64_t items_per_block = block_threads / plan.group;
  plan.blocks =
      static_cast<unsigned>((extent.batch * plan.pieces + items_per_block - 1) / items_per_block);
  return plan;
}

// The piece of a thread's group. Threads behind the last item have an empty one and still take part
// in sums.
struct Piece {
  int64_t row, index, begin, end;
  int lane;

  __device__ Piece(const Extent& extent, const Plan& plan) {
    lane = threadIdx.x % plan.group;
    const int64_t item =
        static_cast<int64_t>(blockIdx.x) * (block_threads / plan.group) + threadIdx.x / plan.group;
    row = item / plan.pieces;
    index = item % plan.pieces;
    begin = index * plan.length;
    end = begin + plan.length;
    const int64_t row_length = extent.row();
    if (end > row_length) end = row_length;
    if (row >= extent.batch) row = -1, begin = end = 0;
  }
  __device__ bool exists() const { return row >= 0; }
};

// Where element i of a row lies. Kernels with V > 1 only see dense rows.
template <int V>
__device__ __forceinline__ int64_t offset_of(const Operand& operand, const Extent& extent,
                                             int64_t row, int64_t i) {
  const int64_t base = row * operand.batch_stride;
  if constexpr (V > 1) return base + i;
  const int64_t inner = i % extent.size[2], rest = i / extent.size[2];
  return base + (rest / extent.size[1]) * operand.stride[0] +
         (rest % extent.size[1]) * operand.stride[1] + inner * operand.stride[2];
}

template <class S, int V>
__device__ __forceinline__ Pack<S, V> read(const Operand& operand, int64_t offset) {
  return *reinterpret_cast<const Pack<S, V>*>(static_cast<const S*>(operand.data) + offset);
}

template <class S, int V>
__device__ __forceinline__ void write(const Operand& operand, int64_t offset,
                                      const Pack<S, V>& pack) {
  *reinterpret_cast<Pack<S, V>*>(static_cast<S*>(operand.data) + offset) = pack;
}

// Whether packs of V values can be read everywhere: dense rows whose starts are all aligned. For a
// mask V bytes are.
template <class S, int V>
bool allows_packs(const Operand& operand, const Extent& extent) {
  if (!operand) return true;
  return has_dense_rows(operand, extent) && operand.batch_stride % V == 0 &&
         extent.row() % V == 0 && reinterpret_cast<uintptr_t>(operand.data) % (sizeof(S) * V) == 0;
}

inline void note_packs(bool packs) {
  if (packs) {
    note_choice("16 bytes a load", "rows are dense, aligned, and of whole packs");
  } else {
    note_choice("an element a load", "a row is strided, unaligned, or no multiple of 16 bytes");
  }
}

// The sum over a group, valid in its first thread. Every thread of the block must come here. The
// order of additions is fixed, so results repeat bit by bit.
template <class T>
__device__ T group_sum(T value, int group) {
  const int width = group < 32 ? group : 32;
  for (int offset = width / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  if (group > 32) {
    DEEPGEN_SHARED(T, warp_sums, block_threads / 32);
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) warp_sums[warp] = value;
    __syncthreads();
    if (threadIdx.x % group == 0) {
      for (int w = 1; w < group / 32; ++w) value += warp_sums[warp + w];
    }
  }
  return value;
}

// sums[r] = the sum of partial_sums[r, :], a warp a row.
template <class T>
__global__ void __launch_bounds__(block_threads)
    add_pieces(const T* partial_sums, int64_t batch, int64_t pieces, T* sums) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (block_threads / 32) + threadIdx.x / 32;
  T sum = 0;
  if (row < batch) {
    for (int64_t i = threadIdx.x % 32; i < pieces; i += 32) sum += partial_sums[row * pieces + i];
  }
  sum = group_sum(sum, 32);
  if (row < batch && threadIdx.x % 32 == 0) sums[row] = sum;
}

template <class T>
void launch_add_pieces(const void* partial_sums, int64_t batch, int64_t pieces, void* sums,
                       cudaStream_t stream) {
  const unsigned blocks =
      static_cast<unsigned>((batch + block_threads / 32 - 1) / (block_threads / 32));
  launch(add_pieces<T>, dim3(blocks), dim3(block_threads), 0, stream,
         static_cast<const T*>(partial_sums), batch, pieces, static_cast<T*>(sums));
}

}  // namespace deepgen::cuda
