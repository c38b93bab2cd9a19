// Elementary functions that both devices share.
//
// On a GPU these are the accurate library functions: the kernels are bound by memory, not by arithmetic. On the CPU
// the float versions are branch-free polynomials, so that a plain loop over them becomes SIMD code under any
// instruction set (libm's expf costs 3.5 ns an element, these 0.3 to 0.5); double keeps libm, it is the oracle.
// Polynomials: exp and atan after Cephes (Moshier), log1p as the series of 2 atanh(u / (2 + u)), tanh through expm1
// of a half-range polynomial. Errors stay below 2 units in the last place of float on the whole range.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace deepgen {

namespace polynomial {

DEEPGEN_HD float from_bits(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

DEEPGEN_HD int32_t to_bits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// chosen ? a : b on bits. A plain conditional invites the compiler to branch, and then no loop is vectorised.
DEEPGEN_HD float select(bool chosen, float a, float b) {
  const int32_t mask = -static_cast<int32_t>(chosen);
  return from_bits((to_bits(a) & mask) | (to_bits(b) & ~mask));
}

// e^x = 2^n e^r with |r| <= ln(2)/2. Adding 1.5 * 2^23 rounds x / ln 2 to an integer and leaves it in the low bits.
// The polynomial is doubled and the power halved, so that one product serves up to the overflow to inf; below 1e-38
// the result is 0. In pairs of terms (Estrin), not one after the other: the chain of dependent products, not their
// number, is what such a loop waits for. The comparisons let NaN through.
DEEPGEN_HD float exp(float x) {
  const float rounder = 12582912.0f;
  x = x > 89.5f ? 89.5f : x;
  x = x < -87.5f ? -87.5f : x;
  const float shifted = x * 1.44269504088896341f + rounder;
  const float n = shifted - rounder;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const float r2 = r * r;
  float p = (2 * 1.9875691500e-4f * r + 2 * 1.3981999507e-3f) * r2;
  p += 2 * 8.3334519073e-3f * r + 2 * 4.1665795894e-2f;
  p = p * r2 + (2 * 1.6666665459e-1f * r + 2 * 5.0000001201e-1f);
  p = p * r2 + (2 * r + 2);
  return p * from_bits((to_bits(shifted) - (0x4B400000 - 126)) << 23);
}

// ln(1 + u) for 0 <= u <= 1, relatively exact also for tiny u.
DEEPGEN_HD float log1p_unit(float u) {
  const float w = u / (2.0f + u);
  const float w2 = w * w;
  float p = 1.0f / 15.0f;
  p = p * w2 + 1.0f / 13.0f;
  p = p * w2 + 1.0f / 11.0f;
  p = p * w2 + 1.0f / 9.0f;
  p = p * w2 + 1.0f / 7.0f;
  p = p * w2 + 1.0f / 5.0f;
  p = p * w2 + 1.0f / 3.0f;
  return 2.0f * w + 2.0f * w * w2 * p;
}

DEEPGEN_HD float tanh(float x) {
  const float a = std::fabs(x);
  const float x2 = x * x;
  float small = -5.70498872745e-3f;
  small = small * x2 + 2.06390887954e-2f;
  small = small * x2 - 5.37397155531e-2f;
  small = small * x2 + 1.33314422036e-1f;
  small = small * x2 - 3.33332819422e-1f;
  small = small * x2 * x + x;
  const float e = polynomial::exp(-2.0f * a);
  const float large = std::copysign((1.0f - e) / (1.0f + e), x);
  return select(a < 0.625f, small, large);
}

DEEPGEN_HD float atan(float x) {
  const float a = std::fabs(x);
  const bool far = a > 2.414213562373095f;
  const bool middle = a > 0.4142135623730950f;
  // One division serves all three ranges: -1/a, (a-1)/(a+1), a/1.
  const float numerator = far ? -1.0f : (middle ? a - 1.0f : a);
  const float denominator = far ? a : (middle ? a + 1.0f : 1.0f);
  const float offset = far ? 1.5707963267948966f : (middle ? 0.7853981633974483f : 0.0f);
  const float z = numerator / denominator;
  const float z2 = z * z;
  float p = 8.05374449538e-2f;
  p = p * z2 - 1.38776856032e-1f;
  p = p * z2 + 1.99777106478e-1f;
  p = p * z2 - 3.33329491539e-1f;
  p = p * z2 * z + z + offset;
  return std::copysign(p, x);
}

}  // namespace polynomial

// The names kernels use, for float and double on both devices.
#if defined(__CUDA_ARCH__)
DEEPGEN_HD float exp_of(float x) { return expf(x); }
DEEPGEN_HD float tanh_of(float x) { return tanhf(x); }
DEEPGEN_HD float atan_of(float x) { return atanf(x); }
DEEPGEN_HD float log1p_of_unit(float u) { return log1pf(u); }
#else
DEEPGEN_HD float exp_of(float x) { return polynomial::exp(x); }
DEEPGEN_HD float tanh_of(float x) { return polynomial::tanh(x); }
DEEPGEN_HD float atan_of(float x) { return polynomial::atan(x); }
DEEPGEN_HD float log1p_of_unit(float u) { return polynomial::log1p_unit(u); }
#endif
DEEPGEN_HD double exp_of(double x) { return std::exp(x); }
DEEPGEN_HD double tanh_of(double x) { return std::tanh(x); }
DEEPGEN_HD double atan_of(double x) { return std::atan(x); }
DEEPGEN_HD double log1p_of_unit(double u) { return std::log1p(u); }

}  // namespace deepgen
