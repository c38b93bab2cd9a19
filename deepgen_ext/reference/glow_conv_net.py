from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def glow_conv_net(
    x: Tensor,
    input_weight: Tensor,
    input_bias: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    log_scale: Tensor,
    context_map: Tensor | None = None,
) -> Tensor:
    """conv3x3 (+ context_map), relu, conv1x1, relu, conv3x3 times exp(3 log_scale), its bias too; zero padding."""
    a = F.conv2d(x, input_weight, input_bias, padding=1)
    if context_map is not None:
        a = a + context_map
    b = F.conv2d(a.relu_(), hidden_weight, hidden_bias).relu_()
    scale = (3 * log_scale).exp()
    return F.conv2d(b, output_weight * scale.view(-1, 1, 1, 1), output_bias * scale, padding=1)
