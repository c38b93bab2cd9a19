// masked_conv2d on the GPU: an implicit matrix product on CUDA cores, portable and exact in
// float64.
//
// The depth of the product counts (tap, source channel) pairs, the taps above and left of the
// centre first, at the end the centre's channels as far as the mask shows them. A block owns 64
// positions x 64 target channels of one group, so that what is masked for it is not in its depth;
// 16 of the depth at a time go through shared memory, a thread keeps 4 x 4 sums. The gradient of x
// is the same with the taps mirrored. The gradient of the weight owns 64 of the depth x 64 outputs
// and walks over a piece of all positions; a second kernel adds the pieces in a fixed order and
// writes the zeros of masked weights.
//
// Bound by arithmetic: 2 depth FLOP a result, 16 FLOP a float read from shared memory. It has no
// tensor cores, so the glue gives layers of 16 and more input channels to cuDNN, which leaves this
// kernel the first layers of networks on images (1 or 3 channels, bound by writing y). Where
// exactly the two meet is owed a measurement on a GPU.
#include "../masked_conv2d.h"
#include "rows.cuh"

namespace deepgen::cuda {
namespace {

constexpr int side = 64;  // of a block's tile
constexpr int step = 16;  // of the depth, or of the positions in the weight's gradient
constexpr int each = 4;   // a thread's sums are each x each

struct Tap {
  int64_t channel, row, column;  // of the source and of the kernel
  int64_t down, right;           // from the target's pixel to the source's
};

// The product's depth for one target channel: its taps by number.
struct Depth {
  MaskedConv2d p;
  bool mirrored;
  int64_t source_channels, above, aside, full_taps, centre_begin, count;

  __device__ Depth(const MaskedConv2d& problem, bool mirrored, int64_t target)
      : p(problem), mirrored(mirrored), above(p.rows_above()), aside(p.columns_aside()) {
    const MaskedKernel& k = p.kernel;
    source_channels = mirrored ? k.out_channels : k.in_channels;
    full_taps = above * (2 * aside + 1) + aside;
    centre_begin = mirrored ? k.first_output(target) : 0;
    const int64_t centre_end = mirrored ? k.out_channels : k.visible_inputs(target);
    count = full_taps * source_channels + centre_end - centre_begin;
  }

  __device__ Tap tap(int64_t depth) const {
    const int64_t t = depth / source_channels, width = 2 * aside + 1;
    int64_t s = 0, u = 0, channel = depth - t * source_channels;
    if (t >= full_taps) {
      channel = centre_begin + depth - full_taps * source_channels;
    } else if (t < above * width) {
      s = above - t / width;
      u = t % width - aside;
    } else {
      u = t - above * width - aside;
    }
    const int64_t d = mirrored ? -p.kernel.dilation : p.kernel.dilation;
    return {channel, p.kernel.kernel_height / 2 - s, p.kernel.kernel_width / 2 + u, -s * d, u * d};
  }
};

// One of all positions of a batch.
struct Position {
  int64_t n, i, j;

  __device__ Position(const ImageExtent& extent, int64_t index) {
    n = index / extent.positions();
    i = index % extent.positions() / extent.width;
    j = index % extent.width;
  }
};

template <class S>
__device__ Compute<S> read(const PixelOperand& image, const ImageExtent& extent, const Position& at,
                           const Tap& tap) {
  const int64_t i = at.i + tap.down, j = at.j + tap.right;
  if (i < 0 || i >= extent.height || j < 0 || j >= extent.width) return 0;
  return to_compute(static_cast<const S*>(image.data)[image.offset(at.n, tap.channel, i, j)]);
}

// sums[a][b] += sum over k of left[k][row + a] right[k][column + b].
template <class T>
__device__ __forceinline__ void multiply(const T* left, const T* right, T (&sums)[each][each]) {
  const int row = threadIdx.x / (side / each) * each, column = threadIdx.x % (side / each) * each;
  for (int k = 0; k < step; ++k) {
#pragma unroll
    for (int a = 0; a < each; ++a) {
#pragma unroll
      for (int b = 0; b < each; ++b) {
        sums[a][b] += left[k * side + row + a] * right[k * side + column + b];
      }
    }
  }
}

// Which channels blockIdx.y owns: up to 64 of one group.
struct Channels {
  int64_t first, end;

