// Lanes: several numbers side by side in one SIMD register, with the operations of one number.
//
// For formulas with loops inside, where the compiler does not vectorise over elements by itself: a
// template over the number type, written once, then serves one element (float, double) and 32 bytes
// of them, with its running values in registers. Where the instruction set has narrower registers
// the compiler cuts each operation in two.
#pragma once

#include <cstdint>
#include <cstring>

#include "../elementary.h"
#include "simd.h"

namespace deepgen::cpu {

template <class C>
struct LaneVectors;
template <>
struct LaneVectors<float> {
  typedef float Values __attribute__((vector_size(32)));
  typedef int32_t Mask __attribute__((vector_size(32)));
};
template <>
struct LaneVectors<double> {
  typedef double Values __attribute__((vector_size(32)));
  typedef int64_t Mask __attribute__((vector_size(32)));
};

template <class C>
struct LaneMask {
  typename LaneVectors<C>::Mask bits;
};

template <class C>
struct Lanes {
  using Values = typename LaneVectors<C>::Values;
  using Mask = LaneMask<C>;
  static constexpr int64_t count = 32 / sizeof(C);

  Values values;

  Lanes() = default;
  // A loop, which becomes one broadcast: the vector types' own comes out as an insertion a lane.
  DEEPGEN_INLINE Lanes(C value) {
    alignas(32) C all[count];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) all[i] = value;
    std::memcpy(&values, all, sizeof(Values));
  }
  DEEPGEN_INLINE explicit Lanes(Values v) : values(v) {}

  static DEEPGEN_INLINE Lanes load(const C* from) {
    Lanes result;
    std::memcpy(&result.values, from, sizeof(Values));
    return result;
  }
  DEEPGEN_INLINE void store(C* to) const { std::memcpy(to, &values, sizeof(Values)); }

  friend DEEPGEN_INLINE Lanes operator+(Lanes a, Lanes b) { return Lanes(a.values + b.values); }
  friend DEEPGEN_INLINE Lanes operator-(Lanes a, Lanes b) { return Lanes(a.values - b.values); }
  friend DEEPGEN_INLINE Lanes operator*(Lanes a, Lanes b) { return Lanes(a.values * b.values); }
  friend DEEPGEN_INLINE Lanes operator/(Lanes a, Lanes b) { return Lanes(a.values / b.values); }
  friend DEEPGEN_INLINE Mask operator<(Lanes a, Lanes b) { return {a.values < b.values}; }
  friend DEEPGEN_INLINE Mask operator>(Lanes a, Lanes b) { return {a.values > b.values}; }
  friend DEEPGEN_INLINE Mask operator<=(Lanes a, Lanes b) { return {a.values <= b.values}; }
  friend DEEPGEN_INLINE Mask operator>=(Lanes a, Lanes b) { return {a.values >= b.values}; }
  friend DEEPGEN_INLINE Mask operator==(Lanes a, Lanes b) { return {a.values == b.values}; }
  friend DEEPGEN_INLINE C scalar_of(Lanes a) { return a.values[0]; }
  friend DEEPGEN_INLINE Lanes select(Mask mask, Lanes a, Lanes b) {
    return Lanes(mask.bits ? a.values : b.values);
  }
};

// Applies a function of one number to each lane: a loop of known length, which becomes one vector
// operation for each of the function's.
template <class C, class Function>
DEEPGEN_INLINE Lanes<C> each_lane(Lanes<C> x, Function function) {
  alignas(32) C in[Lanes<C>::count], out[Lanes<C>::count];
  x.store(in);
#pragma omp simd
  for (int64_t i = 0; i < Lanes<C>::count; ++i) out[i] = function(in[i]);
  return Lanes<C>::load(out);
}

#define DEEPGEN_EACH_LANE(function)                                                              \
  template <class C>                                                                             \
  DEEPGEN_INLINE Lanes<C> function(Lanes<C> x) {                                                 \
    return each_lane(x,                                                                          \
                     [](C v) __attribute__((always_inline)) { return ::deepgen::function(v); }); \
  }
DEEPGEN_EACH_LANE(decay_of)
DEEPGEN_EACH_LANE(log1p_of_unit)
DEEPGEN_EACH_LANE(log_of)
DEEPGEN_EACH_LANE(sqrt_of)
DEEPGEN_EACH_LANE(magnitude_of)
#undef DEEPGEN_EACH_LANE

// The k-th group of lanes of something spread over memory with a stride.
template <class C>
struct StridedLanes {
  C* data;
  int64_t stride;

  DEEPGEN_INLINE Lanes<std::remove_const_t<C>> operator()(int64_t k) const {
    return Lanes<std::remove_const_t<C>>::load(data + k * stride);
  }
  DEEPGEN_INLINE void set(int64_t k, Lanes<C> value) const { value.store(data + k * stride); }
};

}  // namespace deepgen::cpu
