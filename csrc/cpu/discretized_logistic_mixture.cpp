// discretized_logistic_mixture on the CPU.
//
// 10 mixtures of 3 channels are 400 bytes a position, and about 150 exponentials and their like:
// arithmetic bounds it, not memory. The SIMD lanes are 32 positions; with positions side by side (a
// network's output) the parameters are read in place, elsewhere gathered into a buffer in L1. For
// each component one loop over the lanes a channel, from the parameters to exponent and ratio
// (../discretized_logistic_mixture.h), and only then the sums over components: two logarithms a
// position instead of one a component and channel. The gradient of a component is written where it
// belongs in the same loop and multiplied by the component's responsibility afterwards, while the
// tile is still in L1 or L2.
#include "../discretized_logistic_mixture.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "logistic_mixture_tile.h"
#include "simd.h"

namespace deepgen::cpu {
namespace {

template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

constexpr int64_t grain_parameters = 16384;

// What one tile of positions needs; rows of `lanes` values.
template <class T>
struct Tile {
  explicit Tile(const MixtureLayout& layout, bool gradient)
      : levels(layout.channels * lanes),
        x(layout.channels * lanes),
        exponents(layout.mixtures * lanes),
        ratios(layout.mixtures * lanes),
        parameters(layout.parameters() * lanes),
        gradients(gradient ? layout.parameters() * lanes : 0) {}

  std::vector<T> levels, x, exponents, ratios, parameters, gradients;
};

#define DEEPGEN_MAP(T)                                                                             \
  DEEPGEN_SIMD void map(const MixtureLayout& layout, int64_t n_levels, const T* parameters,        \
                        int64_t stride, const T* levels, const T* x, T* exponents, T* ratios,      \
                        T* log_likelihood) {                                                       \
    map_tile<false, T>(layout, n_levels, parameters, stride, levels, x, exponents, ratios,         \
                       log_likelihood, nullptr, nullptr, 0);                                       \
  }                                                                                                \
  DEEPGEN_SIMD void map_gradient(const MixtureLayout& layout, int64_t n_levels,                    \
                                 const T* parameters, int64_t stride, const T* levels, const T* x, \
                                 T* exponents, T* ratios, const T* grad_output, T* gradients,      \
                                 int64_t gradient_stride) {                                        \
    map_tile<true, T>(layout, n_levels, parameters, stride, levels, x, exponents, ratios, nullptr, \
                      grad_output, gradients, gradient_stride);                                    \
  }
DEEPGEN_MAP(float)
DEEPGEN_MAP(double)
#undef DEEPGEN_MAP

#define DEEPGEN_DRAW(S, T)                                                                       \
  DEEPGEN_SIMD void draw_pixel(const S* parameters, int64_t stride, const MixtureLayout& layout, \
                               int64_t n_levels, T temperature, const T* uniforms,               \
                               int64_t positions, int64_t* levels) {                             \
    draw_from_logistic_mixture<T>(parameters, stride, layout, n_levels, temperature, uniforms,   \
                                  positions, levels, positions);                                 \
  }
DEEPGEN_DRAW(float, float)
DEEPGEN_DRAW(double, double)
DEEPGEN_DRAW(c10::BFloat16, float)
DEEPGEN_DRAW(c10::Half, float)
#undef DEEPGEN_DRAW

// ---- Tiles: `lanes` positions of the batch one after the other, over the ends of images too.
// Where the last tile has fewer, the rest repeats its first.

struct Lanes {
  Lanes(const ImageOperand& operand, int64_t positions, int64_t first, int64_t end) {
    count = std::min<int64_t>(lanes, end - first);
    for (int i = 0; i < lanes; ++i) {
      const int64_t at = i < count ? first + i : first;
      sample[i] = at / positions;
      position[i] = at % positions;
      offset[i] = sample[i] * operand.batch + position[i] * operand.position;
    }
    dense = count == lanes && sample[0] == sample[lanes - 1] && operand.position == 1;
  }