  __device__ Channels(int64_t channels, int64_t groups) {
    const int64_t group = channels / groups, blocks = (group + side - 1) / side;
    first = blockIdx.y / blocks * group + blockIdx.y % blocks * side;
    end = (blockIdx.y / blocks + 1) * group;
  }
};

int64_t channel_blocks(int64_t channels, int64_t groups) {
  return groups * ((channels / groups + side - 1) / side);
}

template <class S>
__global__ void __launch_bounds__(block_threads)
    convolve_kernel(MaskedConv2d p, PixelOperand source, PixelOperand target, bool mirrored) {
  using T = Compute<S>;
  DEEPGEN_SHARED(T, pixels, step * side);
  DEEPGEN_SHARED(T, weights, step * side);
  const Channels own(mirrored ? p.kernel.in_channels : p.kernel.out_channels, p.kernel.groups);
  const Depth depth(p, mirrored, own.first);
  const int64_t all = p.extent.batch * p.extent.positions();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * side;
  const int lane = threadIdx.x % side;
  const Position position(p.extent, first + lane);
  T sums[each][each] = {};
  for (int64_t begin = 0; begin < depth.count; begin += step) {
    for (int k = threadIdx.x / side; k < step; k += block_threads / side) {
      const bool inside = begin + k < depth.count;
      const Tap tap = depth.tap(inside ? begin + k : 0);
      const int64_t channel = own.first + lane;
      pixels[k * side + lane] =
          inside && first + lane < all ? read<S>(source, p.extent, position, tap) : T(0);
      const int64_t weight = mirrored ? p.kernel.weight(tap.channel, channel, tap.row, tap.column)
                                      : p.kernel.weight(channel, tap.channel, tap.row, tap.column);
      weights[k * side + lane] =
          inside && channel < own.end ? to_compute(static_cast<const S*>(p.weight)[weight]) : T(0);
    }
    __syncthreads();
    multiply(weights, pixels, sums);
    __syncthreads();
  }
  for (int a = 0; a < each; ++a) {
    const int64_t channel = own.first + threadIdx.x / (side / each) * each + a;
    for (int b = 0; b < each; ++b) {
      const int64_t index = first + threadIdx.x % (side / each) * each + b;
      if (channel >= own.end || index >= all) continue;
      const Position at(p.extent, index);
      const T bias = p.bias ? to_compute(static_cast<const S*>(p.bias)[channel]) : T(0);
      static_cast<S*>(target.data)[target.offset(at.n, channel, at.i, at.j)] =
          to_storage<S>(sums[a][b] + bias);
    }
  }
}

// Block (64 of the depth, 64 outputs, piece of the positions).
template <class S>
__global__ void __launch_bounds__(block_threads)
    weight_kernel(MaskedConv2d p, Compute<S>* partial_sums) {
  using T = Compute<S>;
  DEEPGEN_SHARED(T, pixels, step * side);
  DEEPGEN_SHARED(T, gradients, step * side);
  const Channels own(p.kernel.out_channels, p.kernel.groups);
  const Depth depth(p, false, own.first);
  const int64_t all = p.extent.batch * p.extent.positions();
  const int64_t begin = all * blockIdx.z / gridDim.z, end = all * (blockIdx.z + 1) / gridDim.z;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * side;
  const int lane = threadIdx.x % side;
  const bool in_depth = first + lane < depth.count;
  const Tap tap = depth.tap(in_depth ? first + lane : 0);
  T sums[each][each] = {};
  for (int64_t q = begin; q < end; q += step) {
    for (int k = threadIdx.x / side; k < step; k += block_threads / side) {
      const bool inside = q + k < end;
      const Position at(p.extent, inside ? q + k : begin);
      const int64_t channel = own.first + lane;
      pixels[k * side + lane] = inside && in_depth ? read<S>(p.x, p.extent, at, tap) : T(0);
      gradients[k * side + lane] =
          inside && channel < own.end
              ? to_compute(static_cast<const S*>(p.y.data)[p.y.offset(at.n, channel, at.i, at.j)])
              : T(0);
    }
    __syncthreads();
    multiply(gradients, pixels, sums);
    __syncthreads();
  }
  for (int a = 0; a < each; ++a) {
    const int64_t channel = own.first + threadIdx.x / (side / each) * each + a;
    for (int b = 0; b < each; ++b) {
      const int64_t index = first + threadIdx.x % (side / each) * each + b;
      if (channel >= own.end || index >= depth.count) continue;
      const Tap at = depth.tap(index);
      partial_sums[blockIdx.z * p.kernel.weights() +
                   p.kernel.weight(channel, at.channel, at.row, at.column)] = sums[a][b];
    }
  }
}

// A thread a weight.
template <class S>
__global__ void __launch_bounds__(block_threads)
    finish_kernel(MaskedConv2d p, const Compute<S>* partial_sums, int64_t pieces, S* grad_weight) {
  const MaskedKernel& kernel = p.kernel;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (index >= kernel.weights()) return;
  const int64_t u = index % kernel.kernel_width - kernel.kernel_width / 2;
  const int64_t rest = index / kernel.kernel_width;
  const int64_t s = kernel.kernel_height / 2 - rest % kernel.kernel_height;
  const int64_t channels = rest / kernel.kernel_height;
  const int64_t c = channels % kernel.in_channels, o = channels / kernel.in_channels;
  const bool reaches = s <= p.rows_above() && u <= p.columns_aside() && u >= -p.columns_aside();
  const bool visible = s > 0 || (s == 0 && (u < 0 || (u == 0 && c < kernel.visible_inputs(o))));
  Compute<S> sum = 0;
  for (int64_t piece = 0; piece < pieces && reaches && visible; ++piece) {
    sum += partial_sums[piece * kernel.weights() + index];
  }
  grad_weight[index] = to_storage<S>(sum);
}

template <class S>
void convolve(const MaskedConv2d& p, const PixelOperand& source, const PixelOperand& target,
              bool mirrored, cudaStream_t stream) {
  const int64_t all = p.extent.batch * p.extent.positions();
  const int64_t channels = mirrored ? p.kernel.in_channels : p.kernel.out_channels;
  const dim3 grid((all + side - 1) / side, channel_blocks(channels, p.kernel.groups));
  launch(convolve_kernel<S>, grid, dim3(block_threads), 0, stream, p, source, target, mirrored);
}

// An upper bound of the depth over all groups.
int64_t most_depth(const MaskedConv2d& p) {
  return (p.rows_above() * (2 * p.columns_aside() + 1) + p.columns_aside() + 1) *
         p.kernel.in_channels;
}

}  // namespace

void masked_conv2d(const MaskedConv2d& p, void* stream) {
  with_storage(p.storage, [&](auto type) {
    convolve<decltype(type)>(p, p.x, p.y, false, static_cast<cudaStream_t>(stream));
  });
}

int64_t masked_conv2d_pieces(const MaskedConv2d& p) {
  const int64_t tiles =
      (most_depth(p) + side - 1) / side * channel_blocks(p.kernel.out_channels, p.kernel.groups);
  const int64_t by_positions = (p.extent.batch * p.extent.positions() + 1023) / 1024;
  const int64_t enough = (512 + tiles - 1) / tiles;  // blocks for the largest devices
  return by_positions < enough ? by_positions : enough;
}

void masked_conv2d_backward(const MaskedConv2dBackward& p, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const MaskedConv2d& forward = p.forward;
  with_storage(forward.storage, [&](auto type) {
    using S = decltype(type);
    if (p.grad_x.data) convolve<S>(forward, forward.y, p.grad_x, true, stream);
    if (!p.grad_weight) return;
    auto* const partial_sums = static_cast<Compute<S>*>(p.partial_sums);
    const dim3 grid((most_depth(forward) + side - 1) / side,
                    channel_blocks(forward.kernel.out_channels, forward.kernel.groups), p.pieces);
    launch(weight_kernel<S>, grid, dim3(block_threads), 0, stream, forward, partial_sums);
    const int64_t blocks = (forward.kernel.weights() + block_threads - 1) / block_threads;
    launch(finish_kernel<S>, dim3(blocks), dim3(block_threads), 0, stream, forward, partial_sums,
           p.pieces, static_cast<S*>(p.grad_weight));
  });
}

}  // namespace deepgen::cuda
