// glow_conv_net: the coupling network of Glow on images (Kingma & Dhariwal, 2018).
//
//   a = relu(w_in * x + b_in + context)     3x3
//   b = relu(w_hidden a + b_hidden)         1x1
//   y = (w_out * b + b_out) exp(3 log_scale)  3x3
//
// Zeros around the image. Weights lie with their channels last: (hidden, 3, 3, in) and
// (out, 3, 3, hidden).
#pragma once

#include "masked_conv2d.h"  // PixelOperand
#include "operand.h"

namespace deepgen {

struct GlowConvNet {
  static constexpr int64_t chunk_positions = 256;

  Storage storage;
  int64_t batch, in_channels, hidden, out_channels, height, width;
  PixelOperand x, context;  // context: of `hidden` channels, or null
  PixelOperand y;           // or the gradient of y
  const void *w_in, *b_in, *w_hidden, *b_hidden, *w_out, *b_out, *log_scale;
  // a and b of one chunk of samples after the other, (2, hidden, samples, height, width) each;
  // where null, nobody keeps them.
  void* activations = nullptr;

  int64_t positions() const { return height * width; }
  // So many that the products are long enough and their results stay in a core's cache in between,
  // and two chunks at least, for two threads; of any number of threads the same.
  int64_t samples_a_chunk() const {
    const int64_t fitting = chunk_positions / (positions() > 0 ? positions() : 1);
    const int64_t half = (batch + 1) / 2, most = fitting < half ? fitting : half;
    return most < 1 ? 1 : most;
  }
  int64_t chunks() const { return (batch + samples_a_chunk() - 1) / samples_a_chunk(); }
};

// Gradients; null where not wanted. Those of the parameters are all written, or none.
struct GlowConvNetBackward {
  GlowConvNet forward;  // with activations; y is the gradient of y
  PixelOperand grad_x, grad_context;
  void *w_in = nullptr, *b_in = nullptr, *w_hidden = nullptr, *b_hidden = nullptr, *w_out = nullptr,
       *b_out = nullptr, *log_scale = nullptr;
};

namespace cpu {
// Storage::f32 and f64.
void glow_conv_net(const GlowConvNet&);
void glow_conv_net_backward(const GlowConvNetBackward&);
}  // namespace cpu

}  // namespace deepgen
