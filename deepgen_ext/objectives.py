"""From likelihoods to the numbers that papers report, from pixels' levels to real x and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def dequantize(
    levels: Tensor,
    n_levels: int,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Uniform dequantisation: x = (levels + u) / n_levels in [0, 1), u ~ Uniform[0, 1).

    The expected log-density of x bounds the log-probability of the levels from below (Theis et al.,
    "A note on the evaluation of generative models", 2016).

    Args:
        levels: integers in [0, n_levels), any shape. The range is checked on the CPU only:
            elsewhere the check would wait for the device.
        n_levels: number of levels, 256 for 8-bit images.
        noise: u itself, of the shape of `levels`; its dtype is that of x. Drawn from `generator`
            when None.
        generator: source of u, on the device of `levels`.

    Raises:
        TypeError: `levels` is not an integer tensor.
        ValueError: a level is out of range, `n_levels` < 2, or `noise` has another shape.
    """
    check_levels(levels, n_levels)
    if noise is None:
        noise = torch.rand(levels.shape, generator=generator, device=levels.device)
    elif noise.shape != levels.shape:
        raise ValueError(
            f"noise: expected the shape of levels {tuple(levels.shape)}, got {tuple(noise.shape)}"
        )
    # Without the cap, 254 + 0.99999994 rounds to 255 in float32, and the sample belongs to the next
    # level.
    noise = noise.clamp(max=1 - 4 * n_levels * torch.finfo(noise.dtype).eps)
    return (levels + noise) / n_levels


def quantize(x: Tensor, n_levels: int) -> Tensor:
    """The level that holds x: floor(x * n_levels), clamped to [0, n_levels - 1].

    Undoes `dequantize`. Returns uint8 for n_levels <= 256, else int64. NaN becomes level 0.
    """
    _check_n_levels(n_levels)
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
    x = x if x.dtype == torch.float64 else x.float()
    # v / n * n may round to just below v; `dequantize` keeps its noise clear of the tolerance added
    # here.
    scaled = x * n_levels + n_levels * torch.finfo(x.dtype).eps
    levels = scaled.floor().nan_to_num(nan=0.0).clamp(0, n_levels - 1)
    return levels.to(torch.uint8 if n_levels <= 256 else torch.int64)


def bits_per_dim(log_prob: Tensor, dims: int, n_levels: int) -> Tensor:
    """Bits per dimension of levels, from the `log_prob` of x = (levels + u) / n_levels.

    bpd = -(log_prob - dims * ln n_levels) / (dims * ln 2): the density of x counted per level, not
    per unit of x.

    Args:
        log_prob: nats per sample, any shape.
        dims: number of dimensions of one sample, C * H * W.
        n_levels: the number of levels that x was divided by; 1 for a density that is not of
            dequantised levels.
    """
    if dims < 1:
        raise ValueError(f"dims: expected a positive number, got {dims}")
    return math.log2(n_levels) - log_prob / (dims * math.log(2))


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """ln N(z; 0, I) in nats, (n, ...) -> (n,), summed in float32 for half types."""
    accumulate = torch.float32 if z.dtype in (torch.float16, torch.bfloat16) else z.dtype
    squares = z.to(accumulate).square()
    if z.ndim > 1:
        squares = squares.flatten(1).sum(1)
    return -0.5 * (squares + math.prod(z.shape[1:]) * math.log(2 * math.pi))


def check_levels(levels: Tensor, n_levels: int) -> None:
    """Raise unless `levels` are integers in [0, n_levels); the range is checked on the CPU only."""
    _check_n_levels(n_levels)
    if levels.dtype not in _INTEGER_DTYPES:
        raise TypeError(f"levels: expected an integer tensor, got {levels.dtype}")
    _check_range(levels, n_levels)


def _check_n_levels(n_levels: int) -> None:
    if n_levels < 2:
        raise ValueError(f"n_levels: expected at least 2, got {n_levels}")


def _check_range(levels: Tensor, n_levels: int) -> None:
    if levels.device.type != "cpu" or torch.compiler.is_compiling() or levels.numel() == 0:
        return
    if levels.dtype == torch.uint8 and n_levels >= 256:
        return
    low, high = (int(bound) for bound in levels.aminmax())
    if low < 0 or high >= n_levels:
        raise ValueError(f"levels: expected values in [0, {n_levels}), got {low} to {high}")
