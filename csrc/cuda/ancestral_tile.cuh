// What the threads of a block know of their tile of samples, and the steps that are the same for a
// pixel and for a row: channel by channel, and the draws.
#pragma once

#include "../ancestral_sample.h"
#include "../categorical_draw.h"
#include "../discretized_logistic_mixture.h"
#include "../elementary.h"
#include "launch.cuh"

namespace deepgen::cuda::sampling {

using namespace deepgen::sampling;

constexpr int threads = 512;
constexpr int warps = threads / 32;

// The kernel's argument.
struct Problem {
  const int32_t* program;
  const void* weights;
  const void* conditions[AncestralSample::max_conditions];
  int64_t n;
  int32_t channels, height, width, n_levels, tile, first_row, last_row;
  double temperature;
  const void* uniforms;
  const bool* known;
  int64_t* levels;
  void* values;
  void* caches;
  uint32_t shared_bytes;
};

// 16 bytes: what a thread loads of a panel, which so is a line of four threads.
template <class T>
struct alignas(16) Vec {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};

// n / d for n * d < 2^32: a division takes as long as many multiply-adds, and there is one at every
// turn.
struct Divisor {
  uint32_t magic;

  __device__ explicit Divisor(uint32_t d) : magic(d <= 1 ? 0 : 0xffffffff / d + 1) {}
  __device__ int divide(int n) const {
    return magic ? static_cast<int>(__umulhi(static_cast<unsigned>(n), magic)) : n;
  }
};

// A node of one tile of samples: where its rows stand, and how far apart columns and samples are.
template <class T>
struct Plane {
  T* data;
  int64_t row_stride, column_stride;
  int32_t sample_stride, rows, stride;
  int32_t row, ring;  // that is drawn, and its place among the rows that are kept
  int32_t mirror;     // where the pixel path keeps the current pixel, -1 nowhere

  __device__ void begin_row(int y) {
    row = stride > 1 ? y / stride : y;
    ring = row % rows;
  }
  // Any row that is still kept.
  __device__ T* at(int r, int column) const {
    int place = ring + (r - row);
    if (place < 0) place += rows;
    return data + place * row_stride + column * column_stride;
  }
};

// The shared memory of a block, handed out from the front.
struct Arena {
  unsigned char* data;
  uint32_t used, size;

  template <class U>
  __device__ bool has(int64_t count) const {
    return used + (count * static_cast<int64_t>(sizeof(U)) + 15) / 16 * 16 <= size;
  }
  template <class U>
  __device__ U* take(int64_t count) {
    U* const taken = reinterpret_cast<U*>(data + used);
    used += static_cast<uint32_t>((count * sizeof(U) + 15) / 16 * 16);
    return taken;
  }
};

template <class T>
struct Tile {
  const Problem* problem;
  const int32_t* words;    // of the program, in shared memory where they fit
  const Plane<T>* planes;  // likewise; null where they do not
  const T* weights;
  int64_t first;
  int samples;
  int y;  // the row that is drawn

  __device__ Plane<T> make_plane(const Node& node, const Header& header) const {
    Plane<T> plane = first_row(node, header);
    plane.begin_row(y);
    return plane;
  }

  __device__ Plane<T> plane(int node) const {
    if (planes) return planes[node];
    const Program program(words);
    return make_plane(program.nodes[node], program.header);
  }

