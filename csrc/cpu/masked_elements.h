// What autoregressive_inverse does with tiles of samples, once per instruction set: products,
// activations, element maps.
#pragma once

#include "../autoregressive_inverse.h"
#include "double_elementary.h"
#include "lanes.h"
#include "masked_product.h"

namespace deepgen::cpu {
namespace {

DEEPGEN_SIMD void multiply(const float* w, int64_t stride, int64_t rows, int64_t columns,
                           const float* values, float* sums, int64_t lanes) {
  multiply_lanes<Order::rows, float>(w, stride, rows, columns, values, sums, lanes);
}
DEEPGEN_SIMD void multiply(const double* w, int64_t stride, int64_t rows, int64_t columns,
                           const double* values, double* sums, int64_t lanes) {
  multiply_lanes<Order::rows, double>(w, stride, rows, columns, values, sums, lanes);
}
DEEPGEN_SIMD void multiply_transposed(const float* w, int64_t stride, int64_t rows, int64_t columns,
                                      const float* values, float* sums, int64_t lanes) {
  multiply_lanes<Order::columns, float>(w, stride, rows, columns, values, sums, lanes);
}
DEEPGEN_SIMD void multiply_transposed(const double* w, int64_t stride, int64_t rows,
                                      int64_t columns, const double* values, double* sums,
                                      int64_t lanes) {
  multiply_lanes<Order::columns, double>(w, stride, rows, columns, values, sums, lanes);
}

template <Activation A, class T>
DEEPGEN_INLINE void activate_all(int64_t n, T* __restrict values) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) values[i] = activation_of<A>(values[i]);
}

template <Activation A, class T>
DEEPGEN_INLINE void scale_all(int64_t n, const T* __restrict results, T* __restrict cotangents) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) cotangents[i] *= activation_slope_of<A>(results[i]);
}

#define DEEPGEN_INLINE_CALL __attribute__((always_inline))

template <class F>
DEEPGEN_INLINE void with_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::relu:
      return f(std::integral_constant<Activation, Activation::relu>{});
    case Activation::elu:
      return f(std::integral_constant<Activation, Activation::elu>{});
    case Activation::tanh:
      return f(std::integral_constant<Activation, Activation::tanh>{});
  }
}

template <class F>
DEEPGEN_INLINE void with_scale_map(ScaleMap map, F f) {
  switch (map) {
    case ScaleMap::exp:
      return f(std::integral_constant<ScaleMap, ScaleMap::exp>{});
    case ScaleMap::tanh:
      return f(std::integral_constant<ScaleMap, ScaleMap::tanh>{});
    case ScaleMap::sigmoid:
      return f(std::integral_constant<ScaleMap, ScaleMap::sigmoid>{});
    case ScaleMap::atan:
      return f(std::integral_constant<ScaleMap, ScaleMap::atan>{});
    case ScaleMap::softclip:
      return f(std::integral_constant<ScaleMap, ScaleMap::softclip>{});
    case ScaleMap::softplus:
      return f(std::integral_constant<ScaleMap, ScaleMap::softplus>{});
    case ScaleMap::floored_sigmoid:
      return f(std::integral_constant<ScaleMap, ScaleMap::floored_sigmoid>{});
    case ScaleMap::reciprocal_sigmoid:  // no autoregressive element
      return;
  }
}

DEEPGEN_SIMD void activate(Activation activation, int64_t n, float* values) {
  with_activation(activation,
                  [&](auto a) DEEPGEN_INLINE_CALL { activate_all<a(), float>(n, values); });
}
DEEPGEN_SIMD void activate(Activation activation, int64_t n, double* values) {
  with_activation(activation,
                  [&](auto a) DEEPGEN_INLINE_CALL { activate_all<a(), double>(n, values); });
}
DEEPGEN_SIMD void scale_by_slopes(Activation activation, int64_t n, const float* results,
                                  float* cotangents) {
  with_activation(activation, [&](auto a) DEEPGEN_INLINE_CALL {
    scale_all<a(), float>(n, results, cotangents);
  });
}
DEEPGEN_SIMD void scale_by_slopes(Activation activation, int64_t n, const double* results,
                                  double* cotangents) {
  with_activation(activation, [&](auto a) DEEPGEN_INLINE_CALL {
    scale_all<a(), double>(n, results, cotangents);
  });
}

// As in affine_coupling.h, but for the maps of double that matter, without a call of libm a lane.
template <ScaleMap M, class T>
DEEPGEN_INLINE T log_scale_in_lane(T raw, T clamp) {
  if constexpr (M == ScaleMap::tanh && sizeof(T) == 8) {
    return vectorisable::tanh(raw);
  } else {
    return log_scale_of<M>(raw, clamp);
  }
}

template <ScaleMap M, class T>
DEEPGEN_INLINE T inverse_factor_in_lane(T raw, T log_scale) {
  constexpr bool is_given =
      M == ScaleMap::sigmoid || M == ScaleMap::softplus || M == ScaleMap::floored_sigmoid;
  if constexpr (!is_given && sizeof(T) == 8) {
    return vectorisable::exp(-log_scale);
  } else {
    return factor_of<M>(raw, log_scale, true);
  }
}

