// radial_chain: z <- c + rho (z - c), rho = (r + q) / (r + alpha), r = |z - c|, K times; parameters
// of a step: c (D), alpha > 0, q = alpha + beta > 0.
//
// That is z + beta h (z - c) with h = 1 / (alpha + r), without its cancellation near beta = -alpha.
// With i = 1 / (r + alpha), x = r i, y = alpha i, v = q i: rho = x + v stretches the D - 1
// directions across the radius and kappa = x + y rho the one along it, sums of positive terms.
// Gradients, with g of the next z and G of log det, d = z - c, m = g'd:
//   rho_r = (y - v) i     rho_alpha = -rho i               rho_q = i
//   kappa_r = y i (1 - rho + y - v)   kappa_alpha = i (x rho - x - y rho)   kappa_q = y i
//   R = m + G (D - 1) / rho     H = G / kappa     g_r = R rho_r + H kappa_r, likewise alpha and q
//   g_z = rho g + g_r d / r     g_c = g - g_z
#pragma once

#include "flow_chain.h"

namespace deepgen {

struct RadialStep {
  static constexpr int vectors = 1;
  static constexpr bool stretches_others = true;

  template <class T>
  DEEPGEN_HD static T term(const T* v, T z) {
    const T d = z - v[0];
    return d * d;
  }

  template <class T>
  DEEPGEN_HD static void values(T sum, T alpha, T q, T& factor, T& last, T& others) {
    const T r = root_of(sum), i = T(1) / (r + alpha);
    factor = others = (r + q) * i;
    last = r * i + alpha * i * others;
  }

  template <class T>
  DEEPGEN_HD static T move(const T* v, T z, T factor) {
    return v[0] + factor * (z - v[0]);
  }

  template <class T>
  DEEPGEN_HD static T lever(const T* v, T z) {
    return z - v[0];
  }

  template <class T>
  DEEPGEN_HD static void gradient(T sum, T alpha, T q, T features, T pulled, T grad_log_det,
                                  T& factor, T& coefficient, T& by_alpha, T& by_q) {
    const T r = root_of(sum), i = T(1) / (r + alpha);
    const T x = r * i, y = alpha * i, v = q * i, rho = x + v, kappa = x + y * rho;
    const T by_rho = pulled + grad_log_det * (features - T(1)) / rho;
    const T by_kappa = grad_log_det / kappa;
    factor = rho;
    const T by_r = i * (by_rho * (y - v) + by_kappa * y * (T(1) - rho + y - v));
    // d / r has length 1 at most; where r is 0, so is d.
    const T smallest = sizeof(T) == 8 ? T(1e-150) : T(1e-18);
    coefficient = by_r / (r > smallest ? r : smallest);
    by_alpha = i * (by_kappa * (x * rho - x - y * rho) - by_rho * rho);
    by_q = i * (by_rho + by_kappa * y);
  }

  template <class T>
  DEEPGEN_HD static void pull(const T* v, T z, T factor, T coefficient, T& g, T& by_c, T&) {
    const T before = factor * g + coefficient * (z - v[0]);
    by_c = g - before;
    g = before;
  }
};

namespace cpu {
void radial_chain(const FlowChain&);
void radial_chain_backward(const FlowChainBackward&);
}  // namespace cpu

namespace cuda {
void radial_chain(const FlowChain&, void* stream);
void radial_chain_backward(const FlowChainBackward&, void* stream);
ChainScratch radial_chain_scratch(Storage, int64_t batch, int64_t features);
}  // namespace cuda

}  // namespace deepgen
