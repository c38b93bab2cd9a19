// channel_affine on the GPU.
//
// Forward: 8 bytes an element in float32, a thread an element or a pack of 16 bytes within one
// channel; its block 0 also sums the log scales and fills log det, so that the op is one launch.
// Backward: 12 bytes an element. A block owns some channels and a piece of their positions over the
// whole batch, writes dx and sums g x and g in shared memory; a second kernel adds the pieces of a
// channel in a fixed order. Channels that lie side by side (vectors, channels-last) are read 32 at
// a time, so that reads coalesce there too.
#include "../channel_affine.h"
#include "rows.cuh"

namespace deepgen::cuda {
namespace {

constexpr int64_t positions_per_piece = 8192;

__device__ __forceinline__ int64_t offset_of(const ChannelOperand& operand,
                                             const ChannelExtent& extent, int64_t n, int64_t c,
                                             int64_t position) {
  return n * operand.batch + c * operand.channel + (position / extent.inner) * operand.outer +
         (position % extent.inner) * operand.inner;
}

template <class S>
__device__ __forceinline__ Compute<S> scale_of(const void* log_scale, int64_t c, bool inverse) {
  const Compute<S> value = to_compute(static_cast<const S*>(log_scale)[c]);
  return exp_of(inverse ? -value : value);
}

template <class S>
__device__ void fill_log_det(const ChannelAffine& p) {
  using T = Compute<S>;
  T sum = 0;
  for (int64_t c = threadIdx.x; c < p.extent.channels; c += block_threads) {
    sum += to_compute(static_cast<const S*>(p.log_scale)[c]);
  }
  sum = group_sum(sum, block_threads);
  DEEPGEN_SHARED(T, log_det, 1);
  if (threadIdx.x == 0)
    log_det[0] = (p.inverse ? -sum : sum) * static_cast<T>(p.extent.positions());
  __syncthreads();
  for (int64_t n = threadIdx.x; n < p.extent.batch; n += block_threads) {
    static_cast<T*>(p.log_det)[n] = log_det[0];
  }
}

// The order in which neighbouring threads take elements: positions within a channel, or channels
// within a position.
template <class S, int V>
__global__ void __launch_bounds__(block_threads)
    forward_kernel(ChannelAffine p, bool channels_first, int64_t count) {
  using T = Compute<S>;
  if (blockIdx.x == 0) fill_log_det<S>(p);
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x) * V;
  if (i >= count) return;
  const int64_t channels = p.extent.channels, positions = p.extent.positions();
  const int64_t n = i / (channels * positions), rest = i % (channels * positions);
  const int64_t c = channels_first ? rest % channels : rest / positions;
  const int64_t position = channels_first ? rest / channels : rest % positions;
  const T scale = scale_of<S>(p.log_scale, c, p.inverse);
  const T shift = to_compute(static_cast<const S*>(p.shift)[c]);
  const auto* x = static_cast<const S*>(p.x.data) + offset_of(p.x, p.extent, n, c, position);
  auto* y = static_cast<S*>(p.y.data) + offset_of(p.y, p.extent, n, c, position);
  Pack<S, V> values = *reinterpret_cast<const Pack<S, V>*>(x);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const T value = to_compute(values.values[v]);
    values.values[v] = to_storage<S>(p.inverse ? (value - shift) * scale : value * scale + shift);
  }
  *reinterpret_cast<Pack<S, V>*>(y) = values;
}

// Block (piece, group of `lanes` channels): thread t works on channel t % lanes and every (threads
// / lanes)-th position.
template <class S>
__global__ void __launch_bounds__(block_threads)
    backward_kernel(ChannelAffineBackward p, int lanes) {
  using T = Compute<S>;
  const int64_t c = static_cast<int64_t>(blockIdx.y) * lanes + threadIdx.x % lanes;
  const int64_t positions = p.extent.positions(), all = p.extent.batch * positions;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * positions_per_piece;
  const int64_t end = begin + positions_per_piece < all ? begin + positions_per_piece : all;
  const int step = block_threads / lanes;
  T sum_gx = 0, sum_g = 0;
  if (c < p.extent.channels) {
    const T scale = scale_of<S>(p.log_scale, c, p.inverse);
    for (int64_t q = begin + threadIdx.x / lanes; q < end; q += step) {
      const int64_t n = q / positions, position = q % positions;
      const T g = to_compute(static_cast<const S*>(
          p.grad_output.data)[offset_of(p.grad_output, p.extent, n, c, position)]);
      const T x =
          to_compute(static_cast<const S*>(p.x.data)[offset_of(p.x, p.extent, n, c, position)]);
      static_cast<S*>(p.grad_input.data)[offset_of(p.grad_input, p.extent, n, c, position)] =
          to_storage<S>(g * scale);
      sum_gx += g * x;
      sum_g += g;
    }
  }
  DEEPGEN_SHARED(T, gx, block_threads);
  DEEPGEN_SHARED(T, gs, block_threads);
  gx[threadIdx.x] = sum_gx;
  gs[threadIdx.x] = sum_g;
  for (int width = block_threads / 2; width >= lanes; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) {
      gx[threadIdx.x] += gx[threadIdx.x + width];
      gs[threadIdx.x] += gs[threadIdx.x + width];
    }
  }
  if (threadIdx.x < lanes && c < p.extent.channels) {
    T* sums = static_cast<T*>(p.partial_sums) + c * p.pieces + blockIdx.x;
    sums[0] = gx[threadIdx.x];
    sums[p.extent.channels * p.pieces] = gs[threadIdx.x];
  }
}