template <ScaleMap M, class T>
DEEPGEN_INLINE void invert_affine(int64_t lanes, const T* __restrict raw, const T* __restrict shift,
                                  T clamp, T* __restrict x, T* __restrict log_derivative) {
#pragma omp simd
  for (int64_t s = 0; s < lanes; ++s) {
    const T log = log_scale_in_lane<M>(raw[s], clamp);
    x[s] = (x[s] - shift[s]) * inverse_factor_in_lane<M>(raw[s], log);
    log_derivative[s] = -log;
  }
}

// With v = (g + what came back through the network) / s: the cotangents -v dy/dp - G d(log s)/dp.
template <ScaleMap M, class T>
DEEPGEN_INLINE void adjoint_affine(int64_t lanes, const T* __restrict raw, const T* __restrict x,
                                   const T* __restrict grad_log_det, T clamp, T* __restrict of_x,
                                   T* __restrict of_raw, T* __restrict of_shift) {
#pragma omp simd
  for (int64_t s = 0; s < lanes; ++s) {
    const T log = log_scale_in_lane<M>(raw[s], clamp);
    const T slope = slope_of<M>(raw[s], log, clamp);
    const T g = of_x[s];
    const T v = g * inverse_factor_in_lane<M>(raw[s], log);
    of_raw[s] = -(g * x[s] + grad_log_det[s]) * slope;
    of_shift[s] = -v;
    of_x[s] = v;
  }
}

DEEPGEN_SIMD void invert_affine(const MaskedNetwork& net, int64_t lanes, const float* parameters,
                                float* x, float* log_derivative) {
  with_scale_map(net.scale_map, [&](auto m) DEEPGEN_INLINE_CALL {
    invert_affine<m(), float>(lanes, parameters, parameters + lanes, static_cast<float>(net.clamp),
                              x, log_derivative);
  });
}
DEEPGEN_SIMD void invert_affine(const MaskedNetwork& net, int64_t lanes, const double* parameters,
                                double* x, double* log_derivative) {
  with_scale_map(net.scale_map, [&](auto m) DEEPGEN_INLINE_CALL {
    invert_affine<m(), double>(lanes, parameters, parameters + lanes, net.clamp, x, log_derivative);
  });
}
DEEPGEN_SIMD void adjoint_affine(const MaskedNetwork& net, int64_t lanes, const float* parameters,
                                 const float* x, const float* grad_log_det, float* of_x,
                                 float* of_parameters) {
  with_scale_map(net.scale_map, [&](auto m) DEEPGEN_INLINE_CALL {
    adjoint_affine<m(), float>(lanes, parameters, x, grad_log_det, static_cast<float>(net.clamp),
                               of_x, of_parameters, of_parameters + lanes);
  });
}
DEEPGEN_SIMD void adjoint_affine(const MaskedNetwork& net, int64_t lanes, const double* parameters,
                                 const double* x, const double* grad_log_det, double* of_x,
                                 double* of_parameters) {
  with_scale_map(net.scale_map, [&](auto m) DEEPGEN_INLINE_CALL {
    adjoint_affine<m(), double>(lanes, parameters, x, grad_log_det, net.clamp, of_x, of_parameters,
                                of_parameters + lanes);
  });
}

// Exponentials of widths and heights go to `bins`.
template <class T>
struct SplineRows {
  StridedLanes<T> widths, heights;
  StridedLanes<const T> derivatives;
  Lanes<T> width_sum, height_sum;

  DEEPGEN_INLINE SplineRows(int64_t count, int64_t lanes, const T* parameters, T* bins)
      : widths{bins, lanes},
        heights{bins + count * lanes, lanes},
        derivatives{parameters + 2 * count * lanes, lanes},
        width_sum(
            spline_exponentials<Lanes<T>>(count, StridedLanes<const T>{parameters, lanes}, widths)),
        height_sum(spline_exponentials<Lanes<T>>(
            count, StridedLanes<const T>{parameters + count * lanes, lanes}, heights)) {}
};

template <class T>
DEEPGEN_INLINE void invert_spline(const MaskedNetwork& net, int64_t lanes, const T* parameters,
                                  T* x, T* bins, T* log_derivative) {
  const SplineConstants<T> c = constants_of<T>(net);
  for (int64_t s = 0; s < lanes; s += Lanes<T>::count) {
    const SplineRows<T> p(net.bins, lanes, parameters + s, bins + s);
    Lanes<T> result, log;
    spline_value<true>(c, net.bins, Lanes<T>::load(x + s), p.widths, p.width_sum, p.heights,
                       p.height_sum, p.derivatives, &result, &log);
    result.store(x + s);
    log.store(log_derivative + s);
  }
}

template <class T>
DEEPGEN_INLINE void soften(const MaskedNetwork& net, int64_t lanes, T* parameters) {
  for (int64_t s = 0; s < lanes; s += Lanes<T>::count)
    soften_spline<Lanes<T>>(static_cast<T>(net.clamp), net.bins,
                            StridedLanes<T>{parameters + s, lanes});
}

