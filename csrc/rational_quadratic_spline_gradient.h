// The gradient of rational_quadratic_spline, of one element: to the value, and through bins,
// cumulated sums, softmax and softplus to the raw parameters. Recomputed from the inputs; nothing
// is kept. T as in rational_quadratic_spline_element.h.
#pragma once

#include "rational_quadratic_spline_element.h"

namespace deepgen {

// k-th gradient of something: `below` for the bins before the value's bin, `at` for that bin, else
// 0.
template <class T>
DEEPGEN_HD T gradient_of_bin(T index, T k, T below, T at) {
  return select(index > k, below, select(index == k, at, T(0)));
}

// Through the softmax: writes the gradients of the raw widths (or heights), given those of the
// bins.
template <class T, class Exponentials, class Gradients>
DEEPGEN_HD void softmax_gradient(int64_t bins, const Exponentials& exponentials, T sum, T factor,
                                 T index, T below, T at, const Gradients& gradients) {
  using C = decltype(scalar_of(sum));
  T mean = 0;
  for (int64_t k = 0; k < bins; ++k) {
    mean = mean + exponentials(k) * gradient_of_bin(index, T(static_cast<C>(k)), below, at);
  }
  mean = mean / sum;
  for (int64_t k = 0; k < bins; ++k) {
    const T gradient = gradient_of_bin(index, T(static_cast<C>(k)), below, at);
    gradients.set(k, factor * exponentials(k) * (gradient - mean));
  }
}

// The slope of softplus.
template <class T>
DEEPGEN_HD T sigmoid_of(T x) {
  const T e = decay_of(x), one = 1;
  return select(x > T(0), one, e) / (one + e);
}

// The gradients of one element, given those of the result (g) and of the log-derivative (l) of the
// map that was applied to `value`. The inverse x = f^-1(y), with log-derivative -L(x), differs from
// f at x only in the gradients that reach it: with G = g - l dL/dx, y gets G / f', and the
// parameters what f would give them for -G / f' and -l. Outside of an interval all of them are NaN.
template <bool Inverse, class T, class C, class Exponentials, class Raw, class Gradients>
DEEPGEN_HD T spline_gradient(const SplineConstants<C>& c, int64_t bins, T value, T g, T l,
                             const Exponentials& widths, T width_sum, const Exponentials& heights,
                             T height_sum, const Raw& derivatives, const Gradients& grad_widths,
                             const Gradients& grad_heights, const Gradients& grad_derivatives) {
  const SplineRange<C>& from = Inverse ? c.y : c.x;
  const T given = value - T(from.centre);
  const SplineBin<T> bin =
      find_spline_bin<Inverse>(c, bins, given, widths, width_sum, heights, height_sum, derivatives);
  const T zero = 0, one = 1, two = 2;
  SplinePoint<T> p;
  if constexpr (Inverse) {
    p = spline_point_of(bin, given);
  } else {
    p = spline_point_at(bin, given);
  }
  const T inverse_width = one / bin.width;
  const T t = p.t, rest = one - t, s = p.slope, over_d = p.inverse_divisor;
  const T over_curve = one / p.curve;
  // d/dt of log dy/dx: A' / A - 2 D' / D.
  const T curve_slope = two * (bin.slope_right * t + s * (rest - t) - bin.slope_left * rest);
  const T log_by_t = curve_slope * over_curve - two * p.excess * (rest - t) * over_d;

  T by_value, by_y, by_log;  // by_y and by_log: what reaches y and L of the map itself
  if constexpr (Inverse) {
    by_value = (g - l * log_by_t * inverse_width) / p.derivative;
    by_y = zero - by_value;
    by_log = zero - l;
  } else {
    by_value = g * p.derivative + l * log_by_t * inverse_width;
    by_y = g;
    by_log = l;
  }
  const auto within = magnitude_of(given) <= T(from.reach);
  const T beyond = c.beyond;
  by_y = select(within, by_y, beyond);
  by_log = select(within, by_log, beyond);

  const T part = p.numerator * over_d;  // P / D
  const T by_part = by_y * bin.height * over_d;
  const T by_log_d = two * by_log * over_d;
  const T by_t = by_y * p.derivative * bin.width + by_log * log_by_t;
  const T by_slope = by_part * (t * t - part * (one - two * p.mixed)) +
                     by_log * two * (one / s + p.mixed * over_curve) -
                     by_log_d * (one - two * p.mixed);
  const T by_left_slope =
      by_part * p.mixed * (one - part) + by_log * rest * rest * over_curve - by_log_d * p.mixed;
  const T by_right_slope =
      by_log * t * t * over_curve - by_part * p.mixed * part - by_log_d * p.mixed;

  // t = (x - left) / w and s = h / w.
  const T by_left = zero - by_t * inverse_width;
  const T by_width = zero - (by_t * t + by_slope * s) * inverse_width;
  const T by_height = by_y * part + by_slope * inverse_width;
  softmax_gradient(bins, widths, width_sum, bin.width_factor, bin.index, by_left, by_width,
                   grad_widths);
  softmax_gradient(bins, heights, height_sum, bin.height_factor, bin.index, by_y, by_height,
                   grad_heights);
  const T by_raw_left = by_left_slope * sigmoid_of(bin.raw_left);
  const T by_raw_right = by_right_slope * sigmoid_of(bin.raw_right);
  const int64_t ends = c.free_ends ? 1 : 0;
  for (int64_t k = 0; k + 1 < bins + 2 * ends; ++k) {
    // The bins before and behind the knot.
    const T here = static_cast<C>(k - ends), next = static_cast<C>(k + 1 - ends);
    grad_derivatives.set(
        k, select(bin.index == here, by_raw_right, select(bin.index == next, by_raw_left, zero)));
  }
  return select(within, by_value, g + beyond);
}

}  // namespace deepgen
