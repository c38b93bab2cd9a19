// Elementary functions that both devices share.
//
// On a GPU these are the accurate library functions: the kernels are bound by memory, not by
// arithmetic. On the CPU the float versions are branch-free polynomials, so that a plain loop over
// them becomes SIMD code under any instruction set (libm's expf costs 3.5 ns an element, these 0.3
// to 0.5); double keeps libm, it is the oracle. exp is after Cephes (Moshier), the others are own
// fits. Errors stay below 3 units in the last place of float on the whole range. What such loops
// wait for is the chain of dependent operations times their number: hence pairs of terms (Estrin),
// comparisons of bits where they need no NaN, and none where the range is known.
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

// Of the bits of floats without sign these are also the smaller and the larger float, in one
// instruction each; NaN counts as the largest.
DEEPGEN_HD int32_t smaller(int32_t a, int32_t b) {
  return a < b ? a : b;
}
DEEPGEN_HD int32_t larger(int32_t a, int32_t b) {
  return a < b ? b : a;
}

// e^x = 2^n e^r with |r| <= ln(2)/2. Adding 1.5 * 2^23 rounds x / ln 2 to an integer and leaves it
// in the low bits. The polynomial is doubled and the power halved, so that one product serves up to
// the overflow to inf; below 1e-38 the result is 0. In pairs of terms (Estrin), not one after the
// other: the chain of dependent products, not their number, is what such a loop waits for. The
// comparisons let NaN through.
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

// e^x for |x| <= 1 as exp above, without its ends: n is -1, 0 or 1. R as in decay below.
DEEPGEN_HD float exp_unit(float x) {
  const float rounder = 12582912.0f;
  const float shifted = x * 1.44269504088896341f + rounder;
  const float r = x - (shifted - rounder) * 0.693147180559945309f;
  const float r2 = r * r;
  float p = 1.3821055e-3f * r2 + (8.3686747e-3f * r + 4.1668262e-2f);
  p = p * r2 + (1.6666521e-1f * r + 4.9999994e-1f);
  p = p * r2 + (r + 1.0f);
  return p * from_bits((to_bits(shifted) - (0x4B400000 - 127)) << 23);
}

// e^-|x| as exp above, but with only one end to watch, and that by a mask on the result: what comes
// before it is of no use below e^-87.5, and NaN passes. 1 + r + r^2 R(r) with R of degree 4, an own
// minimax fit on |r| <= ln(2)/2: relative error 3e-9 before rounding.
DEEPGEN_HD float decay(float x) {
  const float rounder = 12582912.0f;
  const float a = -std::fabs(x);
  const float shifted = a * 1.44269504088896341f + rounder;
  const float n = shifted - rounder;
  const float r = (a - n * 0.693359375f) + n * 2.12194440e-4f;
  const float r2 = r * r;
  float p = 1.3821055e-3f * r2 + (8.3686747e-3f * r + 4.1668262e-2f);
  p = p * r2 + (1.6666521e-1f * r + 4.9999994e-1f);
  p = p * r2 + (r + 1.0f);
  // Unsigned: far below the end the power is nonsense, and must wrap to be masked.
  const uint32_t power = static_cast<uint32_t>(to_bits(shifted)) - (0x4B400000 - 127);
  p *= from_bits(static_cast<int32_t>(power << 23));
  return from_bits(to_bits(p) & -static_cast<int32_t>(!(a < -87.5f)));
}

// ln(1 + u) = u + u^2 R(u) for 0 <= u <= 1, relatively exact also for tiny u, and without a
// division. R, of degree 7, is an own minimax fit: relative error 4e-8 before rounding.
DEEPGEN_HD float log1p_unit(float u) {
  const float u2 = u * u;
  const float low = (3.3321330e-1f * u - 4.9999648e-1f) + (1.9153848e-1f * u - 2.4857217e-1f) * u2;
  const float high = (7.9208829e-2f * u - 1.3754188e-1f) + (5.3654225e-3f * u - 3.0068301e-2f) * u2;
  return (high * (u2 * u2) + low) * u2 + u;
}

