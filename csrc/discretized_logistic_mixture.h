// discretized_logistic_mixture: the log-likelihood of pixels' levels under a mixture of K logistics
// discretised to n_levels bins, its gradient, and draws.
//
// Channels of the parameters: [logits K][means C*K][log scales C*K][coefficients C(C-1)/2*K], the
// coefficients in the order (1<-0), (2<-0), (2<-1). With x_c = 2 level_c / (n_levels - 1) - 1, the
// half width d = 1 / (n_levels - 1) and
//   m_c = mean_c + sum over j < c of tanh(coefficient_cj) x_j      r_c = exp(-max(log scale_c, -7))
//   b = (x_c + d - m_c) r_c,  +inf at the last level     a = (x_c - d - m_c) r_c,  -inf at level 0
// the bin has P = sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^-w), w = b - a = 2 d r_c,
// exactly. The last factor is 2 t / (1 + t) with t = tanh(w / 2). Kept as P = e^exponent * ratio,
//   exponent = min(b, 0) + min(-a, 0) + log r_c      ratio = 2 t / ((1 + t) r_c (1 + e^-|a|) (1 +
//   e^-|b|))
// (without log r_c and t at the two ends), nothing cancels and nothing underflows, and a sum over
// components needs no logarithm of its own. The gradient of log P:
//   by the mean: r_c (sigmoid(a) - sigmoid(-b))
//   by log scale: a sigmoid(a) - b sigmoid(-b) - w / (e^w - 1), the last term for inner levels
#pragma once

#include "elementary.h"
#include "operand.h"

namespace deepgen {

// Where the parameters of component k lie: in channel index + k.
struct MixtureLayout {
  int64_t channels, mixtures;

  DEEPGEN_HD int64_t mean(int64_t c) const { return (1 + c) * mixtures; }
  DEEPGEN_HD int64_t log_scale(int64_t c) const { return (1 + channels + c) * mixtures; }
  DEEPGEN_HD int64_t coefficient(int64_t c, int64_t j) const {
    return (1 + 2 * channels + c * (c - 1) / 2 + j) * mixtures;
  }
  DEEPGEN_HD int64_t parameters() const {
    return (1 + 2 * channels + channels * (channels - 1) / 2) * mixtures;
  }
};

struct LogisticMixture {
  Storage storage;
  MixtureLayout layout;
  int64_t n_levels, batch, positions;

  ImageOperand parameters;  // (batch, layout.parameters(), positions)
  const void* levels;       // (batch, layout.channels, positions), contiguous, int64 or bytes
  bool levels_are_bytes;
  void* log_likelihood;  // (batch, positions), contiguous, double for f64, else float
};

struct LogisticMixtureBackward {
  LogisticMixture forward;  // without log_likelihood
  const void* grad_output;  // (batch, positions), contiguous, of log_likelihood's type
  ImageOperand grad_parameters;
};

struct LogisticMixtureDraw {
  Storage storage;
  MixtureLayout layout;
  int64_t n_levels, batch, positions;
  double temperature;

