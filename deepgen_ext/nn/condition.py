"""What an image model is told besides the image: a vector or a map, and how it enters a layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ConditionProjection(nn.Conv2d):
    """A 1x1 convolution of a condition, whose result is added to a map of an image.

    A vector (n, in) becomes (n, out, 1, 1), the same at every pixel; a map (n, in, H, W) becomes
    (n, out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=bias)

    def forward(self, condition: Tensor) -> Tensor:
        if condition.ndim == 2:
            condition = condition[:, :, None, None]
        return super().forward(condition)


def check_condition(
    condition: Tensor | None, channels: int, n: int, image_shape: Sequence[int]
) -> None:
    """Raise a ValueError unless `condition` is (n, channels) or (n, channels, H, W), or None where
    `channels` is 0.
    """
    if channels == 0:
        if condition is not None:
            raise ValueError(
                f"condition: this model was built with conditional_channels=0, "
                f"got {tuple(condition.shape)}"
            )
        return
    height, width = image_shape[1:]
    shapes = ((n, channels), (n, channels, height, width))
    if condition is None or tuple(condition.shape) not in shapes:
        got = None if condition is None else tuple(condition.shape)
        raise ValueError(f"condition: expected {shapes[0]} or {shapes[1]}, got {got}")
    if not condition.is_floating_point():
        raise TypeError(f"condition: expected a floating-point tensor, got {condition.dtype}")