  int64_t count, sample[lanes], position[lanes], offset[lanes];
  bool dense;
};

template <class S, class T>
const T* read_parameters(const LogisticMixture& p, const Lanes& at, T* buffer, int64_t* stride) {
  const auto* data = static_cast<const S*>(p.parameters.data);
  if constexpr (std::is_same_v<S, T>) {
    if (at.dense) {
      *stride = p.parameters.channel;
      // Each row is another page: no hardware prefetcher sees the next tile come.
      for (int64_t row = 0; row < p.layout.parameters(); ++row) {
        const S* next = data + at.offset[0] + row * *stride + lanes;
        for (int i = 0; i < lanes; i += 64 / sizeof(S)) __builtin_prefetch(next + i);
      }
      return data + at.offset[0];
    }
  }
  *stride = lanes;
  for (int64_t row = 0; row < p.layout.parameters(); ++row) {
    const S* from = data + row * p.parameters.channel;
    for (int i = 0; i < lanes; ++i) {
      buffer[row * lanes + i] = static_cast<T>(from[at.offset[i]]);
    }
  }
  return buffer;
}

// The levels, clamped to what exists, and x.
template <class T>
void read_levels(const LogisticMixture& p, const Lanes& at, T* levels, T* x) {
  const int64_t last = p.n_levels - 1;
  for (int64_t c = 0; c < p.layout.channels; ++c) {
    for (int i = 0; i < lanes; ++i) {
      const int64_t index = (at.sample[i] * p.layout.channels + c) * p.positions + at.position[i];
      const int64_t level = p.levels_are_bytes ? static_cast<const uint8_t*>(p.levels)[index]
                                               : static_cast<const int64_t*>(p.levels)[index];
      levels[c * lanes + i] = static_cast<T>(std::clamp<int64_t>(level, 0, last));
      x[c * lanes + i] = T(2) * levels[c * lanes + i] / static_cast<T>(last) - T(1);
    }
  }
}

// Calls run(first position of a tile, end of all positions, the thread's buffers).
template <class T, class Run>
void for_each_tile(const LogisticMixture& p, bool gradient, Run run) {
  const int64_t end = p.batch * p.positions, tiles = (end + lanes - 1) / lanes;
  const int64_t grain = std::max<int64_t>(1, grain_parameters / (lanes * p.layout.parameters()));
  at::parallel_for(0, tiles, grain, [&](int64_t begin_tile, int64_t end_tile) {
    Tile<T> tile(p.layout, gradient);
    for (int64_t t = begin_tile; t < end_tile; ++t) run(t * lanes, end, tile);
  });
}

template <class S>
void forward(const LogisticMixture& p) {
  using T = Compute<S>;
  for_each_tile<T>(p, false, [&](int64_t first, int64_t end, Tile<T>& tile) {
    const Lanes at(p.parameters, p.positions, first, end);
    int64_t stride;
    const T* parameters = read_parameters<S, T>(p, at, tile.parameters.data(), &stride);
    read_levels(p, at, tile.levels.data(), tile.x.data());
    T log_likelihood[lanes];
    map(p.layout, p.n_levels, parameters, stride, tile.levels.data(), tile.x.data(),
        tile.exponents.data(), tile.ratios.data(), log_likelihood);
    std::copy_n(log_likelihood, at.count, static_cast<T*>(p.log_likelihood) + first);
  });
}

template <class S>
void backward(const LogisticMixtureBackward& problem) {
  using T = Compute<S>;
  const LogisticMixture& p = problem.forward;
  for_each_tile<T>(p, true, [&](int64_t first, int64_t end, Tile<T>& tile) {
    const Lanes at(p.parameters, p.positions, first, end);
    const Lanes to(problem.grad_parameters, p.positions, first, end);
    int64_t stride, gradient_stride = lanes;
    const T* parameters = read_parameters<S, T>(p, at, tile.parameters.data(), &stride);
    read_levels(p, at, tile.levels.data(), tile.x.data());
    T grad_output[lanes] = {};
    std::copy_n(static_cast<const T*>(problem.grad_output) + first, at.count, grad_output);
    auto* target = static_cast<S*>(problem.grad_parameters.data);
    T* gradients = tile.gradients.data();
    if constexpr (std::is_same_v<S, T>) {
      if (to.dense) {
        gradients = target + to.offset[0];
        gradient_stride = problem.grad_parameters.channel;
      }
    }
    map_gradient(p.layout, p.n_levels, parameters, stride, tile.levels.data(), tile.x.data(),
                 tile.exponents.data(), tile.ratios.data(), grad_output, gradients,
                 gradient_stride);
    if (gradients != tile.gradients.data()) return;
    for (int64_t row = 0; row < p.layout.parameters(); ++row) {
      S* out = target + row * problem.grad_parameters.channel;
      for (int i = 0; i < to.count; ++i)
        out[to.offset[i]] = static_cast<S>(gradients[row * lanes + i]);
    }
  });
}

template <class S>
void draw(const LogisticMixtureDraw& p) {
  using T = Compute<S>;
  const int64_t count = p.batch * p.positions;
  at::parallel_for(0, count, 256, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t sample = i / p.positions, position = i % p.positions;
      const int64_t pixel = sample * p.layout.channels * p.positions + position;
      draw_pixel(static_cast<const S*>(p.parameters.data) + sample * p.parameters.batch +
                     position * p.parameters.position,
                 p.parameters.channel, p.layout, p.n_levels, static_cast<T>(p.temperature),
                 static_cast<const T*>(p.uniforms) + pixel, p.positions, p.levels + pixel);
    }
  });
}

}  // namespace

#define DEEPGEN_DISPATCH(kernel, p, storage) \
  switch (storage) {                         \
    case Storage::f32:                       \
      return kernel<float>(p);               \
    case Storage::f64:                       \
      return kernel<double>(p);              \
    case Storage::bf16:                      \
      return kernel<c10::BFloat16>(p);       \
    case Storage::f16:                       \
      return kernel<c10::Half>(p);           \
  }

void discretized_logistic_mixture(const LogisticMixture& p) {
  DEEPGEN_DISPATCH(forward, p, p.storage)
}

void discretized_logistic_mixture_backward(const LogisticMixtureBackward& p) {
  DEEPGEN_DISPATCH(backward, p, p.forward.storage)
}

void discretized_logistic_mixture_draw(const LogisticMixtureDraw& p) {
  DEEPGEN_DISPATCH(draw, p, p.storage)
}

}  // namespace deepgen::cpu
