// affine_coupling: y = x s(raw) + t, its inverse, its gradient, and log det = sum of log s over all
// but the batch.
//
// What the glue (affine_coupling.cpp), the CPU kernel and the CUDA kernel agree on: the problem's
// shape, the raw pointers, and the formulas of one element.
#pragma once

#include <cstdint>

#include "elementary.h"
#include "operand.h"

namespace deepgen {

enum class ScaleMap : int {
  exp,
  tanh,
  sigmoid,
  atan,
  softclip,
  softplus,
  floored_sigmoid,
  reciprocal_sigmoid
};

// The least scale of softplus and floored_sigmoid.
constexpr double scale_floor = 1e-3;

struct AffineCoupling {
  Storage storage;
  ScaleMap scale_map;
  double clamp;  // of the atan and softclip maps
  bool inverse;
  Extent extent;

  Operand x, raw_scale, shift, y;
  Operand mask;   // bool, batch_stride 0, absent without a mask: where false, y = x
  void* log_det;  // (batch,), double for f64, else float

  // The half that a coupling layer leaves as it is, and where y wants it; absent alone.
  Operand kept, kept_copy;

  // Room for the sums of pieces of long rows, (batch, pieces), of log_det's type. CUDA only; null
  // for one piece.
  void* partial_sums = nullptr;
  int64_t pieces = 1;
};

// The gradient. `x` is the argument of s in both directions, the input of the forward map and the
// output of the inverse, so that neither the shift nor y is read.
//   forward: dx = g s          draw = (g x s + G) l'     dt = g
//   inverse: dy = g / s        draw = -(g x + G) l'      dt = -g / s
// with l = log s(raw), g the gradient of the output and G that of log_det.
struct AffineCouplingBackward {
  Storage storage;
  ScaleMap scale_map;
  double clamp;
  bool inverse;
  Extent extent;

  Operand grad_output, x, raw_scale;
  Operand mask;
  const void* grad_log_det;  // (batch,), of log_det's type
  int64_t grad_log_det_stride;
  Operand grad_input, grad_raw_scale;
  Operand grad_shift;  // absent where the caller does not need it: forward without a mask, it is g
                       // itself
};

namespace cpu {
void affine_coupling(const AffineCoupling&);
void affine_coupling_backward(const AffineCouplingBackward&);
}  // namespace cpu

namespace cuda {
void affine_coupling(const AffineCoupling&, void* stream);
void affine_coupling_backward(const AffineCouplingBackward&, void* stream);
// Into how many pieces the kernel cuts a row, so that few long rows still fill the device.
int64_t affine_coupling_pieces(const Extent&);
}  // namespace cuda

// One element. Three functions of plain scalars: a struct of results kept the vectoriser away; what
// they compute in common the compiler finds, but for a division by the same number: hence 1 / (1 +
// e) and a product.

// exp(-|v|) with v = raw + 2: both sides of the sigmoid without overflow.
template <class T>
DEEPGEN_HD T sigmoid_decay(T raw) {
  return decay_of(raw + T(2));
}

// s of the two maps with a floor, softplus(raw) + floor and sigmoid(raw + 2) + floor.
template <ScaleMap M, class T>
DEEPGEN_HD T floored_scale_of(T raw) {
  if constexpr (M == ScaleMap::softplus) {
    return (raw < T(0) ? T(0) : raw) + log1p_of_unit(decay_of(raw)) + T(scale_floor);
  } else {
    const T e = sigmoid_decay(raw);
    return (raw + T(2) < T(0) ? e : T(1)) / (T(1) + e) + T(scale_floor);
  }
}

// log s.
template <ScaleMap M, class T>
DEEPGEN_HD T log_scale_of(T raw, T clamp) {
  if constexpr (M == ScaleMap::exp) {
    return raw;
  } else if constexpr (M == ScaleMap::tanh) {
    return tanh_of(raw);
  } else if constexpr (M == ScaleMap::sigmoid) {
    const T v = raw + T(2);
    return (v < T(0) ? v : T(0)) - log1p_of_unit(sigmoid_decay(raw));
  } else if constexpr (M == ScaleMap::reciprocal_sigmoid) {
    return -log_scale_of<ScaleMap::sigmoid>(raw, clamp);
  } else if constexpr (M == ScaleMap::softclip) {
    return clamp * (raw / (clamp + magnitude_of(raw)));
  } else if constexpr (M == ScaleMap::softplus || M == ScaleMap::floored_sigmoid) {
    return log_of(floored_scale_of<M>(raw));
  } else {
    return clamp * T(0.63661977236758134308) * atan_of(raw, clamp);
  }
}

// What x, or y - t, is multiplied with: s forward, 1/s in the inverse.
template <ScaleMap M, class T>
DEEPGEN_HD T factor_of(T raw, T log_scale, bool inverse) {
  if constexpr (M == ScaleMap::sigmoid) {
    const T e = sigmoid_decay(raw);
    const T positive = raw + T(2) < T(0) ? e : T(1);  // s = positive / (1 + e)
    return inverse ? (T(1) + e) / positive : positive * (T(1) / (T(1) + e));
  } else if constexpr (M == ScaleMap::reciprocal_sigmoid) {
    return factor_of<ScaleMap::sigmoid>(raw, -log_scale, !inverse);
  } else if constexpr (M == ScaleMap::tanh) {
    return exp_of_unit(inverse ? -log_scale : log_scale);
  } else if constexpr (M == ScaleMap::softplus || M == ScaleMap::floored_sigmoid) {
    const T s = floored_scale_of<M>(raw);
    return inverse ? T(1) / s : s;
  } else {
    return exp_of(inverse ? -log_scale : log_scale);
  }
}

// d log s / d raw.
template <ScaleMap M, class T>
DEEPGEN_HD T slope_of(T raw, T log_scale, T clamp) {
  if constexpr (M == ScaleMap::exp) {
    return T(1);
  } else if constexpr (M == ScaleMap::tanh) {
    return T(1) - log_scale * log_scale;
  } else if constexpr (M == ScaleMap::sigmoid) {
    // 1 - s without cancellation.
    const T e = sigmoid_decay(raw);
    return (raw + T(2) < T(0) ? T(1) : e) * (T(1) / (T(1) + e));
  } else if constexpr (M == ScaleMap::reciprocal_sigmoid) {
    return -slope_of<ScaleMap::sigmoid>(raw, -log_scale, clamp);
  } else if constexpr (M == ScaleMap::softclip) {
    const T part = clamp / (clamp + magnitude_of(raw));
    return part * part;
  } else if constexpr (M == ScaleMap::softplus) {
    const T e = decay_of(raw);
    return (raw < T(0) ? e : T(1)) / ((T(1) + e) * floored_scale_of<M>(raw));
  } else if constexpr (M == ScaleMap::floored_sigmoid) {
    const T e = sigmoid_decay(raw);
    return e / ((T(1) + e) * (T(1) + e) * floored_scale_of<M>(raw));
  } else {
    const T ratio = raw / clamp;
    return T(0.63661977236758134308) / (T(1) + ratio * ratio);
  }
}

}  // namespace deepgen
