"""The norm of a convolution as a linear map, at a given size of its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .normalized_weight import WARM_UP, NormalizedWeight, unit

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class ConvolutionNorm(NormalizedWeight):
    """W scaled by the largest singular value of x -> conv(x, W), x (C, *input_shape).

    Power iteration with the convolution and its adjoint, so that padding, stride, dilation and
    groups all count; the reshaped weight's norm, which kind="matrix" takes, is off by up to the
    square root of the kernel's size either way (pytorch#99149). u and v are an output and an input.
    """

    def __init__(
        self, layer: nn.Module, weight: Tensor, input_shape: tuple[int, ...], **options
    ) -> None:
        super().__init__(**options)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        sizes, dilation = weight.shape[2:], layer.dilation
        if layer.padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilation, sizes, strict=True)]
            pads = [(total // 2, total - total // 2) for total in totals]
        elif layer.padding == "valid":
            pads = [(0, 0)] * len(sizes)
        else:
            pads = [(p, p) for p in layer.padding]
        # The convolution pads evenly; what one side has more is padded before.
        self.padding = tuple(min(pair) for pair in pads)
        self.before = [
            extra - even
            for pair, even in zip(reversed(pads), reversed(self.padding), strict=True)
            for extra in pair
        ]
        self.input_shape = (1, layer.in_channels, *input_shape)
        v = weight.new_empty(self.input_shape).normal_()
        self.register_buffer("_v", unit(v, self.eps))
        self.register_buffer("_u", unit(self.map(weight.detach(), self._v), self.eps))
        u, v, _ = self.iterate(weight.detach(), self._u, self._v, WARM_UP)
        self.move(u, v)

    def map(self, weight: Tensor, x: Tensor) -> Tensor:
        """conv(x, W)."""
        convolution = _CONVOLUTIONS[weight.ndim - 2]
        x = F.pad(x, self.before) if any(self.before) else x
        return convolution(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def adjoint(self, weight: Tensor, y: Tensor) -> Tensor:
        """The transposed map, exactly: also where a stride skips the last inputs."""
        pads = list(zip(self.before[::2], self.before[1::2], strict=True))[::-1]
        spatial = self.input_shape[2:]
        padded = [size + sum(pair) for size, pair in zip(spatial, pads, strict=True)]
        n = len(spatial)
        x = torch.ops.aten.convolution_backward(
            y,
            y.new_empty(1).expand(1, self.input_shape[1], *padded),
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0] * n,
            self.groups,
            [True, False, False],
        )[0]
        for d, (size, (left, _)) in enumerate(zip(spatial, pads, strict=True)):
            x = x.narrow(d + 2, left, size)
        return x

    def iterate(self, weight, u, v, n_iterations):
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            for _ in range(n_iterations):
                # Where the map is 0 at v, u and v stay: a weight of zeros may come to life.
                reached = self.map(weight, v)
                new_u = unit(reached, self.eps)
                new_v = unit(self.adjoint(weight, new_u), self.eps)
                moves = (reached != 0).any()
                u, v = torch.where(moves, new_u, u), torch.where(moves, new_v, v)
            u, v = u.clone(), v.clone()  # the buffers will move, the graph must not see it
        with torch.autocast(weight.device.type, enabled=False):
            return u, v, (u * self.map(weight, v)).sum()
