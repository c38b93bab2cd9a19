"""Glow's coupling network on images: one node, matrix products in place of convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepgen_ext._extension import library


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
    return library.glow_conv_net(
        x,
        input_weight,
        input_bias,
        hidden_weight,
        hidden_bias,
        output_weight,
        output_bias,
        log_scale,
        context_map,
    )