  ImageOperand parameters;
  const void*
      uniforms;     // (batch, layout.channels, positions), contiguous, double for f64, else float
  int64_t* levels;  // likewise
};

namespace cpu {
void discretized_logistic_mixture(const LogisticMixture&);
void discretized_logistic_mixture_backward(const LogisticMixtureBackward&);
void discretized_logistic_mixture_draw(const LogisticMixtureDraw&);
}  // namespace cpu

namespace cuda {
void discretized_logistic_mixture(const LogisticMixture&, void* stream);
void discretized_logistic_mixture_backward(const LogisticMixtureBackward&, void* stream);
void discretized_logistic_mixture_draw(const LogisticMixtureDraw&, void* stream);
}  // namespace cuda

// ---- One channel under one component. Functions of plain scalars, for the vectoriser's sake.

template <class T>
constexpr T least_log_scale = T(-7);

// The ratio of a channel is at least 7e-6, at 65536 levels: after so many channels its logarithm
// goes into the exponent.
constexpr int channels_per_logarithm = 4;

// Stands for infinity: times sigmoid(-far) it is 0, not NaN.
template <class T>
constexpr T far_away = T(1e30);

// r. Above a log scale of 60 it stays what it is there: the edges a and b are 0 all the same, and r
// itself must not underflow.
template <class T>
DEEPGEN_HD T inverse_scale(T log_scale) {
  const T above = log_scale > least_log_scale<T> ? log_scale : least_log_scale<T>;
  return exp_of(above < T(60) ? -above : T(-60));
}

template <class T>
DEEPGEN_HD T upper_edge(T level, T last, T centre, T half_width) {
  return level == last ? far_away<T> : centre + half_width;
}

template <class T>
DEEPGEN_HD T lower_edge(T level, T centre, T half_width) {
  return level == T(0) ? -far_away<T> : centre - half_width;
}

template <class T>
DEEPGEN_HD T bin_exponent(T a, T b, T log_scale, bool inner) {
  const T clamped = log_scale > least_log_scale<T> ? log_scale : least_log_scale<T>;
  return (b < T(0) ? b : T(0)) + (a > T(0) ? -a : T(0)) - (inner ? clamped : T(0));
}

// With t = tanh(half_width), half_width = w / 2.
template <class T>
DEEPGEN_HD T bin_ratio(T a, T b, T r, T t, bool inner) {
  const T tails = (T(1) + decay_of(a)) * (T(1) + decay_of(b));
  return (inner ? t + t : T(1)) / (tails * (inner ? (T(1) + t) * r : T(1)));
}

template <class T>
DEEPGEN_HD T sigmoid_of(T x) {
  const T e = decay_of(x);
  return (x < T(0) ? e : T(1)) / (T(1) + e);
}

template <class T>
DEEPGEN_HD T gradient_by_mean(T a, T b, T r) {
  return r * (sigmoid_of(a) - sigmoid_of(-b));
}

template <class T>
DEEPGEN_HD T gradient_by_log_scale(T a, T b, T half_width, T t, T log_scale, bool inner) {
  // w / (e^w - 1)
  const T narrowing = inner ? half_width * (T(1) - t) / t : T(0);
  const T gradient = a * sigmoid_of(a) - b * sigmoid_of(-b) - narrowing;
  return log_scale < least_log_scale<T> ? T(0) : gradient;
}

// ---- Draws.

// The smallest and largest probability that a draw uses: half a step of torch.rand from the ends.
DEEPGEN_HD float least_uniform(float) {
  return 2.98023224e-8f;
}
DEEPGEN_HD double least_uniform(double) {
  return 5.5511151231257827e-17;
}
DEEPGEN_HD float largest_uniform(float) {
  return 0.99999994f;
}
DEEPGEN_HD double largest_uniform(double) {
  return 0.99999999999999989;
}

// One pixel drawn from the parameters parameters[i * stride], with uniforms[c * uniform_stride] in
// [0, 1) and temperature > 0, into levels[c * level_stride], c < channels. The first uniform
// chooses the component by the cumulative softmax of logits / temperature; what is left of it,
// again uniform, draws channel 0. Every other channel has a uniform of its own and sees the levels
// already drawn. T is float or double; S is what the parameters are stored as; Level any arithmetic
// type.
template <class T, class S, class Level>
DEEPGEN_HD void draw_from_logistic_mixture(const S* parameters, int64_t stride,
                                           const MixtureLayout& layout, int64_t n_levels,
                                           T temperature, const T* uniforms, int64_t uniform_stride,
                                           Level* levels, int64_t level_stride) {
  const int64_t mixtures = layout.mixtures;
  const T inverse_temperature = T(1) / temperature;
  T top = static_cast<T>(parameters[0]);
  for (int64_t k = 1; k < mixtures; ++k) {
    const T logit = static_cast<T>(parameters[k * stride]);
    top = logit > top ? logit : top;
  }
  T total = 0;
  for (int64_t k = 0; k < mixtures; ++k) {
    total += decay_of((static_cast<T>(parameters[k * stride]) - top) * inverse_temperature);
  }
  const T threshold = uniforms[0] * total;
  // The last component with a weight, if rounding leaves none above the threshold.
  int64_t component = 0;
  T below = 0, rest = 0;
  for (int64_t k = 0; k < mixtures; ++k) {
    const T weight = decay_of((static_cast<T>(parameters[k * stride]) - top) * inverse_temperature);
    if (weight > T(0)) {
      component = k;
      rest = (threshold - below) / weight;
    }
    below += weight;
    if (below > threshold) break;
  }

  const T last = static_cast<T>(n_levels - 1), step = T(2) / last;
  for (int64_t c = 0; c < layout.channels; ++c) {
    T mean = static_cast<T>(parameters[(layout.mean(c) + component) * stride]);
    for (int64_t j = 0; j < c; ++j) {
      const T coefficient =
          static_cast<T>(parameters[(layout.coefficient(c, j) + component) * stride]);
      mean += tanh_of(coefficient) * (static_cast<T>(levels[j * level_stride]) * step - T(1));
    }
    T log_scale = static_cast<T>(parameters[(layout.log_scale(c) + component) * stride]);
    log_scale = log_scale > least_log_scale<T> ? log_scale : least_log_scale<T>;
    T u = c == 0 ? rest : uniforms[c * uniform_stride];
    u = u > least_uniform(u) ? u : least_uniform(u);  // and NaN
    u = u < largest_uniform(u) ? u : largest_uniform(u);
    const T logit = log_of(u) - log_of(T(1) - u);
    const T x = mean + exp_of(log_scale) * temperature * logit;
    T level = (x + T(1)) / step + T(0.5);
    level = level > T(0) ? level : T(0);  // and NaN
    level = level < last ? level : last;
    levels[c * level_stride] = static_cast<Level>(static_cast<int64_t>(level));
  }
}

}  // namespace deepgen
