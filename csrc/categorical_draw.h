// categorical_draw: level = the smallest l whose cdf(l) of softmax(logits / temperature) exceeds u.
//
// The cumulative sum has two steps: weights are added in blocks of 16, by halves, and the sums of
// blocks one after the other; then only the block that holds the level is summed weight by weight.
// Every kernel adds in this order, whether its SIMD lanes are the weights of a block or positions,
// so all of them draw the same level.
#pragma once

#include "elementary.h"
#include "operand.h"

namespace deepgen {

struct CategoricalDraw {
  Storage storage;
  int64_t n_levels;
  double temperature;
  int64_t batch, channels, positions;

  ImageOperand logits;   // (batch, channels * n_levels, positions)
  const void* uniforms;  // (batch, channels, positions), contiguous, double for f64, else float
  int64_t* levels;       // (batch, channels, positions), contiguous
};

namespace cpu {
void categorical_draw(const CategoricalDraw&);
}  // namespace cpu

namespace cuda {
void categorical_draw(const CategoricalDraw&, void* stream);
}  // namespace cuda

constexpr int levels_per_block = 16;
// Sums of blocks that are kept; those of later blocks (more than 1024 levels) are found again.
constexpr int kept_blocks = 64;

// The weights exp((logit - top) / temperature) of a block; 0 behind the last level.
template <class T, class S>
DEEPGEN_HD void block_weights(const S* logits, int64_t stride, int64_t n_levels, int64_t block,
                              T top, T inverse_temperature, T* weights) {
  const int64_t begin = block * levels_per_block, rest = n_levels - begin;
  const S* from = logits + begin * stride;
  if (rest >= levels_per_block) {
    for (int i = 0; i < levels_per_block; ++i) weights[i] = static_cast<T>(from[i * stride]);
  } else {
    for (int i = 0; i < levels_per_block; ++i) {
      weights[i] = i < rest ? static_cast<T>(from[i * stride]) : T(-INFINITY);
    }
  }
  for (int i = 0; i < levels_per_block; ++i) {
    weights[i] = decay_of((weights[i] - top) * inverse_temperature);
  }
}

// The sum of a block, by halves.
template <class T>
DEEPGEN_HD T block_sum(const T* weights) {
  T halves[8];
  for (int i = 0; i < 8; ++i) halves[i] = weights[i] + weights[i + 8];
  for (int i = 0; i < 4; ++i) halves[i] += halves[i + 4];
  for (int i = 0; i < 2; ++i) halves[i] += halves[i + 2];
  return halves[0] + halves[1];
}

// The largest logit.
template <class T, class S>
DEEPGEN_HD T top_logit(const S* logits, int64_t stride, int64_t n_levels) {
  T tops[levels_per_block];
  for (int i = 0; i < levels_per_block; ++i) tops[i] = T(-INFINITY);
  int64_t begin = 0;
  for (; begin + levels_per_block <= n_levels; begin += levels_per_block) {
    for (int i = 0; i < levels_per_block; ++i) {
      const T logit = static_cast<T>(logits[(begin + i) * stride]);
      tops[i] = logit > tops[i] ? logit : tops[i];
    }
  }
  for (int i = 0; begin + i < n_levels; ++i) {
    const T logit = static_cast<T>(logits[(begin + i) * stride]);
    tops[i] = logit > tops[i] ? logit : tops[i];
  }
  T top = tops[0];
  for (int i = 1; i < levels_per_block; ++i) top = tops[i] > top ? tops[i] : top;
  return top;
}

// The first level with cumulative weight above the threshold; sums[b * sums_stride] are the sums of
// the first blocks. Where rounding leaves none, the last level that has a weight: a level of
// probability zero is never drawn (the last one, if all are NaN).
template <class T, class S>
DEEPGEN_HD int64_t level_above(const S* logits, int64_t stride, int64_t n_levels, T top,
                               T inverse_temperature, T threshold, const T* sums,
                               int64_t sums_stride) {
  const int64_t blocks = (n_levels + levels_per_block - 1) / levels_per_block;
  T weights[levels_per_block];
  T below = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    T sum;
    if (block < kept_blocks) {
      sum = sums[block * sums_stride];
    } else {
      block_weights(logits, stride, n_levels, block, top, inverse_temperature, weights);
      sum = block_sum(weights);
    }
    if (below + sum > threshold) {
      block_weights(logits, stride, n_levels, block, top, inverse_temperature, weights);
      int last = 0;
      for (int i = 0; i < levels_per_block; ++i) {
        below += weights[i];
        if (below > threshold) return block * levels_per_block + i;
        if (weights[i] > T(0)) last = i;
      }
      return block * levels_per_block + last;
    }
    below += sum;
  }
  for (int64_t block = blocks - 1; block >= 0; --block) {
    block_weights(logits, stride, n_levels, block, top, inverse_temperature, weights);
    for (int i = levels_per_block - 1; i >= 0; --i) {
      if (weights[i] > T(0)) return block * levels_per_block + i;
    }
  }
  return n_levels - 1;
}

// One draw from the logits logits[l * stride], l < n_levels, with uniform in [0, 1) and temperature
// > 0. T is float or double; S is what the logits are stored as.
template <class T, class S>
DEEPGEN_HD int64_t draw_category(const S* logits, int64_t stride, int64_t n_levels, T temperature,
                                 T uniform) {
  const T top = top_logit<T>(logits, stride, n_levels);
  const T inverse_temperature = T(1) / temperature;
  const int64_t blocks = (n_levels + levels_per_block - 1) / levels_per_block;
  T sums[kept_blocks], weights[levels_per_block];
  T total = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    block_weights(logits, stride, n_levels, block, top, inverse_temperature, weights);
    const T sum = block_sum(weights);
    if (block < kept_blocks) sums[block] = sum;
    total += sum;
  }
  return level_above(logits, stride, n_levels, top, inverse_temperature, uniform * total, sums, 1);
}

}  // namespace deepgen
