// The activations of fixed_point_mlp on the CPU, as loops that the compiler vectorises: double
// without libm, softplus in double excepted, whose log1p is called.
#pragma once

#include "../fixed_point_mlp.h"
#include "double_elementary.h"

namespace deepgen::cpu {
namespace {

template <class T>
DEEPGEN_INLINE T decay_in_lane(T v) {
  if constexpr (sizeof(T) == 8) {
    return vectorisable::exp(-std::fabs(v));
  } else {
    return decay_of(v);
  }
}

template <MlpActivation A, class T>
DEEPGEN_INLINE T activated(T v, T beta) {
  if constexpr (A == MlpActivation::relu) {
    return v < T(0) ? T(0) : v;  // NaN stays
  } else if constexpr (A == MlpActivation::elu) {
    const T decayed = beta * (decay_in_lane(v) - T(1));
    return v < T(0) ? decayed : v;
  } else if constexpr (A == MlpActivation::tanh) {
    if constexpr (sizeof(T) == 8) {
      return vectorisable::tanh(v);
    } else {
      return tanh_of(v);
    }
  } else if constexpr (A == MlpActivation::lipswish) {
    const T z = beta * v;
    return T(1 / 1.1) * v * sigmoid_of(z, decay_in_lane(z));
  } else if constexpr (A == MlpActivation::silu) {
    return v * sigmoid_of(v, decay_in_lane(v));
  } else if constexpr (A == MlpActivation::sin) {
    constexpr T one_over_pi = T(0.31830988618379067154);
    if constexpr (sizeof(T) == 8) {
      return one_over_pi * vectorisable::sin_pi(v);
    } else {
      return one_over_pi * sin_pi_of(v);
    }
  } else if constexpr (A == MlpActivation::softplus) {
    const T z = beta * v;
    return softplus_of(v, z, decay_in_lane(z), beta);
  } else if constexpr (A == MlpActivation::leaky_relu) {
    return v < T(0) ? beta * v : v;
  } else {
    return sigmoid_of(v, decay_in_lane(v));
  }
}

template <MlpActivation A, class T>
DEEPGEN_INLINE void activate_all(int64_t n, T beta, T* __restrict values) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) values[i] = activated<A>(values[i], beta);
}

template <class T>
DEEPGEN_INLINE void activate(MlpActivation activation, int64_t n, T beta, T* values) {
  switch (activation) {
    case MlpActivation::relu:
      return activate_all<MlpActivation::relu>(n, beta, values);
    case MlpActivation::elu:
      return activate_all<MlpActivation::elu>(n, beta, values);
    case MlpActivation::tanh:
      return activate_all<MlpActivation::tanh>(n, beta, values);
    case MlpActivation::lipswish:
      return activate_all<MlpActivation::lipswish>(n, beta, values);
    case MlpActivation::silu:
      return activate_all<MlpActivation::silu>(n, beta, values);
    case MlpActivation::sin:
      return activate_all<MlpActivation::sin>(n, beta, values);
    case MlpActivation::softplus:
      return activate_all<MlpActivation::softplus>(n, beta, values);
    case MlpActivation::leaky_relu:
      return activate_all<MlpActivation::leaky_relu>(n, beta, values);
    case MlpActivation::sigmoid:
      return activate_all<MlpActivation::sigmoid>(n, beta, values);
  }
}

}  // namespace
}  // namespace deepgen::cpu
