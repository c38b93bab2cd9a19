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
      "channel_affine(Tensor x, Tensor log_scale, Tensor shift, bool inverse) -> (Tensor y, Tensor "
      "log_det)");
  m.def(
      "channel_affine_backward(Tensor grad_output, Tensor grad_log_det, Tensor x, Tensor "
      "log_scale, bool inverse) "
      "-> (Tensor, Tensor, Tensor)");
}