template <class T>
DEEPGEN_INLINE void soften_back(const MaskedNetwork& net, int64_t lanes, const T* softened,
                                T* gradients) {
  for (int64_t s = 0; s < lanes; s += Lanes<T>::count)
    soften_gradients<Lanes<T>>(static_cast<T>(net.clamp), net.bins,
                               StridedLanes<const T>{softened + s, lanes},
                               StridedLanes<T>{gradients + s, lanes});
}

// x_i = f^-1(z_i; p_i): what its gradient gives z_i is v_i.
template <class T>
DEEPGEN_INLINE void adjoint_spline(const MaskedNetwork& net, int64_t lanes, const T* parameters,
                                   const T* z, const T* grad_log_det, T* bins, T* of_x,
                                   T* of_parameters) {
  const SplineConstants<T> c = constants_of<T>(net);
  const int64_t count = net.bins;
  for (int64_t s = 0; s < lanes; s += Lanes<T>::count) {
    const SplineRows<T> p(count, lanes, parameters + s, bins + s);
    T* const out = of_parameters + s;
    const StridedLanes<T> of_widths{out, lanes}, of_heights{out + count * lanes, lanes},
        of_derivatives{out + 2 * count * lanes, lanes};
    spline_gradient<true>(c, count, Lanes<T>::load(z + s), Lanes<T>::load(of_x + s),
                          Lanes<T>::load(grad_log_det + s), p.widths, p.width_sum, p.heights,
                          p.height_sum, p.derivatives, of_widths, of_heights, of_derivatives)
        .store(of_x + s);
  }
}

DEEPGEN_SIMD void invert_spline_lanes(const MaskedNetwork& net, int64_t lanes,
                                      const float* parameters, float* x, float* bins,
                                      float* log_derivative) {
  invert_spline<float>(net, lanes, parameters, x, bins, log_derivative);
}
DEEPGEN_SIMD void invert_spline_lanes(const MaskedNetwork& net, int64_t lanes,
                                      const double* parameters, double* x, double* bins,
                                      double* log_derivative) {
  invert_spline<double>(net, lanes, parameters, x, bins, log_derivative);
}
DEEPGEN_SIMD void adjoint_spline_lanes(const MaskedNetwork& net, int64_t lanes,
                                       const float* parameters, const float* z,
                                       const float* grad_log_det, float* bins, float* of_x,
                                       float* of_parameters) {
  adjoint_spline<float>(net, lanes, parameters, z, grad_log_det, bins, of_x, of_parameters);
}
DEEPGEN_SIMD void adjoint_spline_lanes(const MaskedNetwork& net, int64_t lanes,
                                       const double* parameters, const double* z,
                                       const double* grad_log_det, double* bins, double* of_x,
                                       double* of_parameters) {
  adjoint_spline<double>(net, lanes, parameters, z, grad_log_det, bins, of_x, of_parameters);
}

DEEPGEN_SIMD void soften_lanes(const MaskedNetwork& net, int64_t lanes, float* parameters) {
  soften<float>(net, lanes, parameters);
}
DEEPGEN_SIMD void soften_lanes(const MaskedNetwork& net, int64_t lanes, double* parameters) {
  soften<double>(net, lanes, parameters);
}
DEEPGEN_SIMD void soften_back_lanes(const MaskedNetwork& net, int64_t lanes, const float* softened,
                                    float* gradients) {
  soften_back<float>(net, lanes, softened, gradients);
}
DEEPGEN_SIMD void soften_back_lanes(const MaskedNetwork& net, int64_t lanes, const double* softened,
                                    double* gradients) {
  soften_back<double>(net, lanes, softened, gradients);
}

// x holds z and becomes x; the parameters may be written to; `bins` is room for twice the bins.
// Leaves the logs of dx/dz.
template <class T>
void invert_elements(const MaskedNetwork& net, int64_t lanes, T* parameters, T* x, T* bins,
                     T* log_derivative) {
  if (net.element == ElementMap::affine)
    return invert_affine(net, lanes, parameters, x, log_derivative);
  if (net.element == ElementMap::softclip_spline) soften_lanes(net, lanes, parameters);
  invert_spline_lanes(net, lanes, parameters, x, bins, log_derivative);
}

// of_x holds the cotangent of x_i and becomes v_i; of_parameters the cotangents of its parameters.
template <class T>
void adjoint_elements(const MaskedNetwork& net, int64_t lanes, T* parameters, const T* z,
                      const T* x, const T* grad_log_det, T* bins, T* of_x, T* of_parameters) {
  if (net.element == ElementMap::affine)
    return adjoint_affine(net, lanes, parameters, x, grad_log_det, of_x, of_parameters);
  const bool is_soft = net.element == ElementMap::softclip_spline;
  if (is_soft) soften_lanes(net, lanes, parameters);
  adjoint_spline_lanes(net, lanes, parameters, z, grad_log_det, bins, of_x, of_parameters);
  if (is_soft) soften_back_lanes(net, lanes, parameters, of_parameters);
}

}  // namespace
}  // namespace deepgen::cpu
