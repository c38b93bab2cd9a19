// autoregressive_inverse: solves y(x) = z for x, dimension after dimension, where y_i is a
// monotonic element map of x_i whose parameters a masked MLP computes of x_0 ... x_{i-1}.
//
// Hidden units are sorted by degree: a unit of degree d sees x_0 ... x_{d-1} and the units of
// degree
// <= d of the layer below; the parameters of dimension i see the units of degree <= i. So when x_i
// becomes known, exactly the units of degree i + 1 can be computed, in every layer, once; each
// visible weight is used once, and the work is that of one density pass without its masked half.
//
// The adjoint finds v with J^T v = g, J = dy/dx lower triangular, the same way backwards, together
// with the cotangents of all pre-activations: with them the gradients of weights and biases are one
// product a layer. See Differentiable in autoregressive_inverse.cpp.
#pragma once

#include "affine_coupling.h"
#include "rational_quadratic_spline_gradient.h"

namespace deepgen {

enum class Activation : int { relu, elu, tanh };
enum class ElementMap : int { affine, spline, softclip_spline };

constexpr int most_masked_layers = 32;
constexpr int masked_samples = 8;  // of a CUDA block

// Layer l maps the values of layer l - 1 (of x, for l = 0) to its own. The last one, l = hidden,
// gives the parameters of the element maps, dimension-major. Without residual: values = act(W v +
// b). With: layer 0 opens a stream s = W x + b; layers 2k - 1 and 2k form a block s += W act(W
// act(s) + b) + b; the last layer reads s itself (nflows' MADE).
struct MaskedLayer {
  const void* weight = nullptr;  // (units, units of the layer below), rows contiguous
  int64_t weight_stride = 0;
  const void* bias = nullptr;
  int64_t bias_stride = 0;  // from sample to sample; 0 where all share it
  int64_t units = 0;
};

struct MaskedNetwork {
  Storage storage;
  ElementMap element;
  ScaleMap scale_map;
  double clamp;
  int bins;
  double bound;
  Activation activation;
  bool residual;

  int64_t batch, dimensions;
  int parameters;  // of one dimension
  int hidden;      // layers
  // (hidden, dimensions + 1): first[l][d] is the number of units of layer l of degree < d.
  const int32_t* first;
  MaskedLayer layer[most_masked_layers];

