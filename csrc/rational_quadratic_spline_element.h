// The rational-quadratic spline of one element (Durkan et al. 2019).
//
// Its raw parameters are K widths, K heights and K - 1 derivatives. With bound B,
//   w_k = 2 B (min_w + (1 - K min_w) softmax(widths)_k),  h_k likewise,  left_k = -B + w_0 + ...,
//   d_k = min_d + softplus(derivatives_k-1), and d_0 = d_K = 1.
// In bin k, with s = h / w, t = (x - left) / w, d and e the slopes at its ends:
//   y = bottom + h P / D,  P = s t^2 + d t (1 - t),  D = s + (d + e - 2 s) t (1 - t),
//   dy/dx = (s / D)^2 A,   A = e t^2 + 2 s t (1 - t) + d (1 - t)^2.
// Outside of [-B, B] the map is the identity.
//
// On an interval, [left, right] to [bottom, top], there are K + 1 derivatives, those at the ends
// too, and outside there is nothing: NaN. All edges are reckoned from the middle of the interval,
// with half its length for B, so that [-B, B] is computed as with tails, bit for bit.
//
// All formulas of one element are templates over the number type T: float, double, or a SIMD vector
// of them (cpu/lanes.h), with C the scalar type. So both devices and the inverse of a masked MLP
// compute the same thing.
#pragma once

#include "elementary.h"
#include "rational_quadratic_spline_interval.h"

namespace deepgen {

// What the templates need of a number type beside + - * / and comparisons; lanes.h has its own.
DEEPGEN_HD float select(bool condition, float a, float b) {
  return condition ? a : b;
}
DEEPGEN_HD double select(bool condition, double a, double b) {
  return condition ? a : b;
}
DEEPGEN_HD float sqrt_of(float x) {
  return sqrtf(x);
}
DEEPGEN_HD double sqrt_of(double x) {
  return std::sqrt(x);
}
DEEPGEN_HD float scalar_of(float x) {
  return x;
}
DEEPGEN_HD double scalar_of(double x) {
  return x;
}

// k-th value of something spread over memory with a stride.
template <class T>
struct StridedValues {
  T* data;
  int64_t stride;

