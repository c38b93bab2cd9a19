// channel_affine: y = x exp(l) + t with one l and one t a channel (activation normalisation), its
// inverse, its gradient.
//
// log det = positions * sum of l, the same for every sample; positions = elements of a channel in
// one sample. Gradients need two sums a channel, A = sum of g x and B = sum of g, over samples and
// positions:
//   forward: dx = g s    dl = s A + positions * sum G     dt = B
//   inverse: dy = g / s  dl = -A - positions * sum G      dt = -B / s
// with x the argument of s in both directions (the result, for the inverse) and G the gradient of
// log det.
#pragma once

#include "elementary.h"
#include "operand.h"

namespace deepgen {

// A tensor seen as (batch, channels, outer, inner), strides in elements.
struct ChannelOperand {
  void* data = nullptr;
  int64_t batch = 0, channel = 0, outer = 0, inner = 0;
};

struct ChannelExtent {
  int64_t batch = 0, channels = 1, outer = 1, inner = 1;

  DEEPGEN_HD int64_t positions() const { return outer * inner; }
};

struct ChannelAffine {
  Storage storage;
  bool inverse;
  ChannelExtent extent;
  ChannelOperand x, y;
  const void *log_scale, *shift;  // (channels,), contiguous, of x's storage type
  void* log_det;                  // (batch,), double for f64, else float
};

struct ChannelAffineBackward {
  Storage storage;
  bool inverse;
  ChannelExtent extent;
  ChannelOperand grad_output, x, grad_input;
  const void* log_scale;
  const void* grad_log_det;           // (batch,), contiguous, of log_det's type
  void *grad_log_scale, *grad_shift;  // (channels,)

  // Room for the sums of pieces, (2, channels, pieces), of log_det's type. CUDA only.
  void* partial_sums = nullptr;
  int64_t pieces = 1;
};

namespace cpu {
void channel_affine(const ChannelAffine&);
void channel_affine_backward(const ChannelAffineBackward&);
}  // namespace cpu

namespace cuda {
void channel_affine(const ChannelAffine&, void* stream);
void channel_affine_backward(const ChannelAffineBackward&, void* stream);
// Into how many pieces the backward kernel cuts a channel.
int64_t channel_affine_pieces(const ChannelExtent&);
}  // namespace cuda

}  // namespace deepgen
