// masked_conv2d: a convolution that sees only what comes before a pixel in raster order.
//
//   y[o, i, j] = bias[o] + sum over taps (s, t), channels c of w[o, c, s, t] x[c, i + s, j + t]
//
// with taps s < 0, or s = 0 and t < 0, for all channels, and at s = t = 0 the channels whose group
// comes before o's (mask A) or does not come after it (mask B). Outside the image x is zero. Taps
// that reach no pixel of this image are left out.
#pragma once

#include "host_device.h"
#include "operand.h"

namespace deepgen {

// A tensor (batch, channels, height, width) with strides in elements.
struct PixelOperand {
  void* data = nullptr;
  int64_t batch = 0, channel = 0, row = 0, column = 0;

  DEEPGEN_HD int64_t offset(int64_t n, int64_t c, int64_t i, int64_t j) const {
    return n * batch + c * channel + i * row + j * column;
  }
};

struct MaskedKernel {
  int64_t in_channels = 1, out_channels = 1, kernel_height = 1, kernel_width = 1;
  int64_t dilation = 1, groups = 1;
  bool sees_own_group = true;  // mask B

  // At the centre tap, output o sees the channels [0, visible_inputs(o)).
  DEEPGEN_HD int64_t visible_inputs(int64_t o) const {
    return (o / (out_channels / groups) + (sees_own_group ? 1 : 0)) * (in_channels / groups);
  }
  // At the centre tap, input c is seen by the channels [first_output(c), out_channels).
  DEEPGEN_HD int64_t first_output(int64_t c) const {
    return (c / (in_channels / groups) + (sees_own_group ? 0 : 1)) * (out_channels / groups);
  }
  DEEPGEN_HD int64_t weight(int64_t o, int64_t c, int64_t row, int64_t column) const {
    return ((o * in_channels + c) * kernel_height + row) * kernel_width + column;
  }
  DEEPGEN_HD int64_t weights() const {
    return out_channels * in_channels * kernel_height * kernel_width;
  }
};

struct ImageExtent {
  int64_t batch = 0, height = 1, width = 1;

  DEEPGEN_HD int64_t positions() const { return height * width; }
};

struct MaskedConv2d {
  Storage storage;
  MaskedKernel kernel;
  ImageExtent extent;
  PixelOperand x, y;
  const void *weight, *bias;  // contiguous; bias may be null

  // How many rows of taps above the centre, and how many taps to its sides, can reach a pixel.
  DEEPGEN_HD int64_t rows_above() const {
    const int64_t rows = kernel.kernel_height / 2, most = (extent.height - 1) / kernel.dilation;
    return rows < most ? rows : most;
  }
  DEEPGEN_HD int64_t columns_aside() const {
    const int64_t columns = kernel.kernel_width / 2, most = (extent.width - 1) / kernel.dilation;
    return columns < most ? columns : most;
  }
};

// The gradients with respect to x and to the weight, of y's gradient; either may be null.
struct MaskedConv2dBackward {
  MaskedConv2d forward;  // x, weight; y is the gradient of y
  PixelOperand grad_x;
  void* grad_weight;

  // Room for the weight's gradient of each piece of the positions, of the type of sums. CUDA only.
  void* partial_sums = nullptr;
  int64_t pieces = 1;
};

namespace cpu {
// Storage::f32 only.
void masked_conv2d(const MaskedConv2d&);
void masked_conv2d_backward(const MaskedConv2dBackward&);
}  // namespace cpu

namespace cuda {
void masked_conv2d(const MaskedConv2d&, void* stream);
void masked_conv2d_backward(const MaskedConv2dBackward&, void* stream);
// Into how many pieces the weight's gradient cuts the positions.
int64_t masked_conv2d_pieces(const MaskedConv2d&);
}  // namespace cuda

}  // namespace deepgen
