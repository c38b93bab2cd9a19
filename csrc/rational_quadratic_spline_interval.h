// Where the bins of a rational-quadratic spline lie, and how small they may be: given, and as the
// formulas of rational_quadratic_spline_element.h use it.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace deepgen {

// Sizes the buffers of the kernels.
constexpr int64_t most_spline_bins = 100;

struct SplineInterval {
  double left, right, bottom, top;
  bool is_all;  // there are no tails, and slopes of its own at both ends

  DEEPGEN_HD static SplineInterval with_tails(double bound) {
    return {-bound, bound, -bound, bound, false};
  }
};

// From `least` to `largest`: the middle, half the length, and how far from the middle a value may
// lie.
template <class C>
struct SplineRange {
  C centre, half, reach, least, largest;
};

// What bounds the bins, as the formulas use it.
template <class C>
struct SplineConstants {
  SplineRange<C> x, y;
  C width_floor, width_room, height_floor, height_room, min_derivative;
  C beyond;  // what is added to a value outside: 0, or NaN
  bool free_ends;
};

template <class C>
DEEPGEN_HD SplineRange<C> spline_range(double least, double largest, bool is_all) {
  const double half = (largest - least) / 2, size = std::fabs(least) + std::fabs(largest);
  // The ends of an interval are rounded, and so is a value's way from the middle.
  const double rounding = is_all ? (sizeof(C) == 4 ? 5e-7 : 1e-15) * size : 0;
  return {static_cast<C>((least + largest) / 2), static_cast<C>(half),
          static_cast<C>(half + rounding), static_cast<C>(least), static_cast<C>(largest)};
}

template <class C>
DEEPGEN_HD SplineConstants<C> spline_constants(int64_t bins, const SplineInterval& interval,
                                               double min_bin_width, double min_bin_height,
                                               double min_derivative) {
  const double count = static_cast<double>(bins), width = interval.right - interval.left,
               height = interval.top - interval.bottom;
  return {spline_range<C>(interval.left, interval.right, interval.is_all),
          spline_range<C>(interval.bottom, interval.top, interval.is_all),
          static_cast<C>(width * min_bin_width),
          static_cast<C>(width * (1 - count * min_bin_width)),
          static_cast<C>(height * min_bin_height),
          static_cast<C>(height * (1 - count * min_bin_height)),
          static_cast<C>(min_derivative),
          static_cast<C>(interval.is_all ? NAN : 0.0),
          interval.is_all};
}

}  // namespace deepgen
