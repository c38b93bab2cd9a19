"""What a network over pixels puts out: the distribution of each pixel, given its parameters.

Plain objects without parameters of their own: they say how many channels the network must have,
score levels and draw them from uniforms, or real numbers from normal ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from deepgen_ext import ops


class Categorical:
    """A free softmax over the levels of each channel.

    The network's channels are channel-major, [C][n_levels]. Where `groups_in_order` is C, the
    network orders the channels of a pixel, and the logits of a channel may depend on the levels of
    those before it; where it is 1, the channels of a pixel are independent given earlier pixels.

    Args:
        channels: C, of the image.
        n_levels: levels a channel, 2 or more.
        groups_in_order: groups of channels that the network draws one after the other; divides C.

    Attributes:
        parameters: C * n_levels, the channels that the network must put out.

    PixelRNN: van den Oord et al. 2016, arXiv:1601.06759.
    """

    def __init__(self, channels: int, n_levels: int = 256, groups_in_order: int = 1) -> None:
        _check_image(channels, n_levels)
        if groups_in_order < 1 or channels % groups_in_order:
            raise ValueError(
                f"groups_in_order: expected a divisor of channels, {channels}, got {groups_in_order}"
            )
        self.channels = channels
        self.n_levels = n_levels
        self.groups_in_order = groups_in_order
        self.parameters = channels * n_levels

    def log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        """Log-probability of the levels, summed over channels and pixels.

        Args:
            parameters: (n, C * n_levels, H, W), logits. Half types are computed in float32.
            levels: (n, C, H, W), integers in [0, n_levels).

        Returns:
            (n,) in nats, float32 for half types.

        Raises:
            ValueError: shapes that do not fit.
        """
        _check_shapes(self, parameters, levels, "levels")
        n, channels, height, width = levels.shape
        logits = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        rows = logits.reshape(n * channels, self.n_levels, height * width)
        targets = levels.reshape(n * channels, height * width).long()
        nats = cross_entropy(rows, targets, reduction="none")
        return -nats.view(n, channels * height * width).sum(1)

    def draw(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """int64 levels (n, C, H, W), by inverse cdf: see `ops.categorical_draw`."""
        _check_shapes(self, parameters, uniforms, "uniforms")
        return ops.categorical_draw(
            parameters, uniforms, n_levels=self.n_levels, temperature=temperature
        )

    def __repr__(self) -> str:
        return (
            f"Categorical(channels={self.channels}, n_levels={self.n_levels}, "
            f"groups_in_order={self.groups_in_order})"
        )


class DiscretizedLogisticMixture:
    """Mixtures of logistics, discretised to levels, that draw the channels of a pixel together.

    The network's channels are [logits K][means C*K][log scales C*K][coefficients C(C-1)/2*K]: the
    mean of a channel moves with the levels of those before it in the pixel, linearly, so the
    network itself need not order channels (groups_in_order is 1).

    Args:
        channels: C, of the image.
        n_levels: levels a channel, 2 to 65536.
        mixtures: K.

    Attributes:
        parameters: the channels that the network must put out: 3 K for C = 1, 10 K for C = 3.

    PixelCNN++: Salimans et al. 2017, arXiv:1701.05517.
    """

    groups_in_order = 1

    def __init__(self, channels: int, n_levels: int = 256, mixtures: int = 10) -> None:
        _check_image(channels, n_levels)
        if mixtures < 1:
            raise ValueError(f"mixtures: expected 1 or more, got {mixtures}")
        self.channels = channels
        self.n_levels = n_levels
        self.mixtures = mixtures
        self.parameters = mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)

    def log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        """Log-probability of the levels, summed over channels and pixels.

        Args:
            parameters: (n, P, H, W). Half types are computed in float32.
            levels: (n, C, H, W), uint8 or int64, in [0, n_levels).

        Returns:
            (n,) in nats, float32 for half types.

        Raises:
            ValueError: shapes that do not fit.
        """
        _check_shapes(self, parameters, levels, "levels")
        nats = ops.discretized_logistic_mixture(
            parameters, levels, n_levels=self.n_levels, mixtures=self.mixtures
        )
        return nats.flatten(1).sum(1)

    def draw(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """int64 levels (n, C, H, W): see `ops.discretized_logistic_mixture_draw`."""
        _check_shapes(self, parameters, uniforms, "uniforms")
        return ops.discretized_logistic_mixture_draw(
            parameters,
            uniforms,
            n_levels=self.n_levels,
            mixtures=self.mixtures,
            temperature=temperature,
        )

    def __repr__(self) -> str:
        return (
            f"DiscretizedLogisticMixture(channels={self.channels}, n_levels={self.n_levels}, "
            f"mixtures={self.mixtures})"
        )


class DiagonalGaussian:
    """Real numbers, normal and independent in the channels of a pixel given the pixels before.

    The network's channels are [means C][log scales C]. A log scale counts as at most 7 in absolute
    value. Where levels are expected, as by `AncestralSampler`, these are the numbers themselves,
    and the uniforms are standard normal numbers. A network sees the numbers as they are.

    Args:
        channels: C.

    Attributes:
        parameters: 2 C, the channels that the network must put out.
    """

    groups_in_order = 1
    n_levels = None  # real numbers
    MAX_LOG_SCALE = 7.0

    def __init__(self, channels: int) -> None:
        if channels < 1:
            raise ValueError(f"channels: expected 1 or more, got {channels}")
        self.channels = channels
        self.parameters = 2 * channels

    def moments(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Means and clamped log scales, (n, C, H, W) each."""
        means, log_scales = parameters.chunk(2, 1)
        return means, log_scales.clamp(-self.MAX_LOG_SCALE, self.MAX_LOG_SCALE)

    def log_prob(self, parameters: Tensor, values: Tensor) -> Tensor:
        """ln p(values), summed over channels and pixels, (n,); float32 for half types.

        Raises:
            ValueError: shapes that do not fit.
        """
        _check_shapes(self, parameters, values, "values")
        dtype = torch.promote_types(parameters.dtype, torch.float32)
        means, log_scales = self.moments(parameters.to(dtype))
        z = (values.to(dtype) - means) * torch.exp(-log_scales)
        nats = 0.5 * z.square() + log_scales + 0.5 * math.log(2 * math.pi)
        return -nats.flatten(1).sum(1)

    def draw(self, parameters: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """mean + temperature * scale * noise, of standard normal noise (n, C, H, W)."""
        _check_shapes(self, parameters, noise, "noise")
        means, log_scales = self.moments(parameters)
        return means + temperature * log_scales.exp() * noise

    def __repr__(self) -> str:
        return f"DiagonalGaussian(channels={self.channels})"


def _check_image(channels: int, n_levels: int) -> None:
    if channels < 1:
        raise ValueError(f"channels: expected 1 or more, got {channels}")
    if n_levels < 2:
        raise ValueError(f"n_levels: expected 2 or more, got {n_levels}")


def _check_shapes(
    distribution: Categorical | DiscretizedLogisticMixture | DiagonalGaussian,
    parameters: Tensor,
    pixels: Tensor,
    name: str,
) -> None:
    if pixels.ndim != 4 or pixels.shape[1] != distribution.channels:
        raise ValueError(
            f"{name}: expected the shape (n, {distribution.channels}, H, W), "
            f"got {tuple(pixels.shape)}"
        )
    n, _, height, width = pixels.shape
    expected = (n, distribution.parameters, height, width)
    if tuple(parameters.shape) != expected:
        raise ValueError(
            f"parameters: expected the shape {expected} for {distribution!r}, "
            f"got {tuple(parameters.shape)}"
        )