// ln(1 + u) for 0 <= u < 2^24, as log1p_unit of what is left of u when the power of two in 1 + u is
// taken out: u itself where that is 1.
DEEPGEN_HD float log1p(float u) {
  const int32_t n = (to_bits(1.0f + u) >> 23) - 127;
  const float part = from_bits((127 - n) << 23);
  return log1p_unit(u * part + (part - 1.0f)) + static_cast<float>(n) * 0.693147180559945309f;
}

// ln x for x >= 0, subnormal ones included; -inf at 0, NaN below. x = 2^n (1 + f) with 1 + f
// between sqrt(1/2) and sqrt(2); the polynomial is Cephes' (Moshier).
DEEPGEN_HD float log(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const int32_t bits = to_bits(tiny ? x * 33554432.0f : x);
  const int32_t power = (bits - 0x3F3504F3) >> 23;
  const float f = from_bits(bits - (power << 23)) - 1.0f;
  const float n = static_cast<float>(power - (tiny ? 25 : 0));
  const float f2 = f * f;
  float p = (7.0376836292e-2f * f - 1.1514610310e-1f) * f2;
  p += 1.1676998740e-1f * f - 1.2420140846e-1f;
  p = p * f2 + (1.4249322787e-1f * f - 1.6668057665e-1f);
  p = p * f2 + (2.0000714765e-1f * f - 2.4999993993e-1f);
  p = p * f + 3.3333331174e-1f;
  const float tail = (p * f - 0.5f) * f2 - n * 2.12194440e-4f;
  const float y = (tail + f) + n * 0.693359375f;
  const float end = x == 0.0f ? from_bits(static_cast<int32_t>(0xFF800000)) : x + x;
  return x > 0.0f && x <= 3.4028234e38f ? y : (x < 0.0f ? from_bits(0x7FC00000) : end);
}

// x P(x^2) / Q(x^2) with P and Q of degree 4: an own minimax fit on |x| <= 8.5, relative error 2e-8
// before rounding. Beyond, where tanh is 1 within 9e-8, P and Q stay what they are there, and the
// quotient grows with x until the bound of 1 stops it.
DEEPGEN_HD float tanh(float x) {
  const float y = from_bits(smaller(to_bits(x * x), to_bits(72.25f)));
  const float y2 = y * y;
  const float p = (1.4350655e-8f * y + 2.1305628e-5f) * y2 + (3.5371797e-3f * y + 1.3415861e-1f);
  const float q = (8.1771990e-7f * y + 3.3541306e-4f) * y2 + (2.6034608e-2f * y + 4.6749187e-1f);
  const float t = x * (p * y + 1.0f) / (q * y + 1.0f);
  const float a = std::fabs(t);
  return std::copysign(a > 1.0f ? 1.0f : a, x);
}

// atan(x / scale) for scale > 0. One division makes z = min(|x|, scale) / max(|x|, scale); atan z =
// z + z^3 R(z^2), of which |x| > scale has the complement to pi/2. R, of degree 7, is an own
// minimax fit: relative error 2e-8 before rounding.
DEEPGEN_HD float atan(float x, float scale) {
  const int32_t a = to_bits(std::fabs(x));
  const int32_t b = to_bits(scale);
  const int32_t far = (b - a) >> 31;
  const float z = from_bits(smaller(a, b)) / from_bits(larger(a, b));
  const float y = z * z;
  const float y2 = y * y;
  const float low = (1.9993767e-1f * y - 3.3333153e-1f) + (1.0665768e-1f * y - 1.4211002e-1f) * y2;
  const float high = (4.3204635e-2f * y - 7.5516559e-2f) + (2.9193931e-3f * y - 1.6363103e-2f) * y2;
  const float near = (high * (y2 * y2) + low) * (y * z) + z;
  const float offset = from_bits(far & to_bits(1.5707963267948966f));
  return std::copysign(offset + from_bits(to_bits(near) ^ (far & INT32_MIN)), x);
}

