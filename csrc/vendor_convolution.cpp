#include "vendor_convolution.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/zeros.h>

#include <vector>

namespace deepgen {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// One ordinary convolution of a part of x with a part of the weight, added to a part of y.
struct Piece {
  int64_t first_output, outputs, inputs, first_row, rows, first_column, columns;
  int64_t below, right;        // rows and columns of x that it does not reach
  int64_t above, left, aside;  // padding; aside on both sides
  int64_t dilation;

  Tensor weight_of(const Tensor& weight) const {
    return weight.narrow(0, first_output, outputs)
        .narrow(1, 0, inputs)
        .narrow(2, first_row, rows)
        .narrow(3, first_column, columns);
  }
  Tensor input_of(const Tensor& x) const {
    return x.narrow(1, 0, inputs).narrow(2, 0, x.size(2) - below).narrow(3, 0, x.size(3) - right);
  }
  Tensor padded(const Tensor& x) const {
    const Tensor input = input_of(x);
    return above || left ? at::constant_pad_nd(input, {left, 0, above, 0}) : input;
  }
  Tensor output_of(const Tensor& y) const { return y.narrow(1, first_output, outputs); }
  Tensor convolve(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) const {
    return at::convolution(padded(x), weight_of(weight), bias, {1, 1}, {0, aside},
                           {dilation, dilation}, false, {0, 0}, 1);
  }
};

std::vector<Piece> pieces_of(const MaskedConv2d& p) {
  const MaskedKernel& k = p.kernel;
  const int64_t above = p.rows_above(), aside = p.columns_aside(), d = k.dilation;
  const int64_t row = k.kernel_height / 2, column = k.kernel_width / 2;
  const int64_t all_out = k.out_channels, all_in = k.in_channels;
  std::vector<Piece> pieces;
  if (above) {
    pieces.push_back({0, all_out, all_in, row - above, above, column - aside, 2 * aside + 1, d, 0,
                      above * d, 0, aside * d, d});
  }
  const bool with_centre = k.groups == 1 && k.sees_own_group;
  if (aside || with_centre) {
    pieces.push_back({0, all_out, all_in, row, 1, column - aside, aside + with_centre, 0,
                      with_centre ? 0 : d, 0, aside * d, 0, d});
  }
  for (int64_t g = 0; g < k.groups && !with_centre; ++g) {
    const int64_t outputs = all_out / k.groups, inputs = k.visible_inputs(g * outputs);
    if (inputs)
      pieces.push_back({g * outputs, outputs, inputs, row, 1, column, 1, 0, 0, 0, 0, 0, d});
  }
  return pieces;
}

}  // namespace

Tensor vendor_convolution(const MaskedConv2d& p, const Tensor& x, const Tensor& weight,
                          const std::optional<Tensor>& bias) {
  const auto bias_alone = [&] {
    Tensor y = at::zeros({x.size(0), weight.size(0), x.size(2), x.size(3)}, x.options());
    return bias ? y.add_(bias->view({1, -1, 1, 1})) : y;
  };
  Tensor y;
  for (const Piece& piece : pieces_of(p)) {
    if (!y.defined() && piece.outputs == weight.size(0)) {
      y = piece.convolve(x, weight, bias);
      continue;
    }
    if (!y.defined()) y = bias_alone();
    piece.output_of(y).add_(piece.convolve(x, weight, {}));
  }
  return y.defined() ? y : bias_alone();
}

void vendor_convolution_backward(const MaskedConv2d& p, const Tensor& grad_output, const Tensor& x,
                                 const Tensor& weight, const Tensor& grad_x,
                                 const Tensor& grad_weight) {
  if (grad_x.defined()) grad_x.zero_();
  if (grad_weight.defined()) grad_weight.zero_();
  for (const Piece& piece : pieces_of(p)) {
    const auto [by_padded, by_weight, _] = at::convolution_backward(
        piece.output_of(grad_output), piece.padded(x), piece.weight_of(weight), {}, {1, 1},
        {0, piece.aside}, {piece.dilation, piece.dilation}, false, {0, 0}, 1,
        {grad_x.defined(), grad_weight.defined(), false});
    if (grad_weight.defined()) piece.weight_of(grad_weight).copy_(by_weight);
    if (!grad_x.defined()) continue;
    const Tensor target = piece.input_of(grad_x);
    target.add_(
        by_padded.narrow(2, piece.above, target.size(2)).narrow(3, piece.left, target.size(3)));
  }
}

}  // namespace deepgen