  DEEPGEN_HD int64_t first_unit(int l, int64_t degree) const {
    return first[l * (dimensions + 1) + degree];
  }
  // How many values of layer l - 1 a unit of layer l and of this degree sees.
  DEEPGEN_HD int64_t seen(int l, int64_t degree) const {
    return l == 0 ? degree : first_unit(l - 1, degree + 1);
  }
  // How many values of layer l - 1 are known when x_0 ... x_{i-1} are.
  DEEPGEN_HD int64_t known(int l, int64_t i) const { return l == 0 ? i : first_unit(l - 1, i); }
  // Rows of layer l of degrees below `degree`, the last layer's included.
  DEEPGEN_HD int64_t rows_below(int l, int64_t degree) const {
    return l == hidden ? degree * parameters : first_unit(l, degree);
  }
  // Whether layer l ends a residual block or opens the stream; whether what it passes on is raw.
  DEEPGEN_HD bool on_stream(int l) const { return residual && l % 2 == 0; }
  DEEPGEN_HD bool passes_raw(int l) const { return residual && l == hidden - 1; }
};

// Matrices with one row a sample are contiguous.
struct AutoregressiveInverse {
  MaskedNetwork net;
  const void* z;
  void* x;
  void* log_det;
  // CUDA only: room for the activations of every block where shared memory is too small.
  void* scratch = nullptr;
  int64_t scratch_per_block = 0;
};

struct AutoregressiveInverseAdjoint {
  MaskedNetwork net;
  const void *z, *x, *grad_x, *grad_log_det;  // z is the spline's
  void* grad_z;                               // v
  void* values[most_masked_layers];      // (batch, units): what layer l passes on, for l < hidden
  void* cotangents[most_masked_layers];  // (batch, units): of the pre-activations of layer l <=
                                         // hidden
  void* scratch = nullptr;
  int64_t scratch_per_block = 0;
};

namespace cpu {
void autoregressive_inverse(const AutoregressiveInverse&);
void autoregressive_inverse_adjoint(const AutoregressiveInverseAdjoint&);
}  // namespace cpu

namespace cuda {
void autoregressive_inverse(const AutoregressiveInverse&, void* stream);
void autoregressive_inverse_adjoint(const AutoregressiveInverseAdjoint&, void* stream);
// Numbers of scratch that every block of masked_samples samples needs; 0 where shared memory does.
int64_t autoregressive_inverse_scratch(const MaskedNetwork&, bool adjoint);
}  // namespace cuda

template <class T>
DEEPGEN_HD SplineConstants<T> constants_of(const MaskedNetwork& net) {
  const double least = net.element == ElementMap::softclip_spline ? 0.0 : 1e-3;
  return spline_constants<T>(net.bins, SplineInterval::with_tails(net.bound), least, least, least);
}

// softclip_spline, zuko's way to the bins of a spline: widths and heights go through
// raw / (1 + |raw| / k) with k = clamp / 2 before the softmax, and a slope is e^v, v the same of
// its raw number with k = clamp. That becomes what "spline" takes without floors, in place: of a
// slope the number whose softplus it is.
template <class T, class C>
DEEPGEN_HD T softclip_of(T raw, C bound) {
  return raw / (T(1) + magnitude_of(raw) / T(bound));
}

// The slope of softclip_of, of its result.
template <class T, class C>
DEEPGEN_HD T softclip_slope_of(T result, C bound) {
  const T part = T(1) - magnitude_of(result) / T(bound);
  return part * part;
}

// ln(e^y - 1), y > 0: the number whose softplus is y.
template <class T, class C>
DEEPGEN_HD T softplus_inverse_of(T y) {
  const T one = 1;
  // 1 - e^-y, by its series where it would cancel.
  const T series =
      y * (one - y * T(C(1) / 2) *
                     (one - y * T(C(1) / 3) * (one - y * T(C(1) / 4) * (one - y * T(C(1) / 5)))));
  return y + log_of(select(y < T(C(0.03)), series, one - decay_of(y)));
}

template <class T, class C, class Values>
DEEPGEN_HD void soften_spline(C clamp, int64_t bins, const Values& parameters) {
  for (int64_t k = 0; k < 2 * bins; ++k)
    parameters.set(k, softclip_of<T>(parameters(k), clamp / 2));
  for (int64_t k = 2 * bins; k < 3 * bins - 1; ++k) {
    const T v = softclip_of<T>(parameters(k), clamp), e = decay_of(v);
    parameters.set(k, softplus_inverse_of<T, C>(select(v > T(0), T(1) / e, e)));
  }
}

// From the gradients of softened parameters to those of the raw ones.
template <class T, class C, class Values, class Gradients>
DEEPGEN_HD void soften_gradients(C clamp, int64_t bins, const Values& softened,
                                 const Gradients& gradients) {
  for (int64_t k = 0; k < 2 * bins; ++k)
    gradients.set(k, gradients(k) * softclip_slope_of<T>(softened(k), clamp / 2));
  for (int64_t k = 2 * bins; k < 3 * bins - 1; ++k) {
    const T d = softened(k), y = softplus_of(d);
    const T slope = y / sigmoid_of(d) * softclip_slope_of<T>(log_of(y), clamp);
    gradients.set(k, gradients(k) * slope);
  }
}

template <Activation A, class T>
DEEPGEN_HD T activation_of(T v) {
  if constexpr (A == Activation::relu) {
    return v < T(0) ? T(0) : v;  // NaN stays
  } else if constexpr (A == Activation::elu) {
    const T decayed = decay_of(v) - T(1);
    return v < T(0) ? decayed : v;
  } else {
    return tanh_of(v);
  }
}

// The slope of the activation, of its result.
template <Activation A, class T>
DEEPGEN_HD T activation_slope_of(T result) {
  if constexpr (A == Activation::relu) {
    return result > T(0) ? T(1) : T(0);
  } else if constexpr (A == Activation::elu) {
    return result < T(0) ? result + T(1) : T(1);
  } else {
    return T(1) - result * result;
  }
}

}  // namespace deepgen