// sin(pi x) = (-1)^n sin(pi (x - n)) for the integer n next to x, of which r P(r^2) with P of
// degree 4, an own minimax fit on |r| <= 1/2, relative error 5e-9 before rounding. No multiple of
// pi is subtracted, so large x lose nothing. From 2^22 on, where floats hardly tell halves, it is
// 0.
DEEPGEN_HD float sin_pi(float x) {
  const float rounder = 12582912.0f;
  x = std::fabs(x) < 4194304.0f ? x : x - x;  // NaN and inf: NaN
  const float shifted = x + rounder;
  const float r = x - (shifted - rounder), y = r * r, y2 = y * y;
  const float low = (-0.190426384f * y + 0.811712405f) * y2 + (-1.64493308f * y + 1.0f);
  const float p = (0.0246882394f * y2) * y2 + low;
  const float sine = (3.14159265f * r) * p;
  return from_bits(to_bits(sine) ^
                   static_cast<int32_t>(static_cast<uint32_t>(to_bits(shifted)) << 31));
}

}  // namespace polynomial

// The names kernels use, for float and double on both devices: exp; e^x for |x| <= 1; e^-|x|; tanh;
// atan(x / scale) for scale > 0; ln(1 + u) for 0 <= u <= 1, for 0 <= u < 2^24; ln x; sin(pi x);
// |x|.
#if defined(__CUDA_ARCH__)
DEEPGEN_HD float exp_of(float x) {
  return expf(x);
}
DEEPGEN_HD float exp_of_unit(float x) {
  return expf(x);
}
DEEPGEN_HD float decay_of(float x) {
  return expf(-fabsf(x));
}
DEEPGEN_HD float tanh_of(float x) {
  return tanhf(x);
}
DEEPGEN_HD float atan_of(float x, float scale) {
  return atanf(x / scale);
}
DEEPGEN_HD float log1p_of_unit(float u) {
  return log1pf(u);
}
DEEPGEN_HD float log1p_of(float u) {
  return log1pf(u);
}
DEEPGEN_HD float log_of(float x) {
  return logf(x);
}
DEEPGEN_HD float sin_pi_of(float x) {
  return sinpif(x);
}
DEEPGEN_HD double sin_pi_of(double x) {
  return sinpi(x);
}
#else
DEEPGEN_HD float exp_of(float x) {
  return polynomial::exp(x);
}
DEEPGEN_HD float exp_of_unit(float x) {
  return polynomial::exp_unit(x);
}
DEEPGEN_HD float decay_of(float x) {
  return polynomial::decay(x);
}
DEEPGEN_HD float tanh_of(float x) {
  return polynomial::tanh(x);
}
DEEPGEN_HD float atan_of(float x, float scale) {
  return polynomial::atan(x, scale);
}
DEEPGEN_HD float log1p_of_unit(float u) {
  return polynomial::log1p_unit(u);
}
DEEPGEN_HD float log1p_of(float u) {
  return polynomial::log1p(u);
}
DEEPGEN_HD float log_of(float x) {
  return polynomial::log(x);
}
DEEPGEN_HD float sin_pi_of(float x) {
  return polynomial::sin_pi(x);
}
DEEPGEN_HD double sin_pi_of(double x) {
  return std::sin(3.14159265358979323846 * (x - 2 * std::nearbyint(x / 2)));
}
#endif
DEEPGEN_HD double exp_of(double x) {
  return std::exp(x);
}
DEEPGEN_HD double exp_of_unit(double x) {
  return std::exp(x);
}
DEEPGEN_HD double decay_of(double x) {
  return std::exp(-std::fabs(x));
}
DEEPGEN_HD double tanh_of(double x) {
  return std::tanh(x);
}
DEEPGEN_HD double atan_of(double x, double scale) {
  return std::atan(x / scale);
}
DEEPGEN_HD double log1p_of_unit(double u) {
  return std::log1p(u);
}
DEEPGEN_HD double log1p_of(double u) {
  return std::log1p(u);
}
DEEPGEN_HD double log_of(double x) {
  return std::log(x);
}
DEEPGEN_HD float magnitude_of(float x) {
  return fabsf(x);
}
DEEPGEN_HD double magnitude_of(double x) {
  return std::fabs(x);
}

}  // namespace deepgen
