// categorical_draw on the CPU.
//
// A draw reads its n_levels logits, 1 KiB at 256 levels, and the exponentials of them bound it: one
// pass for the largest, one for the sums of blocks, and 16 weights more for the level itself. The
// SIMD lanes are 32 neighbouring positions where those lie side by side (a network's output): a
// tile of 256 x 32 logits then comes from memory once, two cache lines at a time, and stays in L2.
// Elsewhere (channels-last, single pixels) the lanes are the 16 weights of a block. Both add in the
// order of categorical_draw.h.
#include "../categorical_draw.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <type_traits>

#include "simd.h"

namespace deepgen::cpu {
namespace {

template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

constexpr int lanes = 32;
constexpr int64_t grain_logits = 16384;

// `lanes` draws at positions side by side.
template <class S, class T>
DEEPGEN_INLINE void draw_lanes(const S* logits, int64_t stride, int64_t n_levels, T temperature,
                               const T* uniforms, int64_t* levels) {
  alignas(64) T top[lanes], total[lanes], unkept[lanes], weights[levels_per_block][lanes];
  alignas(64) T sums[kept_blocks][lanes];
  const T inverse_temperature = T(1) / temperature;
  for (int i = 0; i < lanes; ++i) top[i] = T(-INFINITY);
  for (int64_t level = 0; level < n_levels; ++level) {
    const S* from = logits + level * stride;
    // Each level is another page: no hardware prefetcher sees the next tile come.
    for (int i = 0; i < lanes; i += 64 / sizeof(S)) __builtin_prefetch(from + lanes + i);
#pragma omp simd
    for (int i = 0; i < lanes; ++i) {
      const T logit = static_cast<T>(from[i]);
      top[i] = logit > top[i] ? logit : top[i];
    }
  }
  for (int i = 0; i < lanes; ++i) total[i] = 0;
  for (int64_t begin = 0, block = 0; begin < n_levels; begin += levels_per_block, ++block) {
    for (int64_t w = 0; w < levels_per_block; ++w) {
      if (begin + w >= n_levels) {
        for (int i = 0; i < lanes; ++i) weights[w][i] = 0;
        continue;
      }
      const S* from = logits + (begin + w) * stride;
#pragma omp simd
      for (int i = 0; i < lanes; ++i) {
        weights[w][i] = decay_of((static_cast<T>(from[i]) - top[i]) * inverse_temperature);
      }
    }
    for (int half = levels_per_block / 2; half > 0; half /= 2) {
      for (int w = 0; w < half; ++w) {
#pragma omp simd
        for (int i = 0; i < lanes; ++i) weights[w][i] += weights[w + half][i];
      }
    }
    T* kept = block < kept_blocks ? sums[block] : unkept;
#pragma omp simd
    for (int i = 0; i < lanes; ++i) {
      kept[i] = weights[0][i];
      total[i] += weights[0][i];
    }
  }
  for (int i = 0; i < lanes; ++i) {
    levels[i] = level_above(logits + i, stride, n_levels, top[i], inverse_temperature,
                            uniforms[i] * total[i], sums[0] + i, lanes);
  }
}

// The draws of one image's channel at positions [begin, end).
template <class S, class T>
DEEPGEN_INLINE void draw_positions(const S* logits, int64_t level_stride, int64_t position_stride,
                                   int64_t n_levels, T temperature, const T* uniforms,
                                   int64_t begin, int64_t end, int64_t* levels) {
  int64_t i = begin;
  if (position_stride == 1) {
    for (; i + lanes <= end; i += lanes) {
      draw_lanes<S, T>(logits + i, level_stride, n_levels, temperature, uniforms + i, levels + i);
    }
  }
  for (; i < end; ++i) {
    const S* from = logits + i * position_stride;
    // With the stride known, blocks of weights are vectors.
    levels[i] = level_stride == 1
                    ? draw_category<T>(from, 1, n_levels, temperature, uniforms[i])
                    : draw_category<T>(from, level_stride, n_levels, temperature, uniforms[i]);
  }
}

#define DEEPGEN_DRAW(S, T)                                                                       \
  DEEPGEN_SIMD void draw(const S* logits, int64_t level_stride, int64_t position_stride,         \
                         int64_t n_levels, T temperature, const T* uniforms, int64_t begin,      \
                         int64_t end, int64_t* levels) {                                         \
    draw_positions<S, T>(logits, level_stride, position_stride, n_levels, temperature, uniforms, \
                         begin, end, levels);                                                    \
  }
DEEPGEN_DRAW(float, float)
DEEPGEN_DRAW(double, double)
DEEPGEN_DRAW(c10::BFloat16, float)
DEEPGEN_DRAW(c10::Half, float)
#undef DEEPGEN_DRAW

template <class S>
void draw_all(const CategoricalDraw& p) {
  using T = Compute<S>;
  const int64_t tiles = (p.positions + lanes - 1) / lanes;
  const int64_t grain = std::max<int64_t>(1, grain_logits / (lanes * p.n_levels));
  at::parallel_for(0, p.batch * p.channels * tiles, grain, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const int64_t image = t / tiles, begin = t % tiles * lanes;
      const auto* logits = static_cast<const S*>(p.logits.data) +
                           image / p.channels * p.logits.batch +
                           image % p.channels * p.n_levels * p.logits.channel;
      draw(logits, p.logits.channel, p.logits.position, p.n_levels, static_cast<T>(p.temperature),
           static_cast<const T*>(p.uniforms) + image * p.positions, begin,
           std::min(begin + lanes, p.positions), p.levels + image * p.positions);
    }
  });
}

}  // namespace

void categorical_draw(const CategoricalDraw& p) {
  switch (p.storage) {
    case Storage::f32:
      return draw_all<float>(p);
    case Storage::f64:
      return draw_all<double>(p);
    case Storage::bf16:
      return draw_all<c10::BFloat16>(p);
    case Storage::f16:
      return draw_all<c10::Half>(p);
  }
}

}  // namespace deepgen::cpu
