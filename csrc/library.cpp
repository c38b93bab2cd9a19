// Every op's schema, on one screen. Each is implemented by csrc/<op>.cpp for CPU and CUDA tensors;
// its fake and its gradient are registered by deepgen_ext/ops/<op>.py.
#include "glue.h"

DEEPGEN_EXPANDED(TORCH_LIBRARY, DEEPGEN_NAMESPACE, m) {
  m.def(
      "affine_coupling(Tensor x, Tensor raw_scale, Tensor shift, Tensor? mask, str scale_map, "
      "float clamp, "
      "bool inverse) -> (Tensor y, Tensor log_det)");
  m.def(
      "affine_coupling_backward(Tensor grad_output, Tensor grad_log_det, Tensor x, Tensor "
      "raw_scale, "
      "Tensor? mask, str scale_map, float clamp, bool inverse) -> Tensor[]");
  m.def(
      "half_coupling(Tensor visible, Tensor moved, Tensor parameters, bool moved_first, str "
      "scale_map, float clamp, bool inverse, str order='scale_shift', bool alternating=False) -> "
      "(Tensor y, Tensor log_det)");
  m.def(
      "half_coupling_backward(Tensor grad_output, Tensor grad_log_det, Tensor moved, Tensor "
      "parameters, str scale_map, float clamp, bool inverse, str order='scale_shift') -> (Tensor, "
      "Tensor)");

  m.def("bernoulli_log_prob(Tensor x, Tensor logits, int batch_dims) -> Tensor");
  m.def(
      "bernoulli_log_prob_backward(Tensor grad_output, Tensor x, Tensor logits, bool[2] wanted) -> "
      "(Tensor, Tensor)");

  m.def(
      "channel_affine(Tensor x, Tensor log_scale, Tensor shift, bool inverse) -> (Tensor y, Tensor "
      "log_det)");
  m.def(
      "channel_affine_backward(Tensor grad_output, Tensor grad_log_det, Tensor x, Tensor "
      "log_scale, bool inverse) "
      "-> (Tensor, Tensor, Tensor)");

  m.def(
      "ancestral_sample(Tensor program, Tensor weights, Tensor[] conditions, Tensor uniforms, "
      "Tensor? known, Tensor(a!) levels, Tensor(b!) caches, int tile, int n_levels, "
      "float temperature, int first_row, int last_row) -> ()");

  m.def(
      "categorical_draw(Tensor logits, Tensor uniforms, int n_levels, float temperature) -> "
      "Tensor");

  m.def(
      "discretized_logistic_mixture(Tensor parameters, Tensor levels, int n_levels, int mixtures) "
      "-> Tensor");
  m.def(
      "discretized_logistic_mixture_backward(Tensor grad_output, Tensor parameters, Tensor levels, "
      "int n_levels, int mixtures) -> Tensor");
  m.def(
      "discretized_logistic_mixture_draw(Tensor parameters, Tensor uniforms, int n_levels, "
      "int mixtures, float temperature) -> Tensor");

  m.def(
      "masked_conv2d(Tensor x, Tensor weight, Tensor? bias, str mask_type, int groups_in_order, "
      "int dilation) -> Tensor");
  m.def(
      "masked_conv2d_backward(Tensor grad_output, Tensor x, Tensor weight, str mask_type, int "
      "groups_in_order, int dilation, bool[3] wanted) -> (Tensor, Tensor, Tensor)");

  m.def(
      "glow_conv_net(Tensor x, Tensor input_weight, Tensor input_bias, Tensor hidden_weight, "
      "Tensor hidden_bias, Tensor output_weight, Tensor output_bias, Tensor log_scale, Tensor? "
      "context_map) -> Tensor");
  m.def(
      "glow_conv_net_keeping(Tensor x, Tensor input_weight, Tensor input_bias, Tensor "
      "hidden_weight, Tensor hidden_bias, Tensor output_weight, Tensor output_bias, Tensor "
      "log_scale, Tensor? context_map) -> (Tensor y, Tensor activations)");
  m.def(
      "glow_conv_net_backward(Tensor grad_output, Tensor x, Tensor input_weight, Tensor "
      "input_bias, Tensor hidden_weight, Tensor hidden_bias, Tensor output_weight, Tensor "
      "output_bias, Tensor log_scale, Tensor? context_map, Tensor activations, bool[3] wanted) -> "
      "Tensor[]");

  m.def("block_triangular_linear(Tensor x, Tensor weight, Tensor? bias, Tensor visible) -> Tensor");
  m.def(
      "block_triangular_linear_backward(Tensor grad_output, Tensor x, Tensor weight, Tensor "
      "visible, bool[3] wanted) -> (Tensor, Tensor, Tensor)");

  m.def(
      "power_iteration(Tensor[] weights, Tensor[] us, Tensor[] vs, int n_iterations, float eps) -> "
      "Tensor[]");
  m.def(
      "spectral_normalize(Tensor[] weights, Tensor[] us, Tensor[] vs, int n_iterations, float eps, "
      "float? coefficient) -> Tensor[]");
  m.def(
      "spectral_normalize_backward(Tensor[] grads, Tensor grad_sigmas, Tensor[] weights, Tensor[] "
      "us, Tensor[] vs, Tensor sigmas, float? coefficient) -> Tensor[]");

  m.def(
      "autoregressive_inverse(Tensor z, Tensor[] weights, Tensor[] biases, Tensor[] degrees, str "
      "element, str scale_map, float clamp, int n_bins, float bound, str activation, bool "
      "residual) "
      "-> (Tensor x, Tensor log_det)");
  m.def(
      "autoregressive_inverse_adjoint(Tensor grad_x, Tensor grad_log_det, Tensor z, Tensor x, "
      "Tensor[] weights, Tensor[] biases, Tensor[] degrees, str element, str scale_map, float "
      "clamp, int "
      "n_bins, float bound, str activation, bool residual) -> Tensor[]");

  m.def(
      "rational_quadratic_spline(Tensor x, Tensor widths, Tensor heights, Tensor derivatives, bool "
      "inverse, float bound, float min_bin_width, float min_bin_height, float min_derivative, "
      "float[] "
      "interval=[]) -> (Tensor y, Tensor log_det)");
  m.def(
      "rational_quadratic_spline_backward(Tensor grad_output, Tensor grad_log_det, Tensor x, "
      "Tensor "
      "widths, Tensor heights, Tensor derivatives, bool inverse, float bound, float min_bin_width, "
      "float min_bin_height, float min_derivative, float[] interval=[]) -> (Tensor, Tensor, "
      "Tensor, "
      "Tensor)");

  m.def(
      "fixed_point_step(Tensor(a!) x, Tensor g_x, Tensor y, Tensor(b!) images, Tensor(c!) "
      "residuals, "
      "Tensor(d!) gram, Tensor(e!) record, Tensor(f!) state, float lipschitz, float rounding) -> "
      "()");
  m.def(
      "fixed_point_mlp(Tensor y, Tensor x0, Tensor tolerance, Tensor[] weights, Tensor[] biases, "
      "Tensor betas, str activation, float lipschitz, float rounding, int max_iterations, int "
      "memory) "
      "-> (Tensor x, Tensor record, Tensor state)");

  m.def("planar_chain(Tensor z, Tensor parameters) -> (Tensor output, Tensor log_det)");
  m.def(
      "planar_chain_backward(Tensor grad_output, Tensor grad_log_det, Tensor z, Tensor "
      "parameters) -> (Tensor, Tensor)");

  m.def("radial_chain(Tensor z, Tensor parameters) -> (Tensor output, Tensor log_det)");
  m.def(
      "radial_chain_backward(Tensor grad_output, Tensor grad_log_det, Tensor z, Tensor "
      "parameters) -> (Tensor, Tensor)");
}