 private:
  __device__ Plane<T> first_row(const Node& node, const Header& header) const {
    const int64_t stride = node.stride > 1 ? node.stride : 1;
    const int64_t columns = (problem->width + stride - 1) / stride;
    const int64_t c = node.channels;
    if (node.place == static_cast<int32_t>(Place::cached)) {
      T* const caches = static_cast<T*>(problem->caches) + first * header.cache_per_sample;
      const int64_t column = c * samples;
      return {caches + static_cast<int64_t>(node.offset) * samples + node.pad * column,
              (columns + 2 * node.pad) * column,
              column,
              node.channels,
              node.rows,
              node.stride,
              0,
              0,
              -1};
    }
    T* const data =
        static_cast<T*>(const_cast<void*>(problem->conditions[node.offset])) + first * c;
    if (node.place == static_cast<int32_t>(Place::map)) {
      const int64_t column = problem->n * c;
      return {data, columns * column, column, node.channels, INT32_MAX, node.stride, 0, 0, -1};
    }
    return {data, 0, 0, node.channels, 1, node.stride, 0, 0, -1};
  }
};

// ---------------------------------------------------------------- channel by channel

template <class T>
__device__ __forceinline__ T elu(T x) {
  return x > 0 ? x : exp_of(x < 0 ? x : T(0)) - 1;
}
template <class T>
__device__ __forceinline__ T sigmoid(T x) {
  return 1 / (1 + exp_of(-x));
}

// f(a, b); scale and shift are affine's.
template <class T>
__device__ __forceinline__ T apply(int32_t kind, T a, T b, T scale, T shift) {
  switch (static_cast<Kind>(kind)) {
    case Kind::relu:
      return a > 0 ? a : T(0);
    case Kind::elu:
      return elu(a);
    case Kind::negative_elu:
      return elu(-a);
    case Kind::tanh:
      return tanh_of(a);
    case Kind::sigmoid:
      return sigmoid(a);
    case Kind::affine:
      return scale * a + shift;
    case Kind::add:
      return a + b;
    case Kind::subtract:
      return a - b;
    case Kind::multiply:
      return a * b;
    case Kind::gate:
      return tanh_of(a) * sigmoid(b);
    case Kind::sigmoid_gate:
      return a * sigmoid(b);
    default:
      return a;
  }
}

// A step on the pixels (row, first + i), i < count, with all operands read where they lie.
template <class T>
__device__ DEEPGEN_NOINLINE void elementwise(Tile<T> tile, const Step& step, int row, int first,
                                             int count) {
  const Plane<T> dst = tile.plane(step.dst), a = tile.plane(step.a);
  const Plane<T> b = step.b >= 0 ? tile.plane(step.b) : Plane<T>{};
  const bool outside = row + step.dy < 0;
  const int channels = step.channels, samples = tile.samples;
  for (int i = threadIdx.x; i < count * samples * channels; i += threads) {
    const int c = i % channels, s = i / channels % samples, column = first + i / channels / samples;
    T value = 0;
    if (!outside) {
      const T left =
          a.at(row + step.dy, column + step.dx)[s * a.sample_stride + step.a_channel + c];
      T right = 0, scale = 0, shift = 0;
      if (step.b >= 0) right = b.at(row, column)[s * b.sample_stride + step.b_channel + c];
      if (step.kind == static_cast<int32_t>(Kind::affine)) {
        scale = tile.weights[step.weights + c];
        shift = tile.weights[step.weights + channels + c];
      }
      value = apply(step.kind, left, right, scale, shift);
    }
    dst.at(row, column)[s * dst.sample_stride + step.dst_channel + c] = value;
  }
}

// ---------------------------------------------------------------- draws

// draw_category by a warp, the level in lane 0: the same sums in the same order, a lane a block of
// 16 levels. `sums` are kept_blocks values of this warp.
template <class T>
__device__ int64_t draw_category_by_warp(const T* logits, int n_levels, T temperature, T uniform,
                                         T* sums) {
  const int lane = threadIdx.x % 32;
  const int blocks = (n_levels + levels_per_block - 1) / levels_per_block;
  if (blocks > kept_blocks) {
    return lane == 0 ? draw_category(logits, 1, n_levels, temperature, uniform) : 0;
  }
  T top = T(-INFINITY);
  for (int l = lane; l < n_levels; l += 32) top = logits[l] > top ? logits[l] : top;
  for (int distance = 16; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(0xffffffff, top, distance);
    top = other > top ? other : top;
  }
  const T inverse_temperature = T(1) / temperature;
  for (int block = lane; block < blocks; block += 32) {
    T weights[levels_per_block];
    block_weights(logits, 1, n_levels, block, top, inverse_temperature, weights);
    sums[block] = block_sum(weights);
  }
  __syncwarp();
  int64_t level = 0;
  if (lane == 0) {
    T total = 0;
    for (int block = 0; block < blocks; ++block) total += sums[block];
    level = level_above(logits, 1, n_levels, top, inverse_temperature, uniform * total, sums, 1);
  }
  __syncwarp();
  return level;
}

// Draws at (y, x), a warp a sample (of a Gaussian a lane a channel), and shows the network what was
// drawn. The parameters of sample s are at parameters + s * sample_stride; `mirror`, if any, is the
// image's current pixel.
template <class T>
__device__ DEEPGEN_NOINLINE void draw(Tile<T> tile, const Step& step, int y, int x,
                                      const T* parameters, int sample_stride, T* mirror,
                                      T* scratch) {
  const Problem& p = *tile.problem;
  const Plane<T> image = tile.plane(step.dst);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto kind = static_cast<Kind>(step.kind);
  const int begin = kind == Kind::categorical ? step.image_channel : 0;
  const int end = kind == Kind::categorical ? begin + 1 : p.channels;
  const int64_t area = static_cast<int64_t>(p.height) * p.width;
  const T temperature = static_cast<T>(p.temperature);
  for (int s = warp; s < tile.samples; s += warps) {
    const int64_t at =
        ((tile.first + s) * p.channels + begin) * area + static_cast<int64_t>(y) * p.width + x;
    const bool known = p.known && p.known[at];
    const T* const from = parameters + s * sample_stride;
    const T* const uniforms = static_cast<const T*>(p.uniforms) + at;
    T* const pixel = image.at(y, x) + s * image.sample_stride;
    if (kind == Kind::gaussian) {
      T* const values = static_cast<T*>(p.values) + at;
      for (int c = lane; c < p.channels; c += 32) {
        const T value =
            known ? values[c * area]
                  : gaussian_draw(from[c], from[p.channels + c], temperature, uniforms[c * area]);
        values[c * area] = value;
        pixel[c] = value;
        if (mirror) mirror[s * image.sample_stride + c] = value;
      }
      continue;
    }
    if (!known) {
      if (kind == Kind::categorical) {
        const int64_t level = draw_category_by_warp(from, p.n_levels, temperature, *uniforms,
                                                    scratch + warp * kept_blocks);
        if (lane == 0) p.levels[at] = level;
      } else if (lane == 0) {
        draw_from_logistic_mixture(from, 1, MixtureLayout{p.channels, step.mixtures}, p.n_levels,
                                   temperature, uniforms, area, p.levels + at, area);
      }
    }
    if (lane == 0) {
      for (int c = begin; c < end; ++c) {
        const T level = static_cast<T>(p.levels[at + (c - begin) * area]);
        const T value = 2 * level / static_cast<T>(p.n_levels - 1) - 1;
        pixel[c] = value;
        if (mirror) mirror[s * image.sample_stride + c] = value;
      }
    }
  }
}

}  // namespace deepgen::cuda::sampling
