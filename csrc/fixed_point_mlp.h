// fixed_point_mlp: x + g(x) = y for an MLP g, the whole iteration in one kernel.
//
// What fixed_point_step.h says of a step holds here; g(x) = W_n act(... act(W_1 x + b_1)) + b_n is
// computed in between, without leaving the cache.
#pragma once

#include "autoregressive_inverse.h"
#include "fixed_point_step.h"

namespace deepgen {

constexpr int most_mlp_layers = 16;
constexpr int fixed_point_samples = 8;  // of a CUDA block

// Those of the networks in nn/lipschitz_activations.py, and silu, with a parameter a layer, beta:
// elu(v) = beta (e^v - 1) below 0; lipswish(v) = v sigmoid(beta v) / 1.1 (R. Chen et al. 2019); sin
// of pi v, over pi; softplus(v) = ln(1 + e^(beta v)) / beta, v itself where beta v > 20, as torch
// has it; leaky_relu(v) = beta v below 0; silu(v) = v sigmoid(v).
enum class MlpActivation : int {
  relu,
  elu,
  tanh,
  lipswish,
  silu,
  sin,
  softplus,
  leaky_relu,
  sigmoid
};
constexpr double softplus_threshold = 20;

struct MlpLayer {
  const void* weight = nullptr;  // (units, units of the layer below), rows contiguous
  int64_t weight_stride = 0;
  const void* bias = nullptr;
  int64_t units = 0;
};

struct FixedPointMlp {
  Storage storage;
  MlpActivation activation;
  int64_t batch, features;
  int layers;  // the last one, without an activation, included
  MlpLayer layer[most_mlp_layers];
  const void* betas;  // of each hidden layer
  double lipschitz, rounding;
  int max_iterations, memory;
  const void *y, *x0;       // (batch, features)
  const double* tolerance;  // (batch)
  void* x;
  double* record;  // (batch, iteration::numbers)
  int32_t* state;  // (batch, iteration::words)
  // CUDA only: room for the blocks' tiles where shared memory is too small.
  void* scratch = nullptr;
  int64_t scratch_per_block = 0;

  DEEPGEN_HD int64_t inputs(int l) const { return l == 0 ? features : layer[l - 1].units; }
  DEEPGEN_HD int64_t widest() const {
    int64_t most = features;
    for (int l = 0; l < layers; ++l) most = layer[l].units > most ? layer[l].units : most;
    return most;
  }
  DEEPGEN_HD int slots() const { return memory > 0 ? memory : 1; }
};

namespace cpu {
void fixed_point_mlp(const FixedPointMlp&);
}

namespace cuda {
void fixed_point_mlp(const FixedPointMlp&, void* stream);
// Numbers of scratch that every block needs; 0 where shared memory does.
int64_t fixed_point_mlp_scratch(const FixedPointMlp&);
}  // namespace cuda

// Starts a sample; judge (fixed_point_step.h) goes on from there.
DEEPGEN_HD void start_sample(const FixedPointMlp& p, int64_t sample) {
  double* record = p.record + sample * iteration::numbers;
  int32_t* state = p.state + sample * iteration::words;
  for (int i = 0; i < iteration::words; ++i) state[i] = 0;
  record[iteration::tolerance] = p.tolerance[sample];
  record[iteration::bound] = record[iteration::residual] = HUGE_VAL;
  record[iteration::expansion] = 0;
}

// Which slots were in use depends on when the sample's turn came, and is nobody's business.
DEEPGEN_HD void end_sample(const FixedPointMlp& p, int64_t sample) {
  int32_t* state = p.state + sample * iteration::words;
  state[iteration::valid] = state[iteration::newest] = state[iteration::proposed] = 0;
}

// sigmoid(z), of decay = e^-|z|: without overflow.
template <class T>
DEEPGEN_HD T sigmoid_of(T z, T decay) {
  return (z < T(0) ? decay : T(1)) / (T(1) + decay);
}

// ln(1 + e^z) / beta of decay = e^-|z| and z = beta v.
template <class T>
DEEPGEN_HD T softplus_of(T v, T z, T decay, T beta) {
  const T value = (z < T(0) ? T(0) : v) + log1p_of_unit(decay) / beta;
  return z > T(softplus_threshold) ? v : value;
}

}  // namespace deepgen
