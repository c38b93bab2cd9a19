// Activations and element maps of one sample, chosen at run time.
#pragma once

#include "../autoregressive_inverse.h"

// Keeps long functions, called from many places, from costing the compiler minutes.
#if defined(__CUDACC__)
#define DEEPGEN_NOINLINE __noinline__
#else
#define DEEPGEN_NOINLINE __attribute__((noinline))
#endif

namespace deepgen::cuda {
namespace {

template <class T>
__device__ DEEPGEN_NOINLINE T activated(Activation activation, T v) {
  if (activation == Activation::relu) return activation_of<Activation::relu>(v);
  if (activation == Activation::elu) return activation_of<Activation::elu>(v);
  return activation_of<Activation::tanh>(v);
}

template <class T>
__device__ T activation_slope(Activation activation, T result) {
  if (activation == Activation::relu) return activation_slope_of<Activation::relu>(result);
  if (activation == Activation::elu) return activation_slope_of<Activation::elu>(result);
  return activation_slope_of<Activation::tanh>(result);
}

template <ScaleMap M, class T>
__device__ void invert_affine(T raw, T shift, T clamp, T* x, T* log_derivative) {
  const T log = log_scale_of<M>(raw, clamp);
  *x = (*x - shift) * factor_of<M>(raw, log, true);
  *log_derivative = -log;
}

// As on the CPU: of_x becomes v, of_raw and of_shift the cotangents of the parameters.
template <ScaleMap M, class T>
__device__ void adjoint_affine(T raw, T x, T grad_log_det, T clamp, T* of_x, T* of_raw,
                               T* of_shift) {
  const T log = log_scale_of<M>(raw, clamp);
  const T g = *of_x, v = g * factor_of<M>(raw, log, true);
  *of_raw = -(g * x + grad_log_det) * slope_of<M>(raw, log, clamp);
  *of_shift = -v;
  *of_x = v;
}

template <class F>
__device__ void with_scale_map(ScaleMap map, F f) {
  switch (map) {
    case ScaleMap::exp:
      return f.template operator()<ScaleMap::exp>();
    case ScaleMap::tanh:
      return f.template operator()<ScaleMap::tanh>();
    case ScaleMap::sigmoid:
      return f.template operator()<ScaleMap::sigmoid>();
    case ScaleMap::atan:
      return f.template operator()<ScaleMap::atan>();
    case ScaleMap::softclip:
      return f.template operator()<ScaleMap::softclip>();
    case ScaleMap::softplus:
      return f.template operator()<ScaleMap::softplus>();
    case ScaleMap::floored_sigmoid:
      return f.template operator()<ScaleMap::floored_sigmoid>();
    case ScaleMap::reciprocal_sigmoid:  // no autoregressive element
      return;
  }
}

}  // namespace
}  // namespace deepgen::cuda