// A block a channel.
template <class S>
__global__ void __launch_bounds__(block_threads) finish_kernel(ChannelAffineBackward p) {
  using T = Compute<S>;
  const int64_t c = blockIdx.x;
  const T* partial_sums = static_cast<const T*>(p.partial_sums) + c * p.pieces;
  T gx = 0, g = 0, total = 0;
  for (int64_t i = threadIdx.x; i < p.pieces; i += block_threads) {
    gx += partial_sums[i];
    g += partial_sums[i + p.extent.channels * p.pieces];
  }
  for (int64_t n = threadIdx.x; n < p.extent.batch; n += block_threads) {
    total += static_cast<const T*>(p.grad_log_det)[n];
  }
  gx = group_sum(gx, block_threads);
  __syncthreads();
  g = group_sum(g, block_threads);
  __syncthreads();
  total = group_sum(total, block_threads) * static_cast<T>(p.extent.positions());
  if (threadIdx.x == 0) {
    const T scale = scale_of<S>(p.log_scale, c, p.inverse);
    static_cast<S*>(p.grad_log_scale)[c] =
        to_storage<S>(p.inverse ? -gx - total : gx * scale + total);
    static_cast<S*>(p.grad_shift)[c] = to_storage<S>(p.inverse ? -g * scale : g);
  }
}

bool channels_adjacent(const ChannelOperand& operand, const ChannelExtent& extent) {
  return extent.channels > 1 && operand.channel == 1 && (extent.inner == 1 || operand.inner != 1);
}

template <class S, int V>
bool allows_packs(const ChannelOperand& operand, const ChannelExtent& extent) {
  return operand.inner == 1 && extent.inner % V == 0 && operand.batch % V == 0 &&
         operand.channel % V == 0 && operand.outer % V == 0 &&
         reinterpret_cast<uintptr_t>(operand.data) % (sizeof(S) * V) == 0;
}

template <class S, int V>
void forward_with_packs(const ChannelAffine& p, cudaStream_t stream) {
  const int64_t count = p.extent.batch * p.extent.channels * p.extent.positions();
  const int64_t blocks = (count / V + block_threads - 1) / block_threads;
  // Samples without elements still have a log det.
  const unsigned grid = static_cast<unsigned>(blocks == 0 && p.extent.batch > 0 ? 1 : blocks);
  launch(forward_kernel<S, V>, dim3(grid), dim3(block_threads), 0, stream, p,
         channels_adjacent(p.x, p.extent), count);
}

template <class S>
void forward(const ChannelAffine& p, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(S);
  const bool packs = allows_packs<S, V>(p.x, p.extent) && allows_packs<S, V>(p.y, p.extent);
  note_packs(packs);
  packs ? forward_with_packs<S, V>(p, stream) : forward_with_packs<S, 1>(p, stream);
}

template <class S>
void backward(const ChannelAffineBackward& p, cudaStream_t stream) {
  const int lanes = channels_adjacent(p.x, p.extent) ? 32 : 1;
  const unsigned channel_blocks = static_cast<unsigned>((p.extent.channels + lanes - 1) / lanes);
  launch(backward_kernel<S>, dim3(static_cast<unsigned>(p.pieces), channel_blocks),
         dim3(block_threads), 0, stream, p, lanes);
  launch(finish_kernel<S>, dim3(static_cast<unsigned>(p.extent.channels)), dim3(block_threads), 0,
         stream, p);
}

}  // namespace

// At least one, so that the gradients of an empty batch come out as zeros.
int64_t channel_affine_pieces(const ChannelExtent& extent) {
  const int64_t all = extent.batch * extent.positions();
  return all == 0 ? 1 : (all + positions_per_piece - 1) / positions_per_piece;
}

void channel_affine(const ChannelAffine& p, void* stream) {
  with_storage(p.storage,
               [&](auto type) { forward<decltype(type)>(p, static_cast<cudaStream_t>(stream)); });
}

void channel_affine_backward(const ChannelAffineBackward& p, void* stream) {
  with_storage(p.storage,
               [&](auto type) { backward<decltype(type)>(p, static_cast<cudaStream_t>(stream)); });
}

}  // namespace deepgen::cuda