  DEEPGEN_HD T operator()(int64_t k) const { return data[k * stride]; }
  DEEPGEN_HD void set(int64_t k, T value) const { data[k * stride] = value; }
};

template <class T>
DEEPGEN_HD T softplus_of(T x) {
  const T zero = 0;
  return select(x > zero, x, zero) + log1p_of_unit(decay_of(x));
}

// Writes e^(raw_k - largest raw) and returns their sum. NaN and +inf make all of them NaN.
template <class T, class Raw, class Exponentials>
DEEPGEN_HD T spline_exponentials(int64_t bins, const Raw& raw, const Exponentials& exponentials) {
  T largest = raw(0);
  for (int64_t k = 1; k < bins; ++k) {
    const T value = raw(k);
    largest = select(value > largest, value, largest);
  }
  T sum = 0;
  for (int64_t k = 0; k < bins; ++k) {
    const T value = decay_of(raw(k) - largest);
    exponentials.set(k, value);
    sum = sum + value;
  }
  return sum;
}

// The bin a value lies in: the first and the last one also for what lies beyond them, the first for
// NaN. Edges are reckoned from the middle of the interval.
template <class T>
struct SplineBin {
  T index, left, width, bottom, height;
  T raw_left, raw_right;          // of the derivatives at its ends; 0 where the tails begin
  T slope_left, slope_right;      // the derivatives
  T width_factor, height_factor;  // width = width_floor + width_factor * exponential
};

// Finds it by comparing with every edge, in x, or in y for the inverse, and selecting: no branch.
// The value is reckoned from the middle, too.
template <bool Inverse, class T, class C, class Exponentials, class Raw>
DEEPGEN_HD SplineBin<T> find_spline_bin(const SplineConstants<C>& c, int64_t bins, T value,
                                        const Exponentials& widths, T width_sum,
                                        const Exponentials& heights, T height_sum,
                                        const Raw& derivatives) {
  SplineBin<T> bin;
  bin.width_factor = T(c.width_room) / width_sum;
  bin.height_factor = T(c.height_room) / height_sum;
  const int64_t ends = c.free_ends ? 1 : 0;  // the first inner derivative
  const T one = 1, floor = c.min_derivative;
  const T first = static_cast<C>(-ends), last = static_cast<C>(bins - 1 + ends);
  T right = -c.x.half, top = -c.y.half;
  bin.index = bin.raw_left = bin.raw_right = 0;
  bin.left = right;
  bin.bottom = top;
  bin.width = right = T(c.width_floor) + bin.width_factor * widths(0);
  bin.height = top = T(c.height_floor) + bin.height_factor * heights(0);
  right = right - T(c.x.half);
  top = top - T(c.y.half);
  if (c.free_ends) bin.raw_left = derivatives(0);
  if (bins + ends > 1) bin.raw_right = derivatives(ends);
  for (int64_t k = 1; k < bins; ++k) {
    const T width = T(c.width_floor) + bin.width_factor * widths(k);
    const T height = T(c.height_floor) + bin.height_factor * heights(k);
    const auto beyond = value >= (Inverse ? top : right);
    bin.index = select(beyond, T(static_cast<C>(k)), bin.index);
    bin.left = select(beyond, right, bin.left);
    bin.bottom = select(beyond, top, bin.bottom);
    bin.width = select(beyond, width, bin.width);
    bin.height = select(beyond, height, bin.height);
    bin.raw_left = select(beyond, derivatives(k - 1 + ends), bin.raw_left);
    if (k + 1 < bins + ends) {
      bin.raw_right = select(beyond, derivatives(k + ends), bin.raw_right);
    }
    right = right + width;
    top = top + height;
  }
  bin.slope_left = select(bin.index > first, softplus_of(bin.raw_left) + floor, one);
  bin.slope_right = select(bin.index < last, softplus_of(bin.raw_right) + floor, one);
  return bin;
}

// t and the terms of the formulas at t.
template <class T>
struct SplinePoint {
  T t, slope;         // slope: s, of the chord
  T mixed;            // t (1 - t)
  T excess;           // d + e - 2 s
  T numerator;        // P
  T inverse_divisor;  // 1 / D
  T curve;            // A
  T derivative;       // dy/dx
};

template <class T>
DEEPGEN_HD T clamped_to_unit(T t) {
  const T zero = 0, one = 1;
  t = select(t < zero, zero, t);
  return select(t > one, one, t);
}

template <class T>
DEEPGEN_HD SplinePoint<T> spline_point(const SplineBin<T>& bin, T t, T slope) {
  SplinePoint<T> p;
  const T one = 1;
  p.t = t;
  p.slope = slope;
  const T rest = one - t;
  p.mixed = t * rest;
  p.excess = bin.slope_left + bin.slope_right - (slope + slope);
  p.inverse_divisor = one / (slope + p.excess * p.mixed);
  p.numerator = t * (slope * t + bin.slope_left * rest);
  p.curve = bin.slope_right * (t * t) + (slope + slope) * p.mixed + bin.slope_left * (rest * rest);
  const T ratio = slope * p.inverse_divisor;
  p.derivative = ratio * (ratio * p.curve);  // in this order: D^2 may overflow
  return p;
}

// Where the value x lies in the bin, both reckoned from the middle.
template <class T>
DEEPGEN_HD SplinePoint<T> spline_point_at(const SplineBin<T>& bin, T x) {
  const T inverse_width = T(1) / bin.width;
  return spline_point(bin, clamped_to_unit((x - bin.left) * inverse_width),
                      bin.height * inverse_width);
}

// Where the result y lies: the root in [0, 1] of a t^2 + b t = c, with r = (y - bottom) / h,
//   b = d - r (d + e - 2 s),  a = s - b,  c = s r.
// Its discriminant is b^2 + 4 a c, and, for a < 0, (s + a)^2 - 4 a s (1 - r): the one or the other
// is a sum of what is not negative, so that rounding cannot make it negative. b < 0 implies a > 0,
// and then sqrt - b is the sum that does not cancel.
template <class T>
DEEPGEN_HD SplinePoint<T> spline_point_of(const SplineBin<T>& bin, T y) {
  const T zero = 0, one = 1, four = 4;
  const T slope = bin.height / bin.width;
  const T r = clamped_to_unit((y - bin.bottom) / bin.height);
  const T b = bin.slope_left - r * (bin.slope_left + bin.slope_right - (slope + slope));
  const T a = slope - b;
  const auto convex = a >= zero;
  const T square = select(convex, b, slope + a);
  const T product = a * slope * select(convex, r, r - one);
  const T root = sqrt_of(square * square + four * product);
  const T sum = magnitude_of(b) + root;
  const auto falling = b < zero;
  const T t = select(falling, sum, slope * (r + r)) / select(falling, a + a, sum);
  return spline_point(bin, clamped_to_unit(t), slope);
}

// The result of the map, or of its inverse, and the log of the derivative of what was applied. NaN
// gives NaN; results stay within the range.
template <bool Inverse, class T, class C, class Exponentials, class Raw>
DEEPGEN_HD void spline_value(const SplineConstants<C>& c, int64_t bins, T value,
                             const Exponentials& widths, T width_sum, const Exponentials& heights,
                             T height_sum, const Raw& derivatives, T* result, T* log_derivative) {
  const SplineRange<C>&from = Inverse ? c.y : c.x, &to = Inverse ? c.x : c.y;
  const T given = value - T(from.centre);
  const SplineBin<T> bin =
      find_spline_bin<Inverse>(c, bins, given, widths, width_sum, heights, height_sum, derivatives);
  const T zero = 0, one = 1, beyond = c.beyond, least = to.least, largest = to.largest;
  T inside, log;
  if constexpr (Inverse) {
    const SplinePoint<T> p = spline_point_of(bin, given);
    inside = bin.left + bin.width * p.t;
    log = zero - log_of(p.derivative);
  } else {
    const SplinePoint<T> p = spline_point_at(bin, given);
    const T part = p.numerator * p.inverse_divisor;
    inside = bin.bottom + bin.height * select(part > one, one, part);
    log = log_of(p.derivative);
  }
  inside = inside + T(to.centre);
  inside = select(inside > largest, largest, inside);
  inside = select(inside < least, least, inside);
  // NaN fails the comparison, and is its own result and its own log-derivative.
  const auto within = magnitude_of(given) <= T(from.reach);
  *result = select(within, inside, value + beyond);
  *log_derivative = select(within, log, select(value == value, beyond, value));
}

// spline_value of one element whose raw parameters lie side by side, widths, heights, derivatives,
// `stride` apart. `room` is for 2 K numbers, `room_stride` apart.
template <bool Inverse, class T>
DEEPGEN_HD void spline_of_one(const SplineConstants<T>& c, int64_t bins, T value,
                              const T* parameters, int64_t stride, T* room, int64_t room_stride,
                              T* result, T* log_derivative) {
  const StridedValues<const T> raw_widths{parameters, stride};
  const StridedValues<const T> raw_heights{parameters + bins * stride, stride};
  const StridedValues<const T> derivatives{parameters + 2 * bins * stride, stride};
  const StridedValues<T> widths{room, room_stride};
  const StridedValues<T> heights{room + bins * room_stride, room_stride};
  const T width_sum = spline_exponentials<T>(bins, raw_widths, widths);
  const T height_sum = spline_exponentials<T>(bins, raw_heights, heights);
  spline_value<Inverse>(c, bins, value, widths, width_sum, heights, height_sum, derivatives, result,
                        log_derivative);
}

}  // namespace deepgen
