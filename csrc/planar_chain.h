// planar_chain: z <- z + u tanh(a), a = w'z + b, K times; parameters of a step: w (D), u (D), p, b
// with p = 1 + u'w > 0 given, because only who made u knows it without cancellation.
//
// With t = tanh a and s = 1 - t^2 the volume stretches by 1 + (p - 1) s = t^2 + p s: a sum of
// positive terms, right to the last digits for p near 0 and for s near 0 alike (s comes from
// e^-2|a|, not from 1 - t^2). Gradients, with g of the next z and G of log det, q = g'u:
//   g_a = q s - 2 G (p - 1) t s / (t^2 + p s)     g_z = g + g_a w     g_w = g_a z     g_u = t g
//   g_p = G s / (t^2 + p s)                       g_b = g_a
#pragma once

#include "flow_chain.h"

namespace deepgen {

struct PlanarStep {
  static constexpr int vectors = 2;
  static constexpr bool stretches_others = false;

  // v: the element of each of the step's vectors.
  template <class T>
  DEEPGEN_HD static T term(const T* v, T z) {
    return v[0] * z;
  }

  template <class T>
  DEEPGEN_HD static void values(T sum, T p, T b, T& factor, T& last, T&) {
    const T a = sum + b;
    factor = tanh_of(a);
    last = factor * factor + p * bump(a);
  }

  template <class T>
  DEEPGEN_HD static T move(const T* v, T z, T factor) {
    return z + v[1] * factor;
  }

  template <class T>
  DEEPGEN_HD static T lever(const T* v, T) {
    return v[1];
  }

  template <class T>
  DEEPGEN_HD static void gradient(T sum, T p, T b, T, T pulled, T grad_log_det, T& factor,
                                  T& coefficient, T& by_p, T& by_b) {
    const T a = sum + b;
    const T s = bump(a);
    factor = tanh_of(a);
    by_p = grad_log_det * (s / (factor * factor + p * s));
    coefficient = pulled * s - T(2) * by_p * (p - T(1)) * factor;
    by_b = coefficient;
  }

  template <class T>
  DEEPGEN_HD static void pull(const T* v, T z, T factor, T coefficient, T& g, T& by_w, T& by_u) {
    by_w = coefficient * z;
    by_u = factor * g;
    g += coefficient * v[0];
  }

  // 1 - tanh^2 a.
  template <class T>
  DEEPGEN_HD static T bump(T a) {
    const T e = decay_of(a + a), i = T(1) / (T(1) + e);
    return T(4) * e * (i * i);
  }
};

namespace cpu {
void planar_chain(const FlowChain&);
void planar_chain_backward(const FlowChainBackward&);
}  // namespace cpu

namespace cuda {
void planar_chain(const FlowChain&, void* stream);
void planar_chain_backward(const FlowChainBackward&, void* stream);
ChainScratch planar_chain_scratch(Storage, int64_t batch, int64_t features);
}  // namespace cuda

}  // namespace deepgen
